"""A rival as a row of a comparison: opened at its first question, and closed off, not the run, when
it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clara_cli.errors import ClaraError, is_out_of_memory
from clara_cli.evaluation.systems import Failure, PooledQuestion, Prediction, System
from clara_cli.extras import install_command

FAILURES = (
    *(ClaraError, ImportError, OSError, MemoryError, RuntimeError, ValueError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError),
)
"""What libraries and weights of others raise when they cannot be used: not the end of a run in
which other systems answer."""


class Rival:
    """A system that `build` makes when it is first asked. A failure to open it, and one that no
    later question would escape, is the answer to this question and all further ones; `warn` hears
    of it once."""

    def __init__(
        self,
        name: str,
        ratio: int | None,
        chooses: bool,
        build: Callable[[], System],
        warn: Callable[[str], None],
    ) -> None:
        self.name, self.ratio, self.chooses = name, ratio, chooses
        self._build, self._warn = build, warn
        self._system: System | None = None
        self._failure: Failure | None = None

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """What the system says; None where it never opened."""
        return None if self._system is None else self._system.bytes_per_passage(texts)

    def answer(self, batch: Sequence[PooledQuestion]) -> Sequence[Prediction | Failure]:
        """The system's answers, or why there are none."""
        if self._failure is None:
            try:
                if self._system is None:
                    self._system = self._build()
                return self._system.answer(batch)
            except FAILURES as error:
                if self._system is not None and is_out_of_memory(error):
                    raise  # whoever asks takes fewer questions at a time
                self._failure = self._failed(error)
        return [self._failure] * len(batch)

    def _failed(self, error: BaseException) -> Failure:
        failure = Failure(one_line(error), out_of_memory=is_out_of_memory(error))
        self._warn(f"{self.name}: {failure.error}; its other questions are not asked")
        return failure


def one_line(error: BaseException) -> str:
    """An error and its hint in one line of bounded length."""
    if isinstance(error, ClaraError):
        text = f"{error.message} ({error.hint})" if error.hint else error.message
    elif isinstance(error, ModuleNotFoundError):
        text = f"{error.name} is not installed ({install_command('rivals')})"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]
