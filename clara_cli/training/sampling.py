"""Which records a step reads: a function of (seed, step) alone, so that a resumed run repeats an
uninterrupted one. Knows no stage and no tensors.
"""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

from clara_cli.config import LearnConfig
from clara_cli.distributed.ranks import Ranks

Record = TypeVar("Record")
WINDOW = 50  # batches among which records of like length are put together


def count_steps(config: LearnConfig, records: int) -> int:
    """Steps asked for, else one pass; the last batch of a pass may be smaller than the others."""
    if config.steps is not None:
        return config.steps
    return math.ceil(records / config.batch_size)


@lru_cache(maxsize=2)  # a step's pass, and the one that what is searched ahead reaches into
def pass_order(seed: int, number: int, records: int) -> array[int]:
    """The order a pass visits records in; nobody may change it."""
    order = array("Q", range(records))
    random.Random(f"{seed} pass {number}").shuffle(order)
    return order


def sample_step(
    config: LearnConfig,
    step: int,
    records: Sequence[Record],
    length: Callable[[Record], int] = lambda record: len(repr(record)),
) -> tuple[list[Record], random.Random]:
    """A step's examples and its own random source, a function of (seed, step) alone: every pass
    visits the records in a new order; with `group_by_length` those of like `length` together."""
    size = min(config.batch_size, len(records))
    number, place = divmod(step, math.ceil(len(records) / size))
    order = pass_order(config.seed, number, len(records))
    if config.group_by_length:
        window, place = divmod(place, WINDOW)
        order = order[window * WINDOW * size : (window + 1) * WINDOW * size]
        order = array("Q", sorted(order, key=lambda i: length(records[i])))
        whole = len(order) // size * size  # a smaller last batch keeps its place
        starts = list(range(0, whole, size))
        random.Random(f"{config.seed} pass {number} window {window}").shuffle(starts)
        start = [*starts, whole][place]
    else:
        start = place * size
    picked = [records[i] for i in order[start : start + size]]
    return picked, random.Random(f"{config.seed} step {step}")


def micro_batches(
    config: LearnConfig, ranks: Ranks, records: Sequence[Record]
) -> list[Sequence[Record]]:
    """This process's share of a step's examples, in forward passes of at most `micro_batch`."""
    own = ranks.share(records)
    size = config.micro_batch or max(1, len(own))
    return [own[i : i + size] for i in range(0, len(own), size)]


def grouped_micro_batches(
    config: LearnConfig,
    ranks: Ranks,
    records: Sequence[Record],
    group: Callable[[Record], Hashable],
) -> list[Sequence[Record]]:
    """The same, but neighbours of one `group` stay together: a forward pass is of whole groups, as
    many as `micro_batch` examples hold, or of one."""
    parts: list[list[Record]] = []
    most = config.micro_batch or len(records)
    for _, members in itertools.groupby(ranks.share(records), key=group):
        together = list(members)
        if parts and len(parts[-1]) + len(together) <= most:
            parts[-1] += together
        else:
            parts.append(together)
    return list(parts)
