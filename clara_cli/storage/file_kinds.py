"""What stands behind a path: an ordinary file, or something that a program could wait for without
end; and files opened for reading only where they are such. Knows nothing of what a file holds.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
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


def open_file(path: Path) -> BufferedReader:
    """A file opened for reading. Raises OSError; for what is no file too, without waiting for it:
    a pipe has no end."""
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a file", str(path))
    return stream


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, as `open_file` does."""
    with open_file(path) as stream:
        return stream.read()


def read_user_file(path: Path) -> bytes:
    """The bytes of a file that a user names, which may be a pipe handed over open (`<(command)`).
    Raises OSError, for any other pipe, socket or device without waiting for it."""
    if special := special_file(path):
        raise OSError(errno.EINVAL, special, str(path))
    return path.read_bytes()


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
