"""Retrieval from labels (the paper's Sup- baseline): the query reasoner alone learns to tell a
question's gold passages from the others of its pool. Nothing is answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clara_cli.core.batch import AnswerExample, Batch, retrieval_batch
from clara_cli.core.stage_losses import Losses, contrastive_loss, rank_pools
from clara_cli.documents.examples import QUESTION_HINT
from clara_cli.errors import DataError
from clara_cli.records import Question
from clara_cli.training.question_stage import QuestionStage
from clara_cli.training.validation import RECALL


class Retrieval(QuestionStage):
    """The query reasoner learns from labelled pools."""

    name = "retrieval"
    figures = ("ce", *RECALL)
    needs_answers = False

    @classmethod
    def check_pool(cls, question: Question) -> None:
        """Every question needs a pool with gold passages and others.

        Raises:
            DataError: naming file and line.
        """
        super().check_pool(question)
        golds = sum(passage.gold for passage in question.pool)
        if golds == 0:
            message = f"{question.source}: no passage of the pool is gold"
            raise DataError(message, f"retrieval learns from labels; {QUESTION_HINT}")
        if golds == len(question.pool):
            message = f"{question.source}: every passage of the pool is gold"
            raise DataError(message, "retrieval needs others to tell them from")

    def build(self, examples: Sequence[AnswerExample], m: int) -> Batch:
        """A micro-batch of questions and the passages to tell apart."""
        return retrieval_batch(self.model.prompter, examples, m)

    def memory_losses(self, batch: Batch, aligned: float) -> Losses:
        """InfoNCE of the gold passages."""
        return contrastive_loss(self.model, batch, self.config.temperature)

    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """The scores of every pool; no generator reads."""
        return None, rank_pools(self.model, batch)[1]
