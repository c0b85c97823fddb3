"""`clara train`: answering (instruct), retrieval learned through answering (e2e) or from labels."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clara_cli.commands.checkpoint_notes import abilities, note_older, tell
from clara_cli.commands.dry_run import of_training
from clara_cli.config import TrainConfig
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import check_head
from clara_cli.core.batch import (
    AnswerExample,
    Batch,
    answer_batch,
    example_length,
    retrieval_batch,
    text_batch,
)
from clara_cli.core.checkpoint import Loaded, LoadOptions, load
from clara_cli.core.stages import (
    TRAINED,
    Losses,
    choose,
    contrastive_loss,
    end_to_end_loss,
    rank_pools,
    read_memory_loss,
    read_text_loss,
)
from clara_cli.distributed.ranks import Ranks, join
from clara_cli.documents.chunk import model_text
from clara_cli.documents.examples import QUESTION_HINT, read_questions
from clara_cli.errors import DataError, UsageError
from clara_cli.records import MemoryNeed, PoolPassage, Question, Report, TrainResult
from clara_cli.training.loop import FitSummary
from clara_cli.training.retrieved_pools import RetrievedPools, check_pool_settings
from clara_cli.training.run_folder import RunFolder
from clara_cli.training.runner import (
    Task,
    check_settings,
    count_steps,
    draw,
    finish,
    load_options,
    micro,
    ratio_slots,
    result,
    run_settings,
    train_stage,
    trained_roles,
)
from clara_cli.training.validation import Example, HeldOutSet, check_validation, split


def run(config: TrainConfig, report: Report) -> TrainResult | MemoryNeed:
    """Train a stage until its steps are done; `--steps 0` only writes the native form."""
    check_settings(config)
    if config.mask not in ("exact", "released"):
        raise UsageError(f"mask is {config.mask!r}", "known: exact, released")
    ranks = join(config.device)
    if config.dry_run:
        trained = () if config.stage is None else trained_roles(config, config.stage)
        return of_training(config, config.init, trained, LoraSettings(), report)
    if config.steps == 0:
        return ranks.lead(lambda: convert(config, report))
    if config.stage is None or not config.questions:
        raise UsageError(
            "training needs QUESTIONS and --stage", "add --stage instruct, retrieval or e2e"
        )
    check_pool_settings(config)
    roles = trained_roles(config, config.stage)
    check_validation(config, config.stage)
    questions, held_out = read_both(config, config.stage)
    if config.pool == "retrieved":
        questions = [replace(question, pool=()) for question in questions]
    else:
        check_pools(questions, config.stage)
    torch.manual_seed(config.seed)
    loaded = load(load_options(config, config.init, ranks), config.dropout)
    if ranks.first:
        tell(loaded, report)
        note_older(loaded, [], report)
    check_head(loaded.model.causal_lm)
    facts: dict[str, Any] = {"init_stage": loaded.info.stage, "roles": list(roles)}
    prepare_roles(loaded, config.stage)
    stage = Stage(config, loaded, questions, ranks, report)
    if config.stage == "e2e":
        facts |= stage.facts()
        report.note(
            stage.pools.said() if stage.pools else "pools: labelled, gold passages included"
        )
    checked = stage.held_out(held_out) if held_out else None
    task = Task(config.stage, loaded, questions, stage.batches, stage.losses, facts, checked)
    return train_stage(config, task, ranks, report)


class Stage:
    """A stage's batches by step, and what a batch costs."""

    def __init__(
        self,
        config: TrainConfig,
        loaded: Loaded,
        questions: Sequence[Question],
        ranks: Ranks,
        report: Report,
    ) -> None:
        self.config, self.model, self.questions = config, loaded.model, questions
        self.ranks = ranks
        self.pools: RetrievedPools | None = None
        if config.pool == "retrieved":
            steps = count_steps(config, len(questions))
            self.pools = RetrievedPools(
                config, loaded, questions, self.visits, steps, ranks, report
            )
        ratios = config.ratios or (() if self.pools is None else (self.pools.ratio,))
        self.slots = ratio_slots(loaded.info, ratios)
        if self.pools is not None:
            self.pools.check_slots(self.slots)

    def facts(self) -> dict[str, Any]:
        """Where the pools come from, for the log, the run folder and the checkpoint."""
        return {"pool": "labelled"} if self.pools is None else self.pools.facts()

    @cached_property
    def lengths(self) -> list[int]:
        """Characters of every question with its answers and pool."""
        return [len(repr(question)) for question in self.questions]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Numbers of the questions over the same passages, in the order given."""
        groups: dict[tuple[PoolPassage, ...], list[int]] = {}
        for number, question in enumerate(self.questions):
            groups.setdefault(question.pool, []).append(number)
        return list(groups.values())

    def draw(self, step: int) -> tuple[list[int], random.Random]:
        """Numbers of the questions a step reads, and its random source."""
        if self.config.group_by_pool:
            mean = len(self.questions) / len(self.groups)
            config = replace(self.config, batch_size=max(1, round(self.config.batch_size / mean)))
            groups, rng = draw(config, step, self.groups, self.group_length)
            return [number for group in groups for number in group], rng
        numbers = range(len(self.questions))
        return draw(self.config, step, numbers, lambda n: self.lengths[n])

    def group_length(self, group: list[int]) -> int:
        """Characters of the longest of a group's questions with its passages."""
        return max(self.lengths[number] for number in group)

    def visits(self, step: int) -> list[int]:
        """Numbers of the questions a step reads."""
        return self.draw(step)[0]

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step."""
        picked, rng = self.draw(step)
        m = rng.choice(self.slots)
        as_text = 0 < self.config.text_share and rng.random() < self.config.text_share
        examples = [self.example(step, number, rng) for number in picked]
        if self.config.group_by_pool:
            parts = micro_groups(self.config, self.ranks, examples)
        else:
            examples.sort(key=example_length)
            parts = micro(self.config, self.ranks, examples)
        return [self.build_text(part) if as_text else self.build(part, m) for part in parts]

    def example(self, step: int, number: int, rng: random.Random) -> AnswerExample:
        """One question as this step reads it."""
        question = self.questions[number]
        if self.pools is None:
            return example(question, self.config, rng)
        rows = tuple(self.pools.rows(step, number, rng))
        answer = pick_answer(question, self.config, rng)
        return AnswerExample(question.question, answer, (), question.source, rows=rows)

    def build(self, part: Sequence[AnswerExample], m: int) -> Batch:
        """A micro-batch at `m` memory tokens."""
        if self.config.stage == "retrieval":
            return retrieval_batch(self.model.prompter, part, m)
        top_k = self.config.top_k if self.config.stage == "e2e" else None
        return answer_batch(self.model.prompter, part, m, self.config.max_length, top_k)

    def build_text(self, part: Sequence[AnswerExample]) -> Batch:
        """A micro-batch whose passages are read as text."""
        return text_batch(self.model.prompter, part, self.config.max_length, self.config.top_k)

    def losses(self, batch: Batch, aligned: float) -> Losses:
        """What the stage minimises."""
        config = self.config
        if batch.rows and not batch.pools:
            return read_text_loss(self.model, batch)
        if config.stage == "retrieval":
            return contrastive_loss(self.model, batch, config.temperature)
        if config.stage == "e2e":
            stored_BMD = self.pools.memory(batch) if self.pools and batch.stored else None
            return end_to_end_loss(self.model, batch, config.temperature, config.mask, stored_BMD)
        return read_memory_loss(self.model, batch, config.mse_weight * aligned)

    def held_out(self, questions: Sequence[Question]) -> HeldOutSet:
        """Questions to validate on, each with its own pool, drawn once."""
        examples = []
        retrieved = self.pools is not None and not all(question.pool for question in questions)
        for number, question in enumerate(questions):
            rng = random.Random(f"{self.config.seed} validation {number}")
            given = example(replace(question, pool=()) if retrieved else question, self.config, rng)
            answers = question.answers if "generator" in TRAINED[str(self.config.stage)] else ()
            golds = given.golds if self.config.stage != "instruct" else ()
            examples.append(Example(given, answers, golds))
        return HeldOutSet(
            examples,
            lambda part: self.build(self.with_rows(part), self.slots[0]),
            self.losses,
            self.read,
            self.config.answer_tokens,
        )

    def with_rows(self, part: Sequence[AnswerExample]) -> Sequence[AnswerExample]:
        """Examples to validate on; those that come without a pool have the one retrieved now."""
        if self.pools is None or any(example.texts for example in part):
            return part
        rows = self.pools.current_rows([example.question for example in part])
        return [replace(one, rows=tuple(own)) for one, own in zip(part, rows, strict=True)]

    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """(memory_ND the generator would be given, scores_N per example where the stage ranks)."""
        if self.config.stage == "instruct":
            encoded = self.model.encode_frozen(batch.passages, "compressor", batch.slots)
            memory_BMD = encoded.memory_BMD
            return torch.cat([memory_BMD[pool].flatten(0, 1) for pool in batch.pools]), []
        if self.config.stage == "retrieval":
            return None, rank_pools(self.model, batch)[1]
        stored_BMD = self.pools.memory(batch) if self.pools and batch.stored else None
        config = self.config
        chosen = choose(self.model, batch, config.temperature, config.mask, stored_BMD)
        return chosen[0], chosen[2]


def micro_groups(
    config: TrainConfig, ranks: Ranks, examples: Sequence[AnswerExample]
) -> list[Sequence[AnswerExample]]:
    """The same as `micro`, but examples over the same passages stay together: a forward pass is of
    whole groups, as many as `micro_batch` examples hold, or of one."""
    parts: list[list[AnswerExample]] = []
    most = config.micro_batch or len(examples)
    for _, group in itertools.groupby(ranks.share(examples), key=lambda e: (e.texts, e.rows)):
        together = list(group)
        if parts and len(parts[-1]) + len(together) <= most:
            parts[-1] += together
        else:
            parts.append(together)
    return list(parts)


def read_both(config: TrainConfig, stage: str) -> tuple[list[Question], list[Question]]:
    """(questions to train on, questions to validate on); the latter come with their pools, or are
    to be given retrieved ones."""
    answered = stage != "retrieval"
    questions = list(read_questions(config.questions, need_answers=answered))
    named = list(read_questions(config.validation, answered)) if config.validation else []
    questions, held_out = split(config, questions, named)
    if config.pool != "retrieved":
        check_pools(held_out, stage)
    return questions, held_out


def check_pools(questions: Sequence[Question], stage: str) -> None:
    """Every question needs a pool, and in retrieval one with gold passages and others.

    Raises:
        DataError: naming file and line.
    """
    for question in questions:
        golds = sum(passage.gold for passage in question.pool)
        if not question.pool:
            retrieved = "; or --pool retrieved --corpus DIR.clara" if stage == "e2e" else ""
            hint = f"--stage {stage} reads passages: {QUESTION_HINT}{retrieved}"
            raise DataError(f"{question.source}: the question has no pool", hint)
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
    if config.load_in is not None or config.device_map is not None:
        message = "--steps 0 computes nothing: --load-in and --device-map change nothing"
        raise UsageError(message, "leave them away; they go with ask, compress and training")
    loaded = load(LoadOptions.of(config, config.init, config.named_ratio, verify=True))
    tell(loaded, report)
    note_older(loaded, [], report)
    ratio_slots(loaded.info, config.ratios)
    stage = loaded.info.stage
    run = RunFolder(config.out, run_settings(config, "none", ()))
    run.open()
    if not run.damage(bundled=(loaded.path / "backbone").is_dir()):
        report.note(f"{config.out} is finished; nothing to do")
    else:
        finish(config, stage, loaded, 0, 0)
    return result(run, stage, FitSummary(0, None, None, time.monotonic() - started, None))


def prepare_roles(loaded: Loaded, stage: str) -> None:
    """Add the roles a stage trains: a query reasoner starts as the compressor (paper 3.2), a
    missing generator starts fresh."""
    model = loaded.model
    abilities(loaded).need("compressor")
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
    answer = pick_answer(question, config, rng)
    return AnswerExample(question.question, answer, texts, question.source, golds)


def pick_answer(question: Question, config: TrainConfig, rng: random.Random) -> str:
    """The answer learned at this visit; none where none is read."""
    if not question.answers:
        return ""
    several = config.gold_answer == "any" and len(question.answers) > 1
    answer = rng.choice(question.answers) if several else question.answers[0]
    return config.answer_prefix + answer


def cut_pool(pool: Sequence[PoolPassage], size: int, rng: random.Random) -> list[PoolPassage]:
    """At most `size` passages in a random order, gold ones first to be kept."""
    shuffled = rng.sample(list(pool), k=len(pool))
    kept = sorted(shuffled, key=lambda passage: not passage.gold)[:size]
    return rng.sample(kept, k=len(kept))
