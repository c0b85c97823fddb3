"""The processes of one command: who they are, what each does, and what they add up, agree on and
wait for.

torchrun (or `--nproc`) starts them; they meet in one of two ways. `join`, for training: in step,
tensors sent by accelerate's backend (gloo on CPUs, nccl on GPUs). `joined_apart`, for work that
shares nothing but a folder: words alone, hours apart. One process is a world of one, for which
everything here costs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from clara_cli.distributed.launch import world
from clara_cli.errors import ArtefactError, ClaraError, UsageError

Made = TypeVar("Made")
Item = TypeVar("Item")

_PATIENCE = timedelta(days=30)  # working apart, a process may finish long before the others
_PARENT_SECONDS = 0.5


@dataclass
class Ranks:
    """Process `rank` of `size`; `sharded` where they hold parts of one backbone. `stopped` is set
    by a signal while several processes train."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    sharded: bool = False
    stopped: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether item `number` is this process's work: every `size`-th one is."""
        return number % self.size == self.rank

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of something all processes hold."""
        return [item for number, item in enumerate(items) if self.has(number)]

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over the processes, in double precision."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def gathered(self, value: Made) -> list[Made]:
        """A small value of every process, in their order."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes: one message a step. A process
        without a gradient adds nothing."""
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten().float() for grad in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def lead(self, work: Callable[[], Made]) -> Made:
        """What `work` returns in the first process, which alone does it; its error is everyone's.
        A result is sent, so it has to be small."""
        if self.size == 1:
            return work()
        outcome, trouble = None, None
        if self.first:
            try:
                outcome = work()
            except ClaraError as error:
                trouble = error
        box: list[Any] = [outcome, trouble]
        distributed.broadcast_object_list(box, 0, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def refuse(self, trouble: ClaraError | None) -> None:
        """Raise the first error that any process has, in all of them."""
        errors = [error for error in self.gathered(trouble) if error is not None]
        if errors:
            raise errors[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A ClaraError of one process is raised in all of them, once all are done."""
        trouble = None
        try:
            yield
        except ClaraError as error:
            trouble = error
        self.refuse(trouble)

    def agree(self, what: dict[str, Any]) -> None:
        """Refuse to go on where the processes were given different settings or data."""
        for rank, other in enumerate(self.gathered(what)):
            for key in sorted(set(what) | set(other)):
                here, there = what.get(key), other.get(key)
                if here != there:
                    raise ArtefactError(
                        f"the processes disagree on {key}: {here!r} in process {self.rank}, "
                        f"{there!r} in process {rank}",
                        "give every machine the same files and the same command",
                    )

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """With several processes, let Ctrl-C and SIGTERM only set `stopped`: they leave together,
        after a whole step."""
        if self.size == 1:
            yield
            return

        def stop(*_: object) -> None:
            self.stopped = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler or signal.SIG_DFL)


def join(device: str) -> Ranks:
    """Meet the other processes that the launcher started.

    Raises:
        UsageError: with more processes than GPUs.
        ClaraError: when fewer of them meet than were started.
    """
    here = world()
    if here.size == 1:
        return Ranks()
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if 0 < gpus < here.local_size:
        message = f"{here.local_size} processes, but {gpus} GPU(s) on this machine"
        raise UsageError(message, "lower --nproc, or compute with --device cpu")
    from accelerate import PartialState

    state = PartialState(cpu=gpus == 0)
    return _met(Ranks(state.process_index, state.num_processes, state.device))


@contextmanager
def joined_apart() -> Iterator[Ranks]:
    """Meet the processes that the launcher started, to exchange words and not tensors. Each
    computes on a GPU of its own where there are GPUs. A process ends with its launcher.

    Raises ClaraError where fewer of them meet than were started.
    """
    here = world()
    if here.size == 1:
        yield Ranks()
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield _met(Ranks(distributed.get_rank(), distributed.get_world_size()))
    finally:
        distributed.destroy_process_group()


def _met(ranks: Ranks) -> Ranks:
    """The processes that met, once they are those that were started."""
    here = world()
    if (ranks.size, ranks.rank) != (here.size, here.rank):
        message = f"{here.size} processes were started, {ranks.size} met"
        raise ClaraError(message, "start them with --nproc or torchrun")
    return ranks


def _end_with(parent: int) -> None:
    """A killed launcher leaves its processes to themselves: they would go on writing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
