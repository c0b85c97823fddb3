"""Trains nano's backbone: one set of weights that reads text, fills memory, repeats, answers and
searches. Needs this folder, a packed folder (`pack.py`), torch and transformers; no network.

    python recipes/nano/train.py --data runs/nano-packed --minutes 25 --out runs/nano-backbone

Complete within its minutes: on the first call or over several, since a run that was stopped (by
`--stop-after`, by a signal, by a machine) goes on from its last state. The learning rate follows
the share of the budget used. `OUT/weights/` holds the result in parts under 16 MiB (`weights.py`),
written at every save, so that what comes back from a lent machine is usable.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import held_out_eval
import numpy as np
import packed_format
import torch
import weights
from batches import Batch, Builder, Mixture, Rows
from muon import optimizers
from network import SLOTS, Memory, Network, build_model
from schedule import Clock, rate
from torch import Tensor

WEIGHTS = {
    "memory": 1.0,
    "text": 0.5,
    "read": 0.3,
    "repeat": 0.3,
    "stream": 0.5,
    "slots": 0.5,
    "search": 0.2,
}
TEXT_FIRST = 0.12  # share of the budget in which only text is read and slots filled
SLOTS_UNTIL = 0.5  # share of the budget with the slots loss
SEARCH_FROM = 0.25  # share of the budget from which questions look for passages
READ_AHEAD = 4  # batches made before they are needed


def tasks_at(share: float, text_first: float) -> frozenset[str]:
    """The tasks of a step when `share` of the budget is used."""
    tasks = {"text", "stream", "read"}
    tasks |= {"slots"} if share < SLOTS_UNTIL else set()
    tasks |= {"memory", "repeat"} if share >= text_first else set()
    tasks |= {"search"} if share >= text_first * SEARCH_FROM / TEXT_FIRST else set()
    return frozenset(tasks)


class Reader:
    """Makes the coming batches on a thread while the network computes. A change of tasks reaches
    batches that are not made yet."""

    def __init__(self, builder: Builder, step: int, tasks: frozenset[str]) -> None:
        self.builder, self.step, self.tasks = builder, step, tasks
        self.ready: queue.Queue[Batch | Exception] = queue.Queue(READ_AHEAD)
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        step = self.step
        while True:
            try:
                self.ready.put(self.builder.batch(step, self.tasks))
            except Exception as error:  # told where it is waited for
                self.ready.put(error)
                return
            step += 1

    def next(self) -> Batch:
        found = self.ready.get()
        if isinstance(found, Exception):
            raise found
        return found


class Trainer:
    """Turns batches into losses and losses into steps."""

    def __init__(self, network: Network, lr: float, compiled: bool, bf16: bool) -> None:
        self.network, self.lr = network, lr
        self.optimizers = optimizers(network, lr)
        if compiled:
            network.inner = torch.compile(network.model.model, dynamic=True)
        kind = network.device.type
        self.autocast = (lambda: torch.autocast(kind, torch.bfloat16)) if bf16 else nullcontext
        if bf16 and kind == "cpu":
            network.model.config._attn_implementation = "float32"

    def tensor(self, array: np.ndarray) -> Tensor:
        """On the network's device, copied while it computes."""
        found = torch.from_numpy(array)
        if self.network.device.type == "cuda":
            found = found.pin_memory().to(self.network.device, non_blocking=True)
        return found

    def read(self, rows: Rows, memory_BMD: Tensor | None) -> Tensor:
        memory_ND = None
        if memory_BMD is not None and len(rows.memories):
            memory_ND = memory_BMD[self.tensor(rows.memories)].flatten(0, 1)
        hidden_BTD = self.network.hidden(self.network.embed(self.tensor(rows.ids), memory_ND))
        found = (self.tensor(part) for part in (rows.where, rows.targets, rows.weights))
        return self.network.nll(hidden_BTD, *found)

    def losses(self, batch: Batch, tasks: frozenset[str]) -> dict[str, Tensor]:
        """The losses of one batch, by task."""
        network, found = self.network, {}
        ids, lengths = self.tensor(batch.passages), self.tensor(batch.lengths)
        memory_BMD, hidden_BLD = network.compress(ids, lengths, batch.slots)
        for name, rows in batch.tasks.items():
            from_memory = name in ("memory", "repeat")
            found[name] = self.read(rows, memory_BMD if from_memory else None)
        if "read" in tasks:
            where, targets = self.tensor(batch.read_where), self.tensor(batch.read)
            found["read"] = network.nll(hidden_BLD, where, targets, None)
        if "slots" in tasks:
            rows_W, words_W = self.tensor(batch.word_rows), self.tensor(batch.words)
            found["slots"] = network.slot_loss(memory_BMD, rows_W, words_W)
        if "search" in tasks:
            queries, lengths = self.tensor(batch.queries), self.tensor(batch.query_lengths)
            query_BMD, _ = network.compress(queries, lengths, batch.slots)
            owners = self.tensor(batch.owners)
            found["search"] = network.search_loss(query_BMD, memory_BMD, owners)
        return found

    def step(self, batch: Batch, tasks: frozenset[str], factor: float) -> dict[str, Tensor]:
        """One step of both optimizers; returns the losses, detached."""
        with self.autocast():
            losses = self.losses(batch, tasks)
            loss = sum(WEIGHTS[name] * value for name, value in losses.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in losses.items()}


def save(out: Path, trainer: Trainer, clock: Clock, log: list[dict], shape: dict) -> None:
    """The resumable state, replaced at once, and the weights in parts."""
    state = {
        "network": trainer.network.state_dict(),
        "optimizers": [o.state_dict() for o in trainer.optimizers],
        "clock": {k: v for k, v in asdict(clock).items() if k not in ("since", "begun")},
        "log": log,
        "shape": shape,
    }
    torch.save(state, out / "last.tmp")
    (out / "last.tmp").rename(out / "last.pt")
    about = {"shape": shape, "log": log, **state["clock"]}
    weights.write(out / "weights", trainer.network, about)


def mixture_of(args: argparse.Namespace, cuda: bool) -> Mixture:
    """What a step holds, from the options."""
    pairs = (part.split("=") for part in args.mix.split(","))
    return Mixture(
        sources={name: float(share) for name, share in pairs},
        passages=args.passages or (128 if cuda else 16),
        cluster=args.cluster,
        turns=args.turns,
        longest=args.longest,
        text=args.text,
        stream=args.stream if args.stream is not None else (32 if cuda else 0),
        window=args.window,
        widths=64 if cuda else 1,
    )


def prepare(args: argparse.Namespace, vocabulary: int, device: torch.device) -> tuple:
    """(trainer, clock, log, shape) of a new run, or of the one in `args.out`."""
    torch.manual_seed(args.seed)
    last, state, clock, log = args.out / "last.pt", None, Clock(args.minutes), []
    if last.exists():
        state = torch.load(last, weights_only=True, map_location="cpu")
        shape = state["shape"]
        clock, log = Clock(**{**state["clock"], "minutes": args.minutes}), state["log"]
    elif args.init is not None:
        shape, start = weights.read(args.init)
    else:
        shape = {"vocab": vocabulary, "hidden": args.hidden, "layers": args.layers,
                 "inner": args.inner}  # fmt: skip
    network = Network(build_model(**shape), Memory(SLOTS, shape["hidden"]))
    if state is not None:
        network.load_state_dict(state["network"])
    elif args.init is not None:
        network.load_state_dict(start)
    bf16 = args.bf16 or device.type == "cuda"
    trainer = Trainer(network.to(device), args.lr, args.compile, bf16)
    if state is not None:
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    return trainer, clock, log, shape


def steps(
    args: argparse.Namespace, trainer: Trainer, clock: Clock, builder: Builder, entered: float
) -> Iterator[dict[str, Tensor]]:
    """Train until the budget is used, `--steps` are done, `--stop-after` is over or a signal asks
    to stop; yields each step's losses."""
    stopped: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: stopped.append(number))
    clock.start(entered)
    reader = Reader(builder, clock.steps, tasks_at(clock.share, args.text_first))
    while clock.share < 1 and clock.steps != args.steps and not stopped:
        if args.stop_after and time.monotonic() - entered > args.stop_after * 60:
            return
        tasks = reader.tasks = tasks_at(clock.share, args.text_first)
        batch = reader.next()
        losses = trainer.step(batch, tasks, rate(clock.share))
        if trainer.network.device.type == "cuda" and clock.steps % 20 == 0:
            torch.cuda.synchronize()  # so that the clock counts work done, not work queued
        clock.tick(batch.tokens)
        yield losses


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, check and save; returns the last log entry."""
    entered = time.monotonic()
    cuda = torch.cuda.is_available() and not args.cpu
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")
    arrays, manifest = packed_format.read(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer, clock, log, shape = prepare(args, manifest["vocabulary"], device)
    mixture = mixture_of(args, cuda)
    builder = Builder(arrays, manifest["pieces"], mixture, args.seed)
    examiner = held_out_eval.Examiner(arrays, manifest["pieces"], mixture, args.checked)
    size = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    print(f"{size:.2f} M parameters on {device}, {mixture}", flush=True)
    means: dict[str, Tensor] = {}
    saved = checked = time.monotonic()
    known = bool(clock.horizon)
    for losses in steps(args, trainer, clock, builder, entered):
        for name, value in losses.items():
            means[name] = torch.lerp(means.get(name, value), value, 0.05)
        if clock.horizon and not known:
            known = True
            print(f"{clock.tokens_per_second:,.0f} tokens/s: {clock.horizon:,} steps", flush=True)
        if clock.steps % args.every == 0:
            shown = " ".join(f"{k} {v.item():.3f}" for k, v in means.items())
            minutes = clock.seconds / 60
            print(f"step {clock.steps} {minutes:.1f} min {clock.share:.0%} {shown}", flush=True)
        if time.monotonic() - checked > args.check_every * 60:
            log.append(examined(trainer, examiner, clock, means))
            checked = time.monotonic()
        if time.monotonic() - saved > args.save_every * 60:
            save(args.out, trainer, clock, log, shape)
            saved = time.monotonic()
    if args.checked:
        log.append(examined(trainer, examiner, clock, means))
    save(args.out, trainer, clock, log, shape)
    print(f"{args.out}: {clock.steps} steps, {clock.tokens:,} tokens, {clock.share:.0%} of the run")
    return log[-1] if log else {}


def examined(trainer: Trainer, examiner: held_out_eval.Examiner, clock: Clock, means: dict) -> dict:
    """Held-out figures, printed and returned with the losses of the moment."""
    with trainer.autocast():
        scores = examiner.scores(trainer.network)
    print("held out", scores, flush=True)
    losses = {name: round(value.item(), 4) for name, value in means.items()}
    return {"step": clock.steps, "seconds": round(clock.seconds), **scores, "losses": losses}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder written by pack.py")
    add("--out", type=Path, required=True)
    add("--minutes", type=float, default=25, help="wall-clock budget of the whole run")
    add("--stop-after", type=float, help="end this call after so many minutes; go on with another")
    add("--steps", type=int, help="stop at so many steps, whatever time is left")
    add("--init", type=Path, help="begin with a run's weights/ or a checkpoint with a backbone")
    add("--hidden", type=int, default=512)
    add("--layers", type=int, default=6)
    add("--inner", type=int, default=1344)
    add("--lr", type=float, default=2e-3)
    add("--passages", type=int, help="compressed in a step (128 on a GPU, 16 on a CPU)")
    add("--cluster", type=int, default=4, help="passages of one pool that stand together")
    add("--turns", type=int, default=4, help="questions about one passage in a step")
    add("--longest", type=int, default=24, help="tokens of an answer that is still asked for")
    add("--stream", type=int, help="rows of language modelling in a step (32 on a GPU, else 0)")
    add("--window", type=int, default=1024, help="tokens of such a row")
    add("--text", type=float, default=0.25, help="share of clusters also read as text")
    add("--mix", default="squad=0.45,wiki=0.3,world=0.15,hotpotqa=0.07,musique=0.03")
    add("--text-first", type=float, default=TEXT_FIRST, help="share of the budget of text alone")
    add("--seed", type=int, default=0)
    add("--compile", action="store_true", help="torch.compile the layers")
    add("--bf16", action="store_true", help="bfloat16 autocast on a CPU too: 1.5x with AVX512_BF16")
    add("--cpu", action="store_true", help="stay on the CPU")
    add("--every", type=int, default=25, help="steps between two lines of losses")
    add("--check-every", type=float, default=5, help="minutes between two checks")
    add("--checked", type=int, default=64, help="held-out questions of a check; 0: none")
    add("--save-every", type=float, default=4, help="minutes between two saves")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    print(json.dumps(run(options().parse_args(argv))))


if __name__ == "__main__":
    main()
