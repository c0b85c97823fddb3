"""What a stage of training is: the roles it trains, the records it reads, its batches by step, what
a batch costs, and how records kept aside are measured.

Each stage is one class in a file of its own (`scp`, `instruct`, `retrieval`, `end_to_end`), and
those of `train` stand in its table `STAGES`; the runner knows only this one. The losses themselves
are functions of `core/stage_losses`, which also says the roles each stage trains (`TRAINED`).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from clara_cli.config import LearnConfig
from clara_cli.core.abilities import Abilities
from clara_cli.core.batch import Batch, add_reconstructions
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.checkpoint_info import CheckpointInfo, ReadingDefaults
from clara_cli.core.stage_losses import TRAINED, Losses
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import UsageError
from clara_cli.training.validation import HeldOutSet


class Stage(ABC):
    """A stage with the checkpoint it trains and the records it reads. `memory_tokens` are the
    counts it trains at, one for every ratio; `config` has its settings."""

    name: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    """What is measured of records kept aside."""

    def __init__(
        self, config: LearnConfig, loaded: Loaded, records: Sequence[Any], ranks: Ranks
    ) -> None:
        self.config, self.loaded, self.records, self.ranks = config, loaded, records, ranks
        self.model = loaded.model
        self.memory_tokens = memory_tokens_of(loaded.info, self.ratios())

    @classmethod
    def trained_roles(cls, config: LearnConfig) -> tuple[str, ...]:
        """The roles a run with these settings trains.

        Raises:
            UsageError: for roles the stage does not train, and memory tokens that nobody reads.
        """
        trainable = TRAINED[cls.name]
        wanted = config.train_roles or trainable
        for role in wanted:
            if role not in trainable:
                message = f"train_roles: {cls.name} does not train {role!r}"
                raise UsageError(message, f"it trains {' and '.join(trainable)}")
        if config.train_memory and set(wanted) == {"generator"}:
            message = "train_roles is the generator alone, but train_memory is true"
            hint = "add --set train_memory=false: it reads memory, it makes none"
            raise UsageError(message, hint)
        return tuple(role for role in trainable if role in wanted)

    @classmethod
    def add_missing_roles(cls, loaded: Loaded) -> None:
        """Add the roles the stage trains: a query reasoner starts as the compressor (paper 3.2), a
        missing generator starts fresh."""
        model = loaded.model
        Abilities(loaded.name, model.roles, loaded.info.stage).need("compressor")
        if "generator" in TRAINED[cls.name] and "generator" not in model.roles:
            model.add_role("generator", None)
        if "query_reasoner" in TRAINED[cls.name] and "query_reasoner" not in model.roles:
            model.add_role("query_reasoner", "compressor")

    def ratios(self) -> Sequence[int]:
        """The ratios trained; none: the checkpoint's default."""
        return self.config.ratios

    def facts(self) -> dict[str, Any]:
        """What the stage adds to the run folder's settings and to the checkpoint's provenance."""
        return {"roles": list(self.trained_roles(self.config))}

    def add_reconstructions(self, batch: Batch, rng: random.Random) -> None:
        """Have a share of a batch's passages written out too, where the settings say so."""
        config = self.config
        if config.reconstruction:
            prompter, share = self.model.prompter, config.reconstruction
            add_reconstructions(batch, prompter, share, rng, config.max_length)

    @abstractmethod
    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step."""

    @abstractmethod
    def losses(self, batch: Batch, aligned: float) -> Losses:
        """What the stage minimises; `aligned` multiplies the weight of its alignment loss."""

    @abstractmethod
    def held_out(self, records: Sequence[Any]) -> HeldOutSet:
        """Records kept aside, and how they are measured."""

    def reading_after(self, before: ReadingDefaults) -> ReadingDefaults:
        """How the checkpoint reads passages once it is trained."""
        return before


def memory_tokens_of(info: CheckpointInfo, ratios: Sequence[int]) -> list[int]:
    """M of every ratio trained; none given: the checkpoint's default.

    Raises:
        UsageError: for one that the checkpoint does not serve.
    """
    for ratio in ratios:
        if ratio not in info.ratios:
            served = ", ".join(map(str, info.ratios))
            raise UsageError(
                f"ratios: {ratio} is not served by this checkpoint", f"it has {served}"
            )
    return [info.memory_tokens_for(ratio) for ratio in (ratios or (info.ratio,))]
