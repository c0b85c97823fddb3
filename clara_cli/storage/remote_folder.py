"""A folder at a URL that fsspec reads (https, s3, memory, file and others), and the copies of its
files that are kept here. Nothing is ever written at a URL.

A copy is whole and of the bytes that were promised, or not there. All copies together are bounded:
those not used for the longest time go first. Who has one open keeps it until it is closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from clara_cli.errors import ArtefactError, UsageError, first_line
from clara_cli.extras import install_command
from clara_cli.storage import files
from clara_cli.storage.cache import cache_folder, private, private_folder

COPIES = "remote"  # their folder in the cache
MOST_BYTES = 32 * 2**30  # of all copies
_PIECE = 2**20
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+-]+):/+(?P<rest>.*)", re.DOTALL)
_READ_ONLY = "a URL is only read: give a folder here; a copy of it is changed like any other"
_CHANGED = "it may have been changed just now: try again; else look at it where it lies"


def url_of(place: Path) -> str | None:
    """The URL that a path spells (`Path` makes one slash of two), None for a path: of a file system
    of its own, and not a folder that is there."""
    match = _URL.fullmatch(str(place))
    if match is None or place.exists():
        return None
    slashes = ":///" if match["scheme"] == "file" else "://"
    return f"{match['scheme']}{slashes}{match['rest']}"


def refuse_url(option: str, place: Path | None) -> None:
    """Raise UsageError where something would be written, or locked, at a URL."""
    if place is not None and (url := url_of(place)):
        raise UsageError(f"{option} {url}: nothing is written to a URL", _READ_ONLY)


class RemoteFolder:
    """A folder at a URL, and the folder in the cache (`local`) that its files are copied into."""

    def __init__(self, url: str, transient: Sequence[str] = ()) -> None:
        """Copies of what lies in the folders `transient` may be dropped for others meanwhile: they
        are made again. Raises UsageError for a URL that no installed file system reads."""
        from fsspec.core import url_to_fs

        if "::" in url:
            raise UsageError(f"{url}: one URL within another", "copy the corpus to one place")
        self.url = url.rstrip("/")
        try:
            self._system, self._root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            web = install_command("web") if url.startswith("http") else ""
            hint = web or "install the file system that it names, or copy the corpus here"
            raise UsageError(f"{url}: {first_line(error)}", hint) from error
        self.local = Path()
        self._transient = frozenset(transient)

    def keep_in(self, name: str) -> None:
        """Keep copies in this folder of the cache, which only the user may enter."""
        with private():
            self.local = files.make_folder(private_folder(COPIES), name)

    def read(self, name: str, most: int) -> bytes | None:
        """The bytes of a small file, None where there is none. Raises ArtefactError where it cannot
        be read, or is larger than `most` bytes."""
        data = b""
        try:
            for piece in self._pieces(name):
                data += piece
                if len(data) > most:
                    raise ArtefactError(f"{self.url}/{name}: over {most:,} bytes", _CHANGED)
        except FileNotFoundError:
            return None
        return data

    def copy(self, name: str, sha256: str, size: int) -> Path:
        """The copy of a file, made if it is not there yet, of just these bytes. Raises
        ArtefactError where the file is missing, not readable or another one, and ClaraError where
        the copy cannot be written."""
        path = files.inside(self.local, name)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == size:
                os.utime(path)
                return path
        with private():
            files.make_folder(self.local, str(PurePosixPath(name).parent))
            files.save_file(self.local, name, lambda to: self._save(name, to, sha256, size), size)
        self._make_room(path)
        return path

    def _save(self, name: str, to: str, sha256: str, size: int) -> None:
        digest, taken = hashlib.sha256(), 0
        try:
            with open(to, "wb") as copy:
                for piece in self._pieces(name):
                    digest.update(piece)
                    taken += copy.write(piece)
                    if taken > size:
                        break
        except FileNotFoundError as error:
            raise ArtefactError(f"{self.url}/{name}: missing", _CHANGED) from error
        if taken != size or digest.hexdigest() != sha256:
            message = f"{self.url}/{name}: not the {size:,} bytes that were recorded"
            raise ArtefactError(message, _CHANGED)

    def _pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file. Raises FileNotFoundError, and ArtefactError where it cannot be
        read."""
        try:
            with self._system.open(f"{self._root}/{name}", "rb") as stream:
                while piece := stream.read(_PIECE):
                    yield piece
        except FileNotFoundError:
            raise
        except _reading_errors() as error:
            what = first_line(error) or type(error).__name__
            raise ArtefactError(f"{self.url}/{name}: not readable: {what}", _CHANGED) from error

    def _make_room(self, kept: Path) -> None:
        """Remove the copies that were not used for the longest time, of this folder those that may
        go, until all take at most `MOST_BYTES`; one is kept however large."""
        taken, copies = 0, []
        for path in (cache_folder() / COPIES).rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    taken += status.st_size
                    copies.append((status.st_mtime, status.st_size, path))
        for _, size, path in sorted(copies):
            if taken <= MOST_BYTES:
                break
            is_own = path.is_relative_to(self.local)
            if path != kept and (
                not is_own or path.relative_to(self.local).parts[0] in self._transient
            ):
                files.remove(path.parent, path.name)
                taken -= size


def _reading_errors() -> tuple[type[Exception], ...]:
    """What file systems raise; that of the web has errors of its own."""
    aiohttp = sys.modules.get("aiohttp")
    web = (aiohttp.ClientError,) if aiohttp else ()
    return (OSError, ValueError, RuntimeError, *web)


def remove_copies() -> tuple[int, int]:
    """Remove all copies; how many folders there were, and their bytes."""
    folder = cache_folder() / COPIES
    copies = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in copies)
    folders = len(list(folder.glob("*")))
    files.remove_tree(folder)
    return folders, size
