"""Instruct: the generator answers questions over the memory of their passages, and the compressor
learns what answering needs.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from clara_cli.config import TrainConfig
from clara_cli.core.batch import Batch
from clara_cli.core.stage_losses import Losses, read_memory_loss
from clara_cli.records import PoolPassage, Question
from clara_cli.training.question_stage import QuestionStage


class Instruct(QuestionStage):
    """Compressor and generator learn from answers over every passage given."""

    name = "instruct"
    figures = ("ce", "mse", "em", "f1")

    @classmethod
    def pick_pool(
        cls, question: Question, config: TrainConfig, rng: random.Random
    ) -> list[PoolPassage]:
        """The first `top_k` passages in the order given (a ranking's, best first)."""
        return list(question.pool[: config.top_k])

    def memory_losses(self, batch: Batch, aligned: float) -> Losses:
        """Cross-entropy of the answers and weighted alignment."""
        config = self.config
        return read_memory_loss(self.model, batch, config.mse_weight * aligned, config.distillation)

    def read(self, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """The memory of every passage; nothing is ranked."""
        encoded = self.model.encode_frozen(batch.passages, "compressor", batch.memory_tokens)
        memory_BMD = encoded.memory_BMD
        return torch.cat([memory_BMD[pool].flatten(0, 1) for pool in batch.pools]), []
