"""Validation while training: when a check is due, which one was best, when more training is idle.

What a check measures is the caller's. All that is remembered is `validation.jsonl` and `best/` in
the run folder, so a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clara_cli.training.run_folder import RunFolder, Trained

LOWER_IS_BETTER = ("ce", "mse")
Figures = Mapping[str, float]


@dataclass
class ValidationSchedule:
    """A check `every` so many steps and at the end; the best by the figure `best_by`; exhausted
    after `patience` checks in a row without a better one (None: never)."""

    run: RunFolder
    figures: Callable[[], Figures]
    every: int
    best_by: str
    patience: int | None = None

    def __post_init__(self) -> None:
        self._lines: list[dict[str, Any]] | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The checks so far."""
        if self._lines is None:
            read = self.run.ranks.lead(lambda: self.run.lines(self.run.checks))
            self._lines = list(read)
        return self._lines

    def due(self, done: int, over: bool) -> bool:
        """Whether a check is to be made after `done` steps, the last ones where training is `over`,
        and is not made yet."""
        wanted = done > 0 and (done % self.every == 0 or over)
        return wanted and not any(line["step"] == done for line in self.lines)

    def measure(self, done: int, trained: Trained) -> None:
        """Make a check, and keep the weights where they are the best so far."""
        line = {"step": done, **self.figures()}
        if self.better(line, best(self.lines, self.best_by)):
            self.run.save_best(done, trained)
        self.run.log(self.run.checks, line, "validation/")
        self.lines.append(line)

    def better(self, line: dict[str, Any], than: dict[str, Any] | None) -> bool:
        """Whether a check beats another; equal is not better, so the earlier one stays."""
        if than is None:
            return True
        sign = -1 if self.best_by in LOWER_IS_BETTER else 1
        return sign * line[self.best_by] > sign * than[self.best_by]

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` checks brought nothing better."""
        best_line = best(self.lines, self.best_by)
        if self.patience is None or best_line is None:
            return False
        return len(self.lines) - 1 - self.lines.index(best_line) >= self.patience


def best(lines: list[dict[str, Any]], best_by: str) -> dict[str, Any] | None:
    """The first of the best checks."""
    choose = min if best_by in LOWER_IS_BETTER else max
    return choose(lines, key=lambda line: line[best_by]) if lines else None
