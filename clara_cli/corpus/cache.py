"""Documents asked about without a corpus of their own: where the user's cache keeps their memory,
named by what they hold and who compresses them, and for how long.

Who uses a cached corpus holds a shared flock(2) on its folder, whose time is that of its last use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from clara_cli.corpus.manifest import MANIFEST, read_manifest
from clara_cli.documents.listing import Source
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import CachedCorpusRow
from clara_cli.storage import files
from clara_cli.storage.cache import cache_folder, private, private_folder
from clara_cli.storage.errors import cannot_write
from clara_cli.storage.file_kinds import open_file
from clara_cli.storage.lock import lock_folder, locked

CORPORA = "corpora"
KEY_LETTERS = 20
KEPT = 8  # corpora, the last used


def cached_corpus(documents: Sequence[Source], maker: Sequence[str | None]) -> Path:
    """Where the corpus of these files lies, or will: its name covers their names within their
    folders, their bytes, and the `maker`, all that decides their memory beside them.

    Raises:
        UsageError: for stdin or a pipe, which can be read only once.
    """
    digest = hashlib.sha256(json.dumps(list(maker)).encode())
    for source in documents:
        if source.name == "<stdin>" or source.path.is_fifo():
            raise UsageError(
                "documents from stdin or a pipe cannot be kept", "name a file or folder"
            )
        try:
            with open_file(source.path) as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:  # compressing refuses it, or skips it
            content = f"unreadable: {error.strerror}"
        digest.update(json.dumps([source.label, content]).encode())
    return cache_folder() / CORPORA / f"{digest.hexdigest()[:KEY_LETTERS]}.clara"


@contextlib.contextmanager
def in_use(corpus: Path) -> Iterator[None]:
    """Keep a cached corpus, finished or not, from being dropped meanwhile. Its folder is made.

    Raises:
        ClaraError: where it cannot be made or locked.
    """
    while True:
        with private():
            files.make_folder(private_folder(CORPORA), corpus.name)
        try:
            folder = lock_folder(corpus, fcntl.LOCK_SH)
        except FileNotFoundError:  # dropped in this instant
            continue
        except OSError as error:
            cannot_write(corpus, 0, error)
        break
    with contextlib.suppress(OSError):  # a cache that cannot be written is not cleaned either
        os.utime(corpus)
    try:
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def making(corpus: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Whether a cached corpus is still to be made: the one who is told so makes it meanwhile,
    readable by the user alone. Who comes second hears (`say`) of the first, and waits.

    Raises:
        ClaraError: where it cannot be locked, or is damaged.
    """
    with private(), locked(corpus.parent, f"{corpus.stem}.lock", corpus, say):
        yield read_manifest(corpus) is None


def drop_unused(keep: int = KEPT) -> None:
    """Remove all but the corpora of the cache last used, and those in use or being written.

    Raises:
        ClaraError: where one cannot be removed.
    """
    corpora = sorted((cache_folder() / CORPORA).glob("*.clara"), key=_last_used)
    for corpus in corpora[:-keep]:
        if corpus.is_symlink():  # somebody else's
            continue
        with contextlib.suppress(BlockingIOError, FileNotFoundError, ArtefactError):
            _drop(corpus)


def cached_corpora() -> list[CachedCorpusRow]:
    """The corpora that the cache keeps, the last used first. One that is damaged, or not finished,
    has no counts."""
    rows = []
    for corpus in sorted((cache_folder() / CORPORA).glob("*.clara"), key=_last_used, reverse=True):
        manifest = None
        with contextlib.suppress(ArtefactError):
            manifest = read_manifest(corpus)
        used = datetime.fromtimestamp(_last_used(corpus), UTC)
        rows.append(
            CachedCorpusRow(
                name=corpus.stem,
                inputs=_inputs(corpus, manifest.parts[0].origins if manifest else ()),
                documents=manifest.counts["documents"] if manifest else None,
                passages=manifest.counts["passages"] if manifest else None,
                model=manifest.identity.checkpoint.get("model") if manifest else None,
                bytes=sum(path.lstat().st_size for path in corpus.rglob("*") if path.is_file()),
                last_used=used.isoformat(timespec="seconds"),
            )
        )
    return rows


def _inputs(corpus: Path, origins: Sequence[str]) -> tuple[str, ...]:
    """The files and folders that a cached corpus was made of."""
    return tuple(
        one if one.startswith("hf:") else str((corpus.parent / one).resolve()) for one in origins
    )


def forget(name: str) -> list[str]:
    """Remove the cached corpus of a name, or all of them (`all`); the names of those removed.

    Raises:
        UsageError: where there is none of this name.
        ArtefactError: where one is in use.
    """
    folder = cache_folder() / CORPORA
    corpora = {corpus.stem: corpus for corpus in sorted(folder.glob("*.clara"))}
    names = list(corpora) if name == "all" else [name]
    for one in names:
        if one not in corpora:
            raise UsageError(f"no cached corpus {one[:60]!r}", "clara ask --list names them")
        if corpora[one].is_symlink():  # somebody else's
            raise UsageError(f"{corpora[one]} is a link, not a cached corpus", "remove it yourself")
        try:
            _drop(corpora[one])
        except BlockingIOError as error:
            raise ArtefactError(f"{corpora[one]} is in use", "end who asks it first") from error
    return names


def _last_used(corpus: Path) -> float:
    try:
        return corpus.stat().st_mtime
    except FileNotFoundError:  # dropped by another process
        return 0.0


def _drop(corpus: Path) -> None:
    folder = lock_folder(corpus, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        with locked(corpus):
            files.remove(corpus, MANIFEST)  # first: what a kill leaves is no finished corpus
            files.remove_tree(corpus)
    finally:
        os.close(folder)
