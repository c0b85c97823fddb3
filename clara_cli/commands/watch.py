"""`clara compress --watch`: the same change again whenever the documents change.

The inputs are listed once a second: names, sizes and times of their files, which works on every
file system, network mounts too. A change counts once two listings in a row are the same, so that
files that are being written are waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from clara_cli.config.documents import DocumentOptions
from clara_cli.documents.listing import HUB, list_documents
from clara_cli.errors import ClaraError, UsageError

SECONDS = 1.0  # between two listings
Listed = dict[str, tuple[int, int, int]]  # size, time and number of each file


def watch(
    inputs: Sequence[str],
    options: DocumentOptions,
    change: Callable[[], object],
    sleep: Callable[[float], object] = time.sleep,
) -> NoReturn:
    """Call `change` at once, and again after the documents have changed and come to rest, until
    interrupted.

    Raises:
        UsageError: for an input that is no file or folder.
    """
    if datasets := [name for name in inputs if name.startswith(HUB)]:
        raise UsageError(f"--watch {datasets[0]}: a dataset is not watched", "fetch it, or omit it")
    before = listed(inputs, options)
    change()
    while True:
        sleep(SECONDS)
        now = listed(inputs, options)
        if now == before:
            continue
        while True:  # until it rests
            sleep(SECONDS)
            before, now = now, listed(inputs, options)
            if now == before:
                break
        change()


def listed(inputs: Sequence[str], options: DocumentOptions) -> Listed:
    """Size, time and number of every file that would be read; {} while they cannot be listed."""
    files: Listed = {}
    try:
        sources = list_documents(inputs, options).sources
    except ClaraError:  # the next reading says it
        return files
    for source in sources:
        stamp = _stat(source.path)
        if stamp is not None:
            files[source.name] = stamp
    return files


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:  # it went in this instant
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
