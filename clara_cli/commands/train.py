"""`clara train`: answering (instruct), retrieval learned through answering (e2e) or from labels."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch

from clara_cli.commands.learning import (
    check_settings,
    draw,
    finish,
    micro,
    ratio_slots,
    result,
    run_settings,
    train_stage,
)
from clara_cli.config import TrainConfig
from clara_cli.core.batch import AnswerExample, Batch, answer_batch, retrieval_batch
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.core.loop import FitSummary, RunFolder
from clara_cli.core.stages import (
    TRAINED,
    Losses,
    contrastive_loss,
    end_to_end_loss,
    read_memory_loss,
)
from clara_cli.corpus.chunk import model_text
from clara_cli.corpus.examples import QUESTION_HINT, read_questions
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.records import PoolPassage, Question, Report, TrainResult


def run(config: TrainConfig, report: Report) -> TrainResult:
    """Train a stage until its steps are done; `--steps 0` only writes the native form."""
    check_settings(config)
    if config.mask not in ("exact", "released"):
        raise UsageError(f"mask is {config.mask!r}", "known: exact, released")
    if config.steps == 0:
        return convert(config, report)
    if config.stage is None or not config.questions:
        raise UsageError(
            "training needs QUESTIONS and --stage", "add --stage instruct, retrieval or e2e"
        )
    questions = list(read_questions(config.questions, need_answers=config.stage != "retrieval"))
    check_pools(questions, config.stage)
    torch.manual_seed(config.seed)
    loaded = load(config.init, config.backbone, config.device, config.dtype, config.dropout)
    prepare_roles(loaded, config.stage)
    slots = ratio_slots(loaded.info, config.ratios)

    def batches(step: int) -> list[Batch]:
        picked, rng = draw(config, step, questions)
        m = rng.choice(slots)
        examples = [example(question, config, rng) for question in picked]
        return [build(part, m) for part in micro(config, examples)]

    def build(part: Sequence[AnswerExample], m: int) -> Batch:
        if config.stage == "retrieval":
            return retrieval_batch(loaded.model.prompter, part, m)
        top_k = config.top_k if config.stage == "e2e" else None
        return answer_batch(loaded.model.prompter, part, m, config.max_length, top_k)

    def losses(batch: Batch, aligned: float) -> Losses:
        if config.stage == "retrieval":
            return contrastive_loss(loaded.model, batch, config.temperature)
        if config.stage == "e2e":
            return end_to_end_loss(loaded.model, batch, config.temperature, config.mask)
        return read_memory_loss(loaded.model, batch, config.mse_weight * aligned)

    return train_stage(config, config.stage, loaded, questions, batches, losses, report)


def check_pools(questions: Sequence[Question], stage: str) -> None:
    """Every question needs a pool, and in retrieval one with gold passages and others.

    Raises:
        DataError: naming file and line.
    """
    for question in questions:
        golds = sum(passage.gold for passage in question.pool)
        if not question.pool:
            raise DataError(f"{question.source}: the question has no pool", QUESTION_HINT)
        if stage != "retrieval":
            continue
        if golds == 0:
            message = f"{question.source}: no passage of the pool is gold"
            raise DataError(message, f"retrieval learns from labels; {QUESTION_HINT}")
        if golds == len(question.pool):
            message = f"{question.source}: every passage of the pool is gold"
            raise DataError(message, "retrieval needs others to tell them from")


def convert(config: TrainConfig, report: Report) -> TrainResult:
    """Write the native form of any checkpoint, training nothing."""
    started = time.monotonic()
    loaded = load(config.init, config.backbone, config.device, config.dtype)
    ratio_slots(loaded.info, config.ratios)
    stage = loaded.info.stage
    run = RunFolder(config.out, run_settings(config, "none", ()))
    run.open()
    if run.finished:
        report.note(f"{config.out} is finished; nothing to do")
    else:
        finish(config, stage, loaded, 0, FitSummary(0, None, None, 0.0, 0.0))
    return result(run, stage, FitSummary(0, None, None, time.monotonic() - started, 0.0))


def prepare_roles(loaded: Loaded, stage: str) -> None:
    """Add the roles a stage trains: a query reasoner starts as the compressor (paper 3.2), a
    missing generator starts fresh."""
    model = loaded.model
    if "compressor" not in model.roles:
        message = f"{loaded.path}: it has no compressor to train with"
        raise ArtefactError(message, "begin with clara pretrain")
    if "generator" in TRAINED[stage] and "generator" not in model.roles:
        model.add_role("generator", None)
    if "query_reasoner" in TRAINED[stage] and "query_reasoner" not in model.roles:
        model.add_role("query_reasoner", "compressor")


def example(question: Question, config: TrainConfig, rng: random.Random) -> AnswerExample:
    """One question with the passages of this step: instruct takes the first `top_k` in the order
    given (a ranking's, best first), e2e and retrieval up to `pool_size` in any order, gold kept."""
    if config.stage == "instruct":
        pool = list(question.pool[: config.top_k])
    else:
        pool = cut_pool(question.pool, config.pool_size, rng)
    texts = tuple(model_text(passage.title, passage.text) for passage in pool)
    golds = tuple(position for position, passage in enumerate(pool) if passage.gold)
    answer = question.answers[0] if question.answers else ""
    return AnswerExample(question.question, answer, texts, question.source, golds)


def cut_pool(pool: Sequence[PoolPassage], size: int, rng: random.Random) -> list[PoolPassage]:
    """At most `size` passages in a random order, gold ones first to be kept."""
    shuffled = rng.sample(list(pool), k=len(pool))
    kept = sorted(shuffled, key=lambda passage: not passage.gold)[:size]
    return rng.sample(kept, k=len(kept))
