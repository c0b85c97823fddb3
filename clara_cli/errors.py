"""The one error type users see, its kinds, and the exit code of each. Knows nothing else.

An error says what is wrong with the offending file, line and value, and carries a hint: the next
thing to do. Anything else that escapes a command is a bug and is shown as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes (a contract with shell scripts)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    ARTEFACT = 3
    DATA = 4
    UNSUPPORTED = 5
    INTERRUPTED = 130


class ClaraError(Exception):
    """An error a user can act on: `message` says what, `hint` says what to do next."""

    code = ExitCode.FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ClaraError):
    """A wrong option, argument or recipe."""

    code = ExitCode.USAGE


class ArtefactError(ClaraError):
    """A checkpoint, corpus, index or run folder that is missing, damaged or does not match."""

    code = ExitCode.ARTEFACT


class DataError(ClaraError):
    """Bad records in the user's data."""

    code = ExitCode.DATA


class NotSupportedError(ClaraError):
    """The documents do not support the answer and `--require-support` was given."""

    code = ExitCode.UNSUPPORTED


class Interrupted(ClaraError):  # noqa: N818  (an event, not a mistake)
    """Ctrl-C or SIGTERM, after the state was kept; the hint is the command that goes on."""

    code = ExitCode.INTERRUPTED


def first_line(error: object) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the machine's or an accelerator's, did not suffice."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    named = kinds & {"MemoryError", "OutOfMemoryError"}
    return bool(named) or "can't allocate memory" in str(error)


def memory_hint(command: str) -> str:
    """What makes a command take less memory, in its own options."""
    if command in ("pretrain", "train"):
        smaller = "--set micro_batch=1, then --set checkpointing=true"
        return f"add {smaller} (a run that began goes on with them), or --device cpu"
    if command == "compress":
        return "lower --batch-tokens or take --device cpu, with another --out once a shard is done"
    if command == "synth":
        return "take a smaller model, or --device cpu"
    return "add --load-in 4bit (extra quant) or --device cpu"


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence naming the closest known names, or all of them when none is close."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(names)}"
