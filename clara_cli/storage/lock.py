"""Locks that die with their process: flock(2), Linux and macOS."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clara_cli.errors import ArtefactError
from clara_cli.storage.errors import cannot_write
from clara_cli.storage.files import inside, refuse_special

LOCK_NAME = ".lock"


@contextmanager
def locked(
    folder: Path,
    name: str = LOCK_NAME,
    what: Path | None = None,
    wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock `name` of a folder, or raise ArtefactError naming the process that holds it;
    with `wait`, tell it that instead, and wait. `what` is being written, if it is not the folder.

    The lock ends with the process, however it ends. The lock file holds the process id and its
    command line, and is gone once the lock is released.
    """
    path = inside(folder, name)
    refuse_special(path)
    descriptor = _acquire(path, what or folder, wait)
    try:
        command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {command[:200]}\n".encode(errors="replace"), 0)
    except OSError as error:
        os.close(descriptor)
        cannot_write(path, 0, error)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: nobody can lock a file that is gone
        os.close(descriptor)


def _acquire(path: Path, what: Path, wait: Callable[[str], None] | None) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    waiting = False
    while True:
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            cannot_write(path, 0, error)
        try:
            how = fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB)
            fcntl.flock(descriptor, how)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:  # its holder removed it between our open and our lock
            os.close(descriptor)
        except OSError as error:
            holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                cannot_write(path, 0, error)
            pid, _, command = holder.partition(" ")
            message = f"{what} is being written by process {pid or '?'} ({command})"
            if wait is not None:
                wait(f"{message}: waiting for it")
                waiting = True
                continue
            hint = "wait for it to end, or choose another --out"
            raise ArtefactError(message, hint) from error


def lock_folder(folder: Path, how: int) -> int:
    """A descriptor that holds a lock (fcntl's `how`) of a folder itself, until it is closed.

    Raises FileNotFoundError where the folder went while it was waited for, and OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(folder)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
