"""Retrieval from labels (the paper's Sup- baseline): the query reasoner alone learns to tell a
question's gold passages from the others of its pool, or from many others of a corpus. Nothing is
answered.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clara_cli.config import TrainConfig
from clara_cli.core.batch import AnswerExample, Batch, retrieval_batch
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.stage_losses import Losses, contrastive_loss, rank_pools
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.examples import QUESTION_HINT
from clara_cli.errors import DataError
from clara_cli.records import Question, Report
from clara_cli.training.corpus_pools import CorpusPools
from clara_cli.training.question_stage import QuestionStage
from clara_cli.training.validation import RECALL, HeldOutSet

VALIDATION = -1  # the step whose passages questions to validate on are among


class Retrieval(QuestionStage):
    """The query reasoner learns from labelled pools; `pools` are those of a corpus, None where each
    question brings its own."""

    name = "retrieval"
    figures = ("ce", *RECALL)
    needs_answers = False
    pool_kinds = ("labelled", "corpus")

    def __init__(
        self,
        config: TrainConfig,
        loaded: Loaded,
        records: Sequence[Question],
        ranks: Ranks,
        report: Report,
    ) -> None:
        self._report = report
        self.pools = CorpusPools(config, loaded) if config.pool == "corpus" else None
        if self.pools is not None:
            records = with_gold(records, self.pools, report)
        super().__init__(config, loaded, records, ranks, report)
        if self.pools is not None:
            self.pools.check_memory_tokens(self.memory_tokens)
            report.note(self.pools.description())

    @classmethod
    def check_pool(cls, question: Question, config: TrainConfig) -> None:
        """Every question needs a pool with gold passages and, without a corpus, others.

        Raises:
            DataError: naming file and line.
        """
        super().check_pool(question, config)
        golds = sum(passage.gold for passage in question.pool)
        if golds == 0:
            message = f"{question.source}: no passage of the pool is gold"
            raise DataError(message, f"retrieval learns from labels; {QUESTION_HINT}")
        if golds == len(question.pool) and config.pool == "labelled":
            message = f"{question.source}: every passage of the pool is gold"
            hint = "retrieval needs others to tell them from; or give --pool corpus and --corpus"
            raise DataError(message, hint)

    def ratios(self) -> Sequence[int]:
        """The ratios trained; by default the corpus's, where pools are of one."""
        return self.config.ratios or (() if self.pools is None else (self.pools.ratio,))

    def facts(self) -> dict[str, Any]:
        """Where training began, the roles trained, and where the pools come from."""
        return super().facts() | ({} if self.pools is None else self.pools.facts())

    def example_at(self, step: int, number: int, rng: random.Random) -> AnswerExample:
        """Question `number` as a step reads it."""
        if self.pools is None:
            return super().example_at(step, number, rng)
        return self._example_in_corpus(step, self.records[number], self.pools)

    def held_out_example(self, number: int, question: Question) -> AnswerExample:
        """Question `number` of those to validate on: all among the same passages."""
        if self.pools is None:
            return super().held_out_example(number, question)
        return self._example_in_corpus(VALIDATION, question, self.pools)

    def held_out(self, records: Sequence[Question]) -> HeldOutSet:
        """Questions to validate on, each with its own pool, or with that of the corpus."""
        if self.pools is not None:
            records = with_gold(records, self.pools, self._report)
        return super().held_out(records)

    def _example_in_corpus(
        self, step: int, question: Question, pools: CorpusPools
    ) -> AnswerExample:
        rows, golds = pools.pool(step, question)
        return AnswerExample(question.question, "", (), question.source, golds, rows)

    def build(self, examples: Sequence[AnswerExample], m: int) -> Batch:
        """A micro-batch of questions and the passages to tell apart."""
        return retrieval_batch(self.model.prompter, examples, m)

    def _stored(self, batch: Batch) -> Tensor | None:
        return self.pools.memory(batch) if self.pools and batch.stored else None

    def memory_losses(self, batch: Batch, aligned: float) -> Losses:
        """InfoNCE of the gold passages."""
        return contrastive_loss(self.model, batch, self.config.temperature, self._stored(batch))

    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """The scores of every pool; no generator reads."""
        return None, rank_pools(self.model, batch, self._stored(batch))[1]


def with_gold(questions: Sequence[Question], pools: CorpusPools, report: Report) -> list[Question]:
    """The questions with a gold passage in the corpus; how many have none is said.

    Raises:
        DataError: where none has one.
    """
    kept = [question for question in questions if pools.gold_rows(question)]
    if questions and not kept:
        raise DataError(
            f"{questions[0].source}: no gold passage of it, or of any other question, is in "
            f"{pools.corpus.name}",
            "compress the passages of the pools themselves; long ones are cut into several",
        )
    if len(kept) < len(questions):
        report.note(
            f"{len(questions) - len(kept):,} of {len(questions):,} questions are left out: the "
            f"corpus has none of their gold passages as they are"
        )
    return kept
