"""The lines of a shard's passages, decompressed within bounded memory: a file of a few kilobytes
may hold gigabytes. Knows nothing of what a line means.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

from clara_cli.documents.sources import lines
from clara_cli.storage.file_kinds import open_file

MAX_BYTES = 256 * 2**20  # of a shard's passages, once decompressed


def passage_lines(path: Path) -> Iterator[bytes]:
    """Each line of a gzip file. Raises OSError, EOFError or zlib.error where it is damaged, and
    ValueError for one that holds more than `MAX_BYTES`."""
    size = 0
    with (
        open_file(path) as file,
        gzip.GzipFile(fileobj=file, mode="rb") as packed,
        io.BufferedReader(packed) as stream,
    ):
        for _, line in lines(stream, MAX_BYTES):
            size += MAX_BYTES + 1 if line is None else len(line) + 1
            if line is None or size > MAX_BYTES + 1:
                raise ValueError(f"more than {MAX_BYTES / 2**20:g} MiB of passages in one shard")
            yield line
