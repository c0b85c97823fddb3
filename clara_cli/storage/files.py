"""Files and folders that are whole or not there, and checksums.

Everything is named by the artefact's folder and a `name` inside it: a link in that name is refused,
the folder itself may be one. Every failure to write, a full disk included, is one clear error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from clara_cli.errors import ArtefactError
from clara_cli.storage.errors import cannot_write
from clara_cli.storage.file_kinds import open_file, special_file

TEMPORARY = ".tmp-"


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, to be written or deleted. Raises ArtefactError where a part of the name is
    a link: it would lead out of the artefact."""
    path, parts = folder, PurePath(name).parts
    if PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!r} is not inside {folder}")
    for part in parts:
        path = path / part
        if path.is_symlink():
            message = f"{path} is a link: nothing is written or deleted through it"
            raise ArtefactError(message, "put the file or folder itself there, or take another one")
    return path


def save_file(folder: Path, name: str, save: Callable[[str], object], needed: int = 0) -> Path:
    """Write a file whole or not at all: `save` writes the temporary file it is given, which is
    flushed to the disk and renamed. A failure leaves what was there before; raises ClaraError."""
    path = inside(folder, name)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        save(str(temporary))
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        cannot_write(path, needed, error)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_atomic(folder: Path, name: str, data: bytes) -> None:
    """Write bytes, whole or not at all. Raises ClaraError."""
    save_file(folder, name, lambda temporary: Path(temporary).write_bytes(data), len(data))


def refuse_special(path: Path) -> None:
    """Raise ArtefactError where a pipe, socket or device stands in a file's place: it would be
    waited for."""
    if special := special_file(path):
        message = f"{path} is {special}: nothing is read from it or written to it"
        raise ArtefactError(message, "remove it, or put the file itself there")


def append(folder: Path, name: str, data: bytes, sync: bool = True) -> None:
    """Add to the end of a file, and (`sync`) to the disk, before returning. Raises ClaraError;
    part of the data may then be there."""
    path = inside(folder, name)
    refuse_special(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags, 0o666), "ab") as stream:
            stream.write(data)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
    except OSError as error:
        cannot_write(path, len(data), error)


def truncate(folder: Path, name: str, size: int) -> None:
    """Cut a file off after `size` bytes. Raises ClaraError."""
    path = inside(folder, name)
    try:
        if path.stat().st_size > size:
            os.truncate(path, size)
    except OSError as error:
        cannot_write(path, 0, error)


def make_folder(folder: Path, name: str = "", mode: int = 0o777) -> Path:
    """Make a folder and its parents; one that exists is fine. Raises ClaraError."""
    path = inside(folder, name)
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        cannot_write(path, 0, error)
    return path


def remove(folder: Path, name: str) -> None:
    """Remove a file that may not be there. Raises ClaraError."""
    path = inside(folder, name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        cannot_write(path, 0, error)


def remove_tree(folder: Path, name: str = "") -> None:
    """Remove a folder, which may not be there, and all that is in it: of links in it, the links.
    Raises ClaraError."""
    path = inside(folder, name)
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        cannot_write(path, 0, error)


def copy_tree(source: Path, folder: Path, name: str) -> None:
    """Copy a folder into an artefact; where it has links, what they point to. Raises OSError."""
    shutil.copytree(source, inside(folder, name))


def rename(folder: Path, name: str, new: str) -> None:
    """Give a file or folder of an artefact another name. Raises ClaraError."""
    path = inside(folder, name)
    try:
        os.replace(path, inside(folder, new))
    except OSError as error:
        cannot_write(path, 0, error)


@contextmanager
def new_folder(folder: Path, name: str, needed: int = 0) -> Iterator[Path]:
    """Make a folder whole or not at all: yields an empty one, which takes the place of
    `folder / name` once the block has filled it. A failure, of which the block lets OSErrors pass,
    leaves what was there before; raises ClaraError with the bytes `needed`."""
    path, work, old = inside(folder, name), f"{name}.writing", f"{name}.old"
    remove_tree(folder, work)
    make_folder(folder, work)
    try:
        yield folder / work
        with undisturbed():
            remove_tree(folder, old)
            if path.exists():
                rename(folder, name, old)
            rename(folder, work, name)
            remove_tree(folder, old)
    except OSError as error:
        shutil.rmtree(folder / work, ignore_errors=True)
        cannot_write(path, needed, error)
    finally:
        shutil.rmtree(folder / work, ignore_errors=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that it happens whole or not."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: waiting.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
    if waiting:
        signal.raise_signal(waiting[0])


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Remove what a killed process left half written; call it under the lock only."""
    for leftover in sorted(inside(folder, name).glob(f"{TEMPORARY}*")):
        discard = remove_tree if leftover.is_dir() else remove
        discard(leftover.parent, leftover.name)


def is_temporary(name: str) -> bool:
    """Whether a file name is one `save_file` gives while it writes."""
    return name.startswith(TEMPORARY)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces. Raises OSError."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
