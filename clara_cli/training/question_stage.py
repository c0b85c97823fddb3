"""What the stages of `train` have in common: questions with their pools, read through memory or as
text. Which passages a question brings, what is built of them and what it costs is each stage's own.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from clara_cli.config import TrainConfig
from clara_cli.core.batch import AnswerExample, Batch, answer_batch, example_length, text_batch
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.checkpoint_info import ReadingDefaults, ReadMode
from clara_cli.core.stage_losses import TRAINED, Losses, read_text_loss
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.chunk import model_text
from clara_cli.documents.examples import QUESTION_HINT, read_questions
from clara_cli.errors import DataError
from clara_cli.records import PoolPassage, Question, Report
from clara_cli.training.sampling import grouped_micro_batches, micro_batches, sample_step
from clara_cli.training.stage import Stage
from clara_cli.training.validation import Example, HeldOutSet, split


class QuestionStage(Stage):
    """Questions by step. Roles that only rank need no answers; `pool_kinds` are the values of
    `--pool` that a stage takes. `report` hears where pools come from, if that is worth saying."""

    config: TrainConfig
    needs_answers: ClassVar[bool] = True
    pool_kinds: ClassVar[tuple[str, ...]] = ("labelled",)

    def __init__(
        self,
        config: TrainConfig,
        loaded: Loaded,
        records: Sequence[Question],
        ranks: Ranks,
        report: Report,
    ) -> None:
        super().__init__(config, loaded, records, ranks)

    @classmethod
    def read_records(cls, config: TrainConfig) -> tuple[list[Question], list[Question]]:
        """(questions to train on, questions to validate on). Where pools are retrieved, those to
        train on come without, those to validate on with their own or none.

        Raises:
            DataError: for a question whose pool the stage cannot use, naming file and line.
        """
        questions = list(read_questions(config.questions, need_answers=cls.needs_answers))
        named = []
        if config.validation:
            named = list(read_questions(config.validation, cls.needs_answers))
        questions, held_out = split(config, questions, named)
        if config.pool == "retrieved":
            return [replace(question, pool=()) for question in questions], held_out
        for question in [*held_out, *questions]:
            cls.check_pool(question, config)
        return questions, held_out

    @classmethod
    def check_pool(cls, question: Question, config: TrainConfig) -> None:
        """Every question needs a pool.

        Raises:
            DataError: naming file and line.
        """
        if not question.pool:
            retrieved = (
                "; or give --pool retrieved and --corpus a compressed corpus"
                if "retrieved" in cls.pool_kinds
                else ""
            )
            hint = f"--stage {cls.name} reads passages: {QUESTION_HINT}{retrieved}"
            raise DataError(f"{question.source}: the question has no pool", hint)

    @classmethod
    def pick_pool(
        cls, question: Question, config: TrainConfig, rng: random.Random
    ) -> list[PoolPassage]:
        """The passages of one visit: up to `pool_size` in any order, gold kept."""
        return cut_pool(question.pool, config.pool_size, rng)

    @classmethod
    def example(cls, question: Question, config: TrainConfig, rng: random.Random) -> AnswerExample:
        """One question with the passages and the answer of one visit."""
        pool = cls.pick_pool(question, config, rng)
        texts = tuple(model_text(passage.title, passage.text) for passage in pool)
        golds = tuple(position for position, passage in enumerate(pool) if passage.gold)
        answer = pick_answer(question, config, rng)
        return AnswerExample(question.question, answer, texts, question.source, golds)

    def facts(self) -> dict[str, Any]:
        """Where training began, and the roles trained."""
        return {"init_stage": self.loaded.info.stage, **super().facts()}

    @cached_property
    def lengths(self) -> list[int]:
        """Characters of every question with its answers and pool."""
        return [len(repr(question)) for question in self.records]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Numbers of the questions over the same passages, in the order given."""
        groups: dict[tuple[PoolPassage, ...], list[int]] = {}
        for number, question in enumerate(self.records):
            groups.setdefault(question.pool, []).append(number)
        return list(groups.values())

    def sample(self, step: int) -> tuple[list[int], random.Random]:
        """Numbers of the questions a step reads, and its random source."""
        if self.config.group_by_pool:
            mean = len(self.records) / len(self.groups)
            config = replace(self.config, batch_size=max(1, round(self.config.batch_size / mean)))
            groups, rng = sample_step(config, step, self.groups, self._group_length)
            return [number for group in groups for number in group], rng
        numbers = range(len(self.records))
        return sample_step(self.config, step, numbers, lambda n: self.lengths[n])

    def _group_length(self, group: list[int]) -> int:
        """Characters of the longest of a group's questions with its passages."""
        return max(self.lengths[number] for number in group)

    def visits(self, step: int) -> list[int]:
        """Numbers of the questions a step reads."""
        return self.sample(step)[0]

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, all at one number of memory tokens or all as
        text."""
        numbers, rng = self.sample(step)
        m = rng.choice(self.memory_tokens)
        as_text = 0 < self.config.text_share and rng.random() < self.config.text_share
        examples = [self.example_at(step, number, rng) for number in numbers]
        if self.config.group_by_pool:
            parts = grouped_micro_batches(
                self.config, self.ranks, examples, lambda e: (e.texts, e.rows)
            )
        else:
            examples.sort(key=example_length)
            parts = micro_batches(self.config, self.ranks, examples)
        if as_text:
            return [self.build_text(part) for part in parts]
        batches = [self.build(part, m) for part in parts]
        for batch in batches:
            self.add_reconstructions(batch, rng)
        return batches

    def example_at(self, step: int, number: int, rng: random.Random) -> AnswerExample:
        """Question `number` as a step reads it."""
        return self.example(self.records[number], self.config, rng)

    def build(self, examples: Sequence[AnswerExample], m: int) -> Batch:
        """A micro-batch at `m` memory tokens: every passage is given."""
        limit, distilled = self.config.max_length, self.config.distillation > 0
        return answer_batch(self.model.prompter, examples, m, limit, with_text=distilled)

    def build_text(self, examples: Sequence[AnswerExample]) -> Batch:
        """A micro-batch whose passages are read as text."""
        config = self.config
        return text_batch(self.model.prompter, examples, config.max_length, config.top_k)

    def losses(self, batch: Batch, aligned: float) -> Losses:
        """What the stage minimises, or the answers' loss where passages are read as text."""
        if batch.rows and not batch.pools:
            return read_text_loss(self.model, batch)
        return self.memory_losses(batch, aligned)

    @abstractmethod
    def memory_losses(self, batch: Batch, aligned: float) -> Losses:
        """What the stage minimises of a batch read as memory."""

    @abstractmethod
    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """(memory_ND the generator would be given, scores_N per example where the stage ranks)."""

    def held_out(self, records: Sequence[Question]) -> HeldOutSet:
        """Questions to validate on, each with its own pool, drawn once."""
        examples = []
        for number, question in enumerate(records):
            example = self.held_out_example(number, question)
            answers = question.answers if "generator" in TRAINED[self.name] else ()
            golds = example.golds if "query_reasoner" in TRAINED[self.name] else ()
            examples.append(Example(example, answers, golds))
        build, read = self._build_held_out, self.read
        if self.config.text_share >= 1:  # memory is not trained, and not measured
            build, read = self.build_text, lambda batch: (None, [])
        return HeldOutSet(examples, build, self.losses, read, self.config.answer_tokens)

    def held_out_example(self, number: int, question: Question) -> AnswerExample:
        """Question `number` of those to validate on, with its passages."""
        rng = random.Random(f"{self.config.seed} validation {number}")
        return self.example(question, self.config, rng)

    def _build_held_out(self, examples: Sequence[AnswerExample]) -> Batch:
        return self.build(examples, self.memory_tokens[0])

    def reading_after(self, before: ReadingDefaults) -> ReadingDefaults:
        """How the checkpoint reads after training on a share of text."""
        return reading_learned(self.config.text_share, before)


def reading_learned(text_share: float, before: ReadingDefaults) -> ReadingDefaults:
    """How a checkpoint reads after training on text; text is its default where nothing else was
    trained."""
    if text_share <= 0:
        return before
    mode: ReadMode = "text" if text_share >= 1 else before.mode
    return replace(before, mode=mode, generator_reads_text=True)


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
