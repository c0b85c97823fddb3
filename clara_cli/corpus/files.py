"""Files that are whole or not there: atomic writes, checksums, a lock that dies with its process.

Every failure to write, a full disk included, becomes one clear error here. Knows nothing of what
the bytes mean. The lock is flock(2): Linux and macOS.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clara_cli.disk import cannot_write
from clara_cli.errors import ArtefactError

_TEMPORARY = ".tmp-"
LOCK_NAME = ".lock"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, flush to disk, rename. A failure leaves
    what was there before and no temporary file; raises ClaraError."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        cannot_write(path, len(data), error)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, and to the disk, before returning. Raises ClaraError."""
    try:
        with path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        cannot_write(path, len(data), error)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; one that exists is fine. Raises ClaraError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cannot_write(path, 0, error)


def remove(path: Path) -> None:
    """Remove a file that may not be there. Raises ClaraError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        cannot_write(path, 0, error)


def remove_folder(path: Path) -> None:
    """Remove an empty folder. Raises ClaraError."""
    try:
        path.rmdir()
    except OSError as error:
        cannot_write(path, 0, error)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left; call it under the lock only."""
    for leftover in sorted(folder.glob(f"{_TEMPORARY}*")):
        remove(leftover)


def is_temporary(name: str) -> bool:
    """Whether a file name is one `write_atomic` gives while it writes."""
    return name.startswith(_TEMPORARY)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, command: str = "") -> Iterator[None]:
    """Hold a folder's lock, or raise ArtefactError naming the process that holds it.

    The lock ends with the process, however it ends. The lock file holds the process id and
    `command` (this process's command line by default) and is gone once the lock is released.
    """
    path = folder / LOCK_NAME
    descriptor = _acquire(path)
    try:
        said = command or " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {said[:200]}\n".encode(errors="replace"), 0)
    except OSError as error:
        os.close(descriptor)
        cannot_write(path, 0, error)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: nobody can lock a file that is gone
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            cannot_write(path, 0, error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            message = f"{path.parent} is being written by process {pid or '?'} ({command})"
            hint = "wait for it to end, or choose another --out"
            raise ArtefactError(message, hint) from error
