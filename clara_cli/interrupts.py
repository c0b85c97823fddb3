"""Ctrl-C and SIGTERM: from the program's first line to its last they end it with 130, and without a
traceback.

While nothing has begun, after all is done, and in the middle of an import, whose half would be
left, the program leaves at once: what it writes is whole or resumable after any kill. In between
they are raised, so that a command can say what it kept. Only the program calls it; a Python program
that uses `clara_cli` keeps its own signals.

Imports nothing that is not in memory when Python starts, so that no signal comes before it:
`signal` would load `enum` and more, so the C half of it is used.
"""

from __future__ import annotations

import _signal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

SIGNALS = (int(_signal.SIGINT), int(_signal.SIGTERM))
CODE = 130
_IMPORT = "<frozen importlib._bootstrap>"
_raising = False


class Terminated(KeyboardInterrupt):
    """SIGTERM. Ends the program as Ctrl-C does, where Ctrl-C in a conversation only stops an
    answer."""


def install() -> None:
    """Answer both signals from now on, by leaving at once. A signal that whoever started the
    program chose to ignore (nohup, a job in the background) stays ignored."""
    for number in SIGNALS:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _answer)
    sys.unraisablehook = _unraisable


class raised:  # noqa: N801  (used as `with interrupts.raised():`)
    """Have them raised as KeyboardInterrupt in the block, and leave at once again after it."""

    def __enter__(self) -> None:
        global _raising
        _raising = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _raising
        _raising = False


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or what a library made of one on its way."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _answer(number: int, frame: FrameType | None) -> None:
    if not _raising or _importing(frame):
        _leave()
    raise Terminated if number == _signal.SIGTERM else KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that came while an object was being deleted reaches nobody."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(unraisable)


def _leave() -> None:
    if "CLARA_LAUNCH_ERRORS" not in os.environ:  # else the launching process speaks for all
        os.write(2, b"interrupted\n")
    os._exit(CODE)
