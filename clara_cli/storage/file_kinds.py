"""What stands behind a path: an ordinary file, or something that a program could wait for without
end. Knows nothing of what the file holds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

# Descriptors this process was given open: reading them is reading standard input by another name.
OPEN_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
_SPECIAL = {
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


def special_file(path: Path) -> str | None:
    """What a path is where reading it may never end (a named pipe, a socket, a device), else None;
    pipes that were handed over open (`<(command)`) are as good as files. Opens nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_ISFIFO(mode) and str(path).startswith(OPEN_DESCRIPTORS):
        return None
    return _SPECIAL.get(stat.S_IFMT(mode))


def why_unreadable(path: Path) -> str | None:
    """Why a file that a folder lists, or a user names, cannot be read; None where it can be. Opens
    nothing."""
    try:
        path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no such file"
    except OSError as error:
        return error.strerror or str(error)
    return special_file(path) or (None if os.access(path, os.R_OK) else "Permission denied")


def printable_path(path: str | os.PathLike[str]) -> str:
    """A path as UTF-8 text; bytes of a name that are not UTF-8 stand as `\\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")
