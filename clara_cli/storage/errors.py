"""What to say when something cannot be written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import NoReturn

from clara_cli.errors import ClaraError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cannot_write(path: Path, needed: int, error: OSError) -> NoReturn:
    """Turn a failed write of `needed` bytes into an error with a next step."""
    if error.errno in _NO_SPACE:
        raise no_space(path, needed) from error
    message = f"{path}: cannot be written: {error.strerror or error}"
    raise ClaraError(message, "choose a place you may write to") from error


def no_space(path: Path, needed: int) -> ClaraError:
    """The error of a full disk, in bytes."""
    message = f"{path}: no space left: {needed:,} bytes needed, {free_bytes(path.parent):,} free"
    return ClaraError(message, "free some space and run the same command again")


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written there; 0 where nobody knows."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
