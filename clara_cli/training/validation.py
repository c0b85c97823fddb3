"""What pretrain and train measure on records kept aside: losses, answers, rankings.

Losses are those of training without dropout; answers are greedy, from the memory the stage would
give the generator; recall is of the gold passages in the ranked pool. Several processes measure a
share each, but all of it each where a backbone is cut up, since they have to run in step.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from clara_cli.config import LearnConfig
from clara_cli.core.batch import Batch
from clara_cli.core.losses import IGNORE
from clara_cli.core.model import ClaraModel
from clara_cli.core.stage_losses import Losses
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import UsageError
from clara_cli.evaluation import metrics
from clara_cli.records import Progress, Report
from clara_cli.training.run_folder import RunFolder
from clara_cli.training.validation_schedule import ValidationSchedule

Record = TypeVar("Record")
RECALL = ("recall@1", "recall@3", "recall@5")


@dataclass(frozen=True)
class Example:
    """One record kept aside: what a batch is built of, the answers accepted for it, and which
    passages of its pool are gold."""

    given: Any
    answers: tuple[str, ...] = ()
    golds: tuple[int, ...] = ()


@dataclass(frozen=True)
class HeldOutSet:
    """Records kept aside and how their stage reads them: a batch of them, its losses, and
    (memory_ND for the generator, scores_N per example where the stage ranks); greedy answers have
    `answer_tokens` at most."""

    examples: Sequence[Example]
    build: Callable[[Sequence[Any]], Batch]
    losses: Callable[[Batch, float], Losses]
    read: Callable[[Batch], tuple[Tensor | None, list[Tensor]]]
    answer_tokens: int = 0


def split(
    config: LearnConfig, records: Sequence[Record], held_out: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """(to train on, to validate on): the held-out file's, or a share drawn by the seed; at most
    `validate_limit` are validated on, but a share is trained on in no part."""
    rng = random.Random(f"{config.seed} validation")
    training = list(records)
    if not held_out and config.validation_share:
        chosen = set(
            rng.sample(range(len(training)), round(len(training) * config.validation_share))
        )
        held_out = [record for n, record in enumerate(training) if n in chosen]
        training = [record for n, record in enumerate(training) if n not in chosen]
        if not training or not held_out:
            message = f"validation_share = {config.validation_share} of {len(records)} records"
            raise UsageError(message, "that leaves nothing to train on or to validate on")
    kept = sorted(rng.sample(range(len(held_out)), min(len(held_out), config.validate_limit)))
    return training, [held_out[n] for n in kept]


def check_validation(config: LearnConfig, stage: str, figures: Sequence[str]) -> None:
    """Settings of validation mean nothing without it.

    Raises:
        UsageError: naming them.
    """
    if config.validation and config.validation_share:
        raise UsageError("--validation and validation_share were both given", "give one of them")
    if config.best_by not in figures:
        message = f"best_by is {config.best_by!r}, which {stage} does not measure"
        raise UsageError(message, f"it measures {', '.join(figures)}")
    if config.validation or config.validation_share:
        return
    for name in ("validate_every", "patience"):
        if getattr(config, name) is not None:
            message = f"{name} is {getattr(config, name)}, but nothing is kept aside to validate on"
            raise UsageError(
                message, "add --set validation_share=0.1, or --validation with a file of its own"
            )


def checks_of(
    config: LearnConfig,
    model: ClaraModel,
    held_out: HeldOutSet | None,
    steps: int,
    run: RunFolder,
    report: Report,
) -> ValidationSchedule | None:
    """The checks of a run, None where nothing is kept aside."""
    if held_out is None or not held_out.examples:
        return None
    if config.best_by in RECALL and not any(example.golds for example in held_out.examples):
        message = f"best_by is {config.best_by}, but no passage kept aside is gold"
        raise UsageError(message, "validate on labelled pools, or choose another best_by")

    def figures() -> dict[str, float]:
        return measure(config, model, held_out, run.ranks, report)

    every = config.validate_every or max(1, steps // 10)
    return ValidationSchedule(run, figures, every, config.best_by, config.patience)


def measure(
    config: LearnConfig, model: ClaraModel, held_out: HeldOutSet, ranks: Ranks, report: Report
) -> dict[str, float]:
    """The figures of the model as it is, means over the examples (losses: over their tokens and
    passages)."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    numbers = list(range(len(held_out.examples)))
    own = numbers if ranks.sharded else ranks.share(numbers)
    size = config.micro_batch or min(config.batch_size, 16)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(own), size):
                report.progress(Progress("check", start, len(own), "records"))
                part = [held_out.examples[n] for n in own[start : start + size]]
                for name, value, weight in figures_of(model, held_out, part):
                    sums[name][0] += value * weight
                    sums[name][1] += weight
            report.progress(Progress("check", len(own), len(own), "records"))
    finally:
        model.train(training)
    names = ["ce", "mse", "em", "f1", *RECALL]
    totals = ranks.total(*(part for name in names for part in sums[name]))
    pairs = dict(zip(names, zip(totals[::2], totals[1::2], strict=True), strict=True))
    return {name: total / weight for name, (total, weight) in pairs.items() if weight}


def figures_of(
    model: ClaraModel, held_out: HeldOutSet, part: Sequence[Example]
) -> Iterator[tuple[str, float, float]]:
    """(figure, value, weight) of a few examples; an answer whose prompt does not fit is wrong."""
    batch = held_out.build([example.given for example in part])
    answered = [example for example in part if example.answers]
    if answered and len(batch.rows) != len(part):
        if len(part) > 1:
            for example in part:
                yield from figures_of(model, held_out, [example])
            return
        yield from (("em", 0.0, 1.0), ("f1", 0.0, 1.0))
    if not batch.labelled:
        return
    result = held_out.losses(batch, 1.0)
    yield "ce", result.ce, batch.labelled
    if result.mse is not None:
        yield "mse", result.mse, batch.read
    if not answered and not any(example.golds for example in part):
        return
    memory_ND, scores = held_out.read(batch)
    if answered:
        answers = greedy(model, batch, memory_ND, held_out.answer_tokens)
        for text, example in zip(answers, part, strict=True):
            yield "em", metrics.exact_match(text, example.answers), 1.0
            yield "f1", metrics.f1(text, example.answers), 1.0
    if not scores:
        return
    for scores_N, example in zip(scores, part, strict=True):
        if example.golds:
            hits = [str(n) for n in scores_N.argsort(descending=True).tolist()]
            for k in (1, 3, 5):
                recalled = metrics.recall_at(hits, [str(n) for n in example.golds], k)
                yield f"recall@{k}", recalled, 1.0


def greedy(model: ClaraModel, batch: Batch, memory_ND: Tensor | None, tokens: int) -> list[str]:
    """The greedy answer to each prompt of a batch."""
    ends = [next(n for n, label in enumerate(row) if label != IGNORE) for row in batch.labels]
    prompts = [row[:end] for row, end in zip(batch.rows, ends, strict=True)]
    decode = model.prompter.tokenizer.decode
    generated = model.generate(prompts, memory_ND, tokens)
    return [decode(ids, skip_special_tokens=True).strip() for ids in generated]
