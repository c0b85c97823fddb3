"""The training loop: a step function, batches by step number, and a run folder that survives
anything. Knows no stage, no text and no terminal.

Every random choice follows from (seed, step), so a resumed run repeats an uninterrupted one to the
bit on a CPU. State is kept as safetensors, never pickled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clara_cli.core.batch import Batch
from clara_cli.core.checkpoint import replace_folder
from clara_cli.core.stages import Losses
from clara_cli.errors import ArtefactError, ClaraError, Interrupted
from clara_cli.records import Progress, Report

LossFunction = Callable[[Batch, float], Losses]
"""Losses of a micro-batch; the number multiplies its alignment loss's weight (see `gradients`)."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then cosine to a tenth of the peak, or constant."""

    peak: float
    steps: int
    warmup: float
    kind: str

    def at(self, step: int) -> float:
        """Rate of step 0..steps-1."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.peak * (step + 1) / warm
        if self.kind == "constant":
            return self.peak
        share = (step - warm) / max(1, self.steps - warm)
        return self.peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class FitSettings:
    """What the loop itself needs to know."""

    schedule: Schedule
    clip: float
    weight_decay: float
    seed: int
    save_minutes: float


@dataclass(frozen=True)
class FitSummary:
    """How it went: means over the last tenth of the steps, speed of this call's own steps, and how
    many answers of all steps were cut."""

    steps: int
    ce: float | None
    mse: float | None
    seconds: float
    tokens_per_second: float
    cut: int = 0


_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


class RunFolder:
    """`DIR/last/` (resumable state), `DIR/metrics.jsonl`, `DIR/run.json` (the settings)."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.metrics, self.last = path / "metrics.jsonl", path / "last"

    def open(self) -> None:
        """Create the folder, or check that an existing one was begun with the same settings."""
        file = self.path / "run.json"
        if file.exists():
            found = self._begun(file)
            for key in sorted(set(found) | set(self.settings)):
                if found.get(key) != self.settings.get(key):
                    raise ArtefactError(
                        f"{self.path}: begun with {key} = {found.get(key)!r}, "
                        f"now {self.settings.get(key)!r}",
                        "use another --out, or the settings it was begun with",
                    )
        elif self.path.exists() and not self.path.is_dir():
            raise ArtefactError(f"{self.path}: a file, not a run folder", "use another --out")
        elif self.path.exists() and {item.name for item in self.path.iterdir()} - {"run.tmp"}:
            raise ArtefactError(f"{self.path}: not empty and not a run folder", "use another --out")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.settings, indent=2, sort_keys=True) + "\n"
            (self.path / "run.tmp").write_text(text, encoding="utf-8")
            os.replace(self.path / "run.tmp", file)

    @staticmethod
    def _begun(file: Path) -> dict[str, Any]:
        """The settings a folder was begun with."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{file}: unreadable: {error}", "use another --out") from error
        if not isinstance(found, dict):
            raise ArtefactError(f"{file}: not the settings of a run", "use another --out")
        return found

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.path / "checkpoint" / "clara.json").is_file()

    def save(
        self, step: int, trained: dict[str, nn.Parameter], optimizer: torch.optim.AdamW
    ) -> None:
        """Keep everything needed to go on after `step` steps."""
        work = self.path / "last.writing"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        tensors = {}
        for name, parameter in trained.items():
            tensors[name] = parameter.detach()
            for key in ("exp_avg", "exp_avg_sq"):
                if parameter in optimizer.state:
                    tensors[f"{key}/{name}"] = optimizer.state[parameter][key]
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, work / "state.safetensors")
        (work / "step.json").write_text(json.dumps({"step": step}))
        with undisturbed():
            replace_folder(work, self.last)

    def restore(self, trained: dict[str, nn.Parameter], optimizer: torch.optim.AdamW) -> int:
        """Put a kept state back; returns the number of steps already done."""
        replaced = self.path / "last.old"
        if not self.last.exists() and replaced.is_dir():  # killed between two renames
            os.replace(replaced, self.last)
        if not (self.last / "step.json").is_file():
            self.metrics.unlink(missing_ok=True)
            return 0
        try:
            step = int(json.loads((self.last / "step.json").read_text())["step"])
            tensors = load_file(self.last / "state.safetensors")
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(tensors[name])
                    if step:
                        optimizer.state[parameter] = {
                            "step": torch.tensor(float(step)),
                            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter),
                            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter),
                        }
        except _DAMAGE as error:
            raise ArtefactError(
                f"{self.last}: the state to resume from is damaged: {error}",
                "delete that folder to start this run anew",
            ) from error
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        self.metrics.write_text("".join(line + "\n" for line in lines[:step]))
        return step


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it happens whole or not."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: held.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
    if held:
        signal.raise_signal(held[0])


def fit(
    trained: dict[str, nn.Parameter],
    batches: Callable[[int], Sequence[Batch]],
    losses: LossFunction,
    settings: FitSettings,
    run: RunFolder,
    report: Report,
) -> FitSummary:
    """Train until `settings.schedule.steps` steps are done, resuming where the folder stands.
    `batches(step)` gives a step's micro-batches; it is called once the step before is done, since
    retrieved pools follow from the weights. However it ends, the last whole step is kept.

    Raises:
        ClaraError: when a loss is not finite or nothing is labelled.
        Interrupted: on Ctrl-C.
    """
    optimizer = torch.optim.AdamW(
        trained.values(), lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    steps = settings.schedule.steps
    done = first = run.restore(trained, optimizer)
    started = saved = time.monotonic()
    tokens = 0
    try:
        with run.metrics.open("a", encoding="utf-8") as log:
            for step in range(first, steps):
                began = time.monotonic()
                line = gradients(step, trained, batches(step), losses, settings)
                with undisturbed():
                    update(optimizer, line, log, began)
                    done = step + 1
                tokens += line["tokens"]
                report.progress(progress_of(line, done, steps, tokens, time.monotonic() - started))
                if time.monotonic() - saved > settings.save_minutes * 60:
                    run.save(done, trained, optimizer)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {done} of {steps} steps are kept in {run.last}",
            "run the same command again to go on",
        ) from None
    finally:
        run.save(done, trained, optimizer)
    seconds = time.monotonic() - started
    return summary(run, done, seconds, tokens / seconds if tokens else 0.0)


def gradients(
    step: int,
    trained: dict[str, nn.Parameter],
    micro: Sequence[Batch],
    losses: LossFunction,
    settings: FitSettings,
) -> dict[str, Any]:
    """Forward and backward of one step; returns its line of metrics and changes no parameter.

    Answers weigh by their labelled tokens and alignment by passages, each as a share of the whole
    step, so that splitting a batch into micro-batches does not change the step.
    """
    torch.manual_seed(settings.seed * 1_000_003 + step)
    labelled = sum(batch.labelled for batch in micro)
    passages = sum(batch.read for batch in micro if batch.labelled)
    if labelled == 0:
        raise ClaraError(
            f"step {step + 1}: no labelled token in the batch ({named(micro)})",
            "answers are empty or do not fit; raise max_length or drop such records",
        )
    loss, ce, mse = 0.0, 0.0, None
    for batch in micro:
        if not batch.labelled:
            continue
        share, aligned = batch.labelled / labelled, batch.read / passages
        result = losses(batch, aligned / share)
        refuse_infinite(step, "loss", result.loss.item(), [batch])
        (result.loss * share).backward()
        loss += result.loss.item() * share
        ce += result.ce * share
        mse = None if result.mse is None else (mse or 0.0) + result.mse * aligned
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), settings.clip)
    refuse_infinite(step, "gradient", norm.item(), micro)
    return {
        "step": step + 1,
        "loss": loss,
        "ce": ce,
        "mse": mse,
        "lr": settings.schedule.at(step),
        "tokens": sum(batch.tokens for batch in micro),
        "seconds": 0.0,
        "cut": sum(batch.cut for batch in micro),
    }


def refuse_infinite(step: int, what: str, value: float, micro: Sequence[Batch]) -> None:
    """Stop before a number that is not finite reaches a parameter."""
    if not math.isfinite(value):
        raise ClaraError(
            f"step {step + 1}: the {what} is {value} on {named(micro)}; "
            "the state before this step is kept",
            "lower learning_rate (and use another --out), or look at these records",
        )


def named(micro: Sequence[Batch]) -> str:
    """The records of a step, as the user can find them."""
    sources = list(dict.fromkeys(source for batch in micro for source in batch.sources))
    more = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
    return ", ".join(sources[:8]) + more


def update(optimizer: torch.optim.AdamW, line: dict[str, Any], log: IO[str], began: float) -> None:
    """Apply a step's gradients and write its line of metrics."""
    for group in optimizer.param_groups:
        group["lr"] = line["lr"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    line["seconds"] = round(time.monotonic() - began, 4)
    log.write(json.dumps(line) + "\n")
    log.flush()


def progress_of(
    line: dict[str, Any], done: int, steps: int, tokens: int, seconds: float
) -> Progress:
    """One step as something to show."""
    figures = {"ce": f"{line['ce']:.3f}"}
    if line["mse"] is not None:
        figures["mse"] = f"{line['mse']:.4f}"
    figures |= {"lr": f"{line['lr']:.1e}", "tokens/s": f"{tokens / max(seconds, 1e-9):,.0f}"}
    return Progress("train", done, steps, "steps", figures)


def summary(run: RunFolder, done: int, seconds: float, speed: float) -> FitSummary:
    """Means over the last tenth of all steps and counts over all, from the metrics file."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    tail = lines[-max(1, len(lines) // 10) :] if lines else []
    ce = sum(line["ce"] for line in tail) / len(tail) if tail else None
    aligned = [line["mse"] for line in tail if line["mse"] is not None]
    mse = sum(aligned) / len(aligned) if aligned else None
    return FitSummary(done, ce, mse, seconds, speed, sum(line["cut"] for line in lines))
