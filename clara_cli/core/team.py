"""The processes of one `compress`: they share nothing but a folder, meet when it is opened and
again when every shard is written, hours later, and fail together.

torchrun (or `--nproc`) starts them. One process is a team of one, for which this costs nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from clara_cli.errors import ClaraError
from clara_cli.launch import world

Value = TypeVar("Value")

_PATIENCE = timedelta(days=30)  # a rank may finish long before the others
_PARENT_SECONDS = 0.5


@dataclass(frozen=True)
class Team:
    """Process `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that opens and finishes."""
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether item `number` is this process's work."""
        return number % self.size == self.rank

    def gathered(self, value: Value) -> list[Value]:
        """A small value of every process, in their order."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """A ClaraError of one process is raised in all of them, once all are done."""
        trouble = None
        try:
            yield
        except ClaraError as error:
            trouble = error
        first = next((error for error in self.gathered(trouble) if error), None)
        if first is not None:
            raise first


@contextmanager
def joined() -> Iterator[Team]:
    """Meet the processes that the launcher started, over gloo: they exchange words, not tensors.
    Each computes on a GPU of its own where there are GPUs. A process ends with its launcher.

    Raises ClaraError where fewer of them meet than were started.
    """
    here = world()
    if here.size == 1:
        yield Team()
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        size = distributed.get_world_size()
        if size != here.size:
            message = f"{here.size} processes were started, {size} met"
            raise ClaraError(message, "start them with --nproc or torchrun")
        yield Team(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """A killed launcher leaves its processes to themselves: they would go on writing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
