"""End to end (e2e): the answer's loss trains the generator and, through the straight-through top-k,
the query reasoner that chose the passages. Pools are labelled, or retrieved from a corpus.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from clara_cli.config import TrainConfig
from clara_cli.core.batch import AnswerExample, Batch, answer_batch
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.stage_losses import Losses, choose, end_to_end_loss
from clara_cli.distributed.ranks import Ranks
from clara_cli.records import Question, Report
from clara_cli.training.question_stage import QuestionStage, pick_answer
from clara_cli.training.retrieved_pools import RetrievedPools
from clara_cli.training.sampling import count_steps
from clara_cli.training.validation import RECALL, HeldOutSet


class EndToEnd(QuestionStage):
    """Query reasoner and generator learn from answers; `pools` are those retrieved, None where
    they are labelled."""

    name = "e2e"
    figures = ("ce", "em", "f1", *RECALL)
    pool_kinds = ("labelled", "retrieved")

    def __init__(
        self,
        config: TrainConfig,
        loaded: Loaded,
        records: Sequence[Question],
        ranks: Ranks,
        report: Report,
    ) -> None:
        self.pools: RetrievedPools | None = None
        if config.pool == "retrieved":
            steps = count_steps(config, len(records))
            self.pools = RetrievedPools(config, loaded, records, self.visits, steps, ranks, report)
        super().__init__(config, loaded, records, ranks, report)
        if self.pools is None:
            report.note("pools: labelled, gold passages included")
        else:
            self.pools.check_memory_tokens(self.memory_tokens)
            report.note(self.pools.description())

    def ratios(self) -> Sequence[int]:
        """The ratios trained; by default the corpus's, where pools are retrieved."""
        return self.config.ratios or (() if self.pools is None else (self.pools.ratio,))

    def facts(self) -> dict[str, Any]:
        """Where training began, the roles trained, and where the pools come from."""
        pools = {"pool": "labelled"} if self.pools is None else self.pools.facts()
        return super().facts() | pools

    def example_at(self, step: int, number: int, rng: random.Random) -> AnswerExample:
        """Question `number` as a step reads it."""
        if self.pools is None:
            return super().example_at(step, number, rng)
        question = self.records[number]
        rows = tuple(self.pools.rows(step, number, rng))
        answer = pick_answer(question, self.config, rng)
        return AnswerExample(question.question, answer, (), question.source, rows=rows)

    def build(self, examples: Sequence[AnswerExample], m: int) -> Batch:
        """A micro-batch at `m` memory tokens, with room for the passages chosen."""
        config = self.config
        return answer_batch(self.model.prompter, examples, m, config.max_length, config.top_k)

    def _stored(self, batch: Batch) -> Tensor | None:
        return self.pools.memory(batch) if self.pools and batch.stored else None

    def memory_losses(self, batch: Batch, aligned: float) -> Losses:
        """Cross-entropy of the answers over the passages chosen."""
        config, stored_BMD = self.config, self._stored(batch)
        return end_to_end_loss(self.model, batch, config.temperature, config.mask, stored_BMD)

    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """The memory of the passages chosen, and the scores of every pool."""
        config, stored_BMD = self.config, self._stored(batch)
        chosen = choose(self.model, batch, config.temperature, config.mask, stored_BMD)
        return chosen[0], chosen[2]

    def held_out(self, records: Sequence[Question]) -> HeldOutSet:
        """Questions to validate on, with their own pools where each has one; else each has the
        pool that is retrieved when it is measured."""
        if self.pools is None or all(question.pool for question in records):
            return super().held_out(records)
        pools, m = self.pools, self.memory_tokens[0]

        def build(examples: Sequence[AnswerExample]) -> Batch:
            rows = pools.current_rows([example.question for example in examples])
            pairs = zip(examples, rows, strict=True)
            return self.build([replace(example, rows=tuple(own)) for example, own in pairs], m)

        bare = super().held_out([replace(question, pool=()) for question in records])
        return replace(bare, build=build)
