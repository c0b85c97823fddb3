"""A training run's clock: how much of its budget is used, and the learning rate that follows.

The budget is wall-clock time, over all calls of one run. The pace is measured in the first minute
and sets how many steps fit; from then on a run is as far as its steps or its clock say, whichever
is further, so that the decay always ends inside the budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

MEASURED = 60.0  # seconds of training after which the pace is known
UNCOUNTED = 5  # first steps, in which kernels are chosen and memory is taken
RESERVED = 0.03  # share of the budget kept for checks and for writing the result


@dataclass
class Clock:
    """`seconds`, `steps` and `tokens` so far; a state of plain numbers that a checkpoint keeps."""

    minutes: float
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    horizon: int = 0  # steps that fit the budget; 0 until measured
    tokens_per_second: float = 0.0
    since: float = field(default=0.0, repr=False)
    begun: tuple[float, int, int] | None = field(default=None, repr=False)

    @property
    def budget(self) -> float:
        return self.minutes * 60 * (1 - RESERVED)

    def start(self, entered: float) -> None:
        """Go on counting from `entered` (by time.monotonic), when this call began to prepare."""
        self.since = entered - self.seconds
        self.begun = None

    def tick(self, tokens: int) -> None:
        """One step more, of so many positions."""
        self.steps += 1
        self.tokens += tokens
        self.seconds = time.monotonic() - self.since
        if self.begun is None and self.steps >= UNCOUNTED:
            self.begun = (self.seconds, self.steps, self.tokens)
        if not self.horizon and self.begun is not None:
            spent = self.seconds - self.begun[0]
            if spent >= min(MEASURED, self.budget / 20):
                self.measure(spent)

    def measure(self, spent: float) -> None:
        """Set the horizon by the pace of the last `spent` seconds."""
        assert self.begun is not None
        pace = (self.steps - self.begun[1]) / spent
        self.tokens_per_second = (self.tokens - self.begun[2]) / spent
        self.horizon = max(self.steps + 1, self.steps + int(pace * (self.budget - self.seconds)))

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        by_clock = self.seconds / self.budget
        return min(1.0, max(by_clock, self.steps / self.horizon if self.horizon else 0.0))


def rate(share: float, warmup: float = 0.02, hold: float = 0.55) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear to 2 %."""
    if share < warmup:
        return max(share, warmup / 20) / warmup
    return 1.0 if share < hold else max(0.02, 1.0 - (share - hold) / (1.0 - hold))
