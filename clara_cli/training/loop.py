"""The training loop: a step function, batches by step number, one update a step. Knows no stage,
no text and no terminal; the run folder keeps its state, the ranks add up what several processes do.

Every random choice follows from (seed, step), so a resumed run repeats an uninterrupted one to the
bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from clara_cli.core.batch import Batch
from clara_cli.core.stage_losses import Losses
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import ClaraError, Interrupted
from clara_cli.records import Progress, Report
from clara_cli.storage.files import undisturbed
from clara_cli.training.run_folder import RunFolder, Trained
from clara_cli.training.validation_schedule import ValidationSchedule

LossFunction = Callable[[Batch, float], Losses]
"""Losses of a micro-batch; the number multiplies its alignment loss's weight (see `gradients`)."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then cosine to a tenth of the peak, or constant. Where
    there is a budget of `minutes`, the share of it that is spent stands for the share of steps, if
    it is the larger one."""

    peak: float
    steps: int
    warmup: float
    kind: str
    minutes: float | None = None

    def at(self, step: int, seconds: float = 0.0) -> float:
        """Rate of step 0..steps-1, `seconds` of training after the first began."""
        if self.minutes is not None:
            done = self.share(step, seconds)
            rise = max(done, 1 / self.steps) / self.warmup if done < self.warmup else 1.0
            share = max(0.0, done - self.warmup) / max(1e-9, 1 - self.warmup)
            return self.peak * min(1.0, rise) * self.fall(share)
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.peak * (step + 1) / warm
        return self.peak * self.fall((step - warm) / max(1, self.steps - warm))

    def fall(self, share: float) -> float:
        """What is left of the peak after this share of what follows the warm-up."""
        if self.kind == "constant":
            return 1.0
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))

    def share(self, step: int, seconds: float) -> float:
        """The part of the run that is behind, 0-1: of its steps, or of its minutes."""
        spent = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, spent)) if self.steps else 1.0

    def over(self, step: int, seconds: float) -> bool:
        """Whether the steps are done, or the minutes spent."""
        spent = self.minutes is not None and seconds >= 60 * self.minutes
        return step >= self.steps or spent


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
    many answers of all steps were cut. The speed is None where no step was left."""

    steps: int
    ce: float | None
    mse: float | None
    seconds: float
    tokens_per_second: float | None
    cut: int = 0


def fit(
    trained: Trained,
    batches: Callable[[int], Sequence[Batch]],
    losses: LossFunction,
    settings: FitSettings,
    run: RunFolder,
    report: Report,
    checks: ValidationSchedule | None = None,
) -> FitSummary:
    """Train until `settings.schedule.steps` steps are done or `checks` see no more gain, resuming
    where the folder stands. `batches(step)` gives this process's micro-batches of a step; it is
    called once the step before is done, since retrieved pools follow from the weights. However it
    ends, the last whole step is kept.

    Raises:
        ClaraError: when a loss is not finite or nothing is labelled.
        Interrupted: on Ctrl-C.
    """
    optimizer = torch.optim.AdamW(
        trained.values(), lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    steps = settings.schedule.steps
    done = run.restore(trained, optimizer)
    spent = sum(line["seconds"] for line in run.lines(run.metrics))
    started = saved = time.monotonic()
    tokens, share = 0, settings.schedule.share
    report.progress(Progress("train", done, steps, "steps", share=share(done, spent)))
    try:
        with run.ranks.stopping():
            while True:
                if settings.schedule.minutes is not None:  # every process goes by the first's clock
                    spent = run.ranks.lead(partial(float, spent))
                over = settings.schedule.over(done, spent)
                if checks is not None and checks.due(done, over):
                    run.save(done, trained, optimizer)
                    checks.measure(done, trained)
                if over or (checks is not None and checks.exhausted):
                    break
                began = time.monotonic()
                rate = settings.schedule.at(done, spent)
                line = gradients(done, rate, trained, batches(done), losses, settings, run.ranks)
                with undisturbed():
                    update(optimizer, line, run, began)
                    done += 1
                spent += line["seconds"]
                tokens += line["tokens"]
                pace = tokens / max(time.monotonic() - started, 1e-9)
                report.progress(progress_of(line, done, steps, share(done, spent), pace))
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
    return summary(run, done, seconds, tokens / seconds if tokens else None)


def gradients(
    step: int,
    rate: float,
    trained: Trained,
    micro: Sequence[Batch],
    losses: LossFunction,
    settings: FitSettings,
    ranks: Ranks,
) -> dict[str, Any]:
    """Forward and backward of one step; returns its line of metrics and changes no parameter."""
    torch.manual_seed((settings.seed * 1_000_003 + step) * ranks.size + ranks.rank)
    parts = weigh(step, micro, ranks)
    loss = ce = mse = aligned_parts = 0.0
    trouble: ClaraError | None = None
    for batch, share, aligned in parts:
        result = losses(batch, aligned / share if share else 0.0)
        trouble = trouble or infinite(step, "loss", result.loss.item(), [batch])
        (result.loss * share).backward()
        loss += result.loss.item() * share
        ce += result.ce * share
        if result.mse is not None:
            mse, aligned_parts = mse + result.mse * aligned, aligned_parts + 1
    ranks.refuse(trouble)
    ranks.sum_gradients(trained.values())
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), settings.clip)
    ranks.refuse(infinite(step, "gradient", norm.item(), micro))
    spent = (sum(batch.tokens for batch in micro), sum(batch.cut for batch in micro))
    loss, ce, mse, aligned_parts, *counts = ranks.total(loss, ce, mse, aligned_parts, *spent)
    return {
        "step": step + 1,
        "loss": loss,
        "ce": ce,
        "mse": mse if aligned_parts else None,
        "lr": rate,
        "tokens": int(counts[0]),
        "seconds": 0.0,
        "cut": int(counts[1]),
    }


def weigh(step: int, micro: Sequence[Batch], ranks: Ranks) -> list[tuple[Batch, float, float]]:
    """This process's micro-batches of a step with the weights of their answers and of their
    alignment: labelled tokens and passages, each as a share of the whole step in all processes, so
    that neither micro-batches nor processes change the step.

    Sharded processes have to run forward in step: who has fewer micro-batches than another repeats
    its last one at weight zero.
    """
    useful = [batch for batch in micro if batch.labelled]
    passages = [batch.read for batch in useful]
    labelled, aligned, stopped = ranks.total(
        sum(batch.labelled for batch in useful), sum(passages), ranks.stopped
    )
    if stopped:
        raise KeyboardInterrupt
    rounds = max(ranks.gathered(len(useful))) if ranks.sharded else len(useful)
    trouble = ClaraError(
        f"step {step + 1}: no labelled token in the batch ({record_names(micro)})",
        "answers are empty or do not fit; raise max_length or drop such records",
    )
    ranks.refuse(trouble if labelled == 0 or len(useful) < min(rounds, 1) else None)
    aligned = aligned or 1  # none read as memory, none aligned
    parts = [(b, b.labelled / labelled, n / aligned) for b, n in zip(useful, passages, strict=True)]
    idle = [(batch, 0.0, 0.0) for batch in useful[-1:]]
    return parts + idle * (rounds - len(parts))


def infinite(step: int, what: str, value: float, micro: Sequence[Batch]) -> ClaraError | None:
    """The error of a number that is not finite, which must never reach a parameter."""
    if math.isfinite(value):
        return None
    return ClaraError(
        f"step {step + 1}: the {what} is {value} on {record_names(micro)}; "
        "the state before this step is kept",
        "lower learning_rate (and use another --out), or look at these records",
    )


def record_names(micro: Sequence[Batch]) -> str:
    """The records of a step, as the user can find them."""
    sources = list(dict.fromkeys(source for batch in micro for source in batch.sources))
    more = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
    return ", ".join(sources[:8]) + more


def update(
    optimizer: torch.optim.AdamW, line: dict[str, Any], run: RunFolder, began: float
) -> None:
    """Write a step's line of metrics and apply its gradients, in this order: where the line cannot
    be written, no parameter has changed."""
    for group in optimizer.param_groups:
        group["lr"] = line["lr"]
    line["seconds"] = round(time.monotonic() - began, 4)
    run.log(run.metrics, line)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def progress_of(line: dict[str, Any], done: int, steps: int, share: float, pace: float) -> Progress:
    """One step as something to show; `pace` is in tokens a second."""
    figures = {"ce": f"{line['ce']:.3f}"}
    if line["mse"] is not None:
        figures["mse"] = f"{line['mse']:.4f}"
    figures |= {"lr": f"{line['lr']:.1e}", "tokens/s": f"{pace:,.0f}"}
    return Progress("train", done, steps, "steps", figures, share)


def summary(run: RunFolder, done: int, seconds: float, speed: float | None) -> FitSummary:
    """Means over the last tenth of all steps and counts over all, from the metrics file."""
    lines = run.lines(run.metrics)
    tail = lines[-max(1, len(lines) // 10) :] if lines else []
    ce = sum(line["ce"] for line in tail) / len(tail) if tail else None
    aligned = [line["mse"] for line in tail if line["mse"] is not None]
    mse = sum(aligned) / len(aligned) if aligned else None
    return FitSummary(done, ce, mse, seconds, speed, sum(line["cut"] for line in lines))
