"""The lines of a shard's passages, decompressed within bounded memory: a file of a few kilobytes
may hold gigabytes. Knows nothing of what a line means.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from clara_cli.documents.sources import BOM, lines
from clara_cli.storage.file_kinds import open_file

MAX_AT_ONCE = 16 * 2**20  # bytes of a shard's passages that are decompressed at once
MAX_LINE = 96 * 2**20  # bytes of a passage, once decompressed
MAX_MEMORY = 192 * 2**20  # bytes that a shard's passages take, once they are read
BYTES_A_VALUE = 64  # an empty list of JSON, which is two bytes there
_WIDEST = re.compile(rb"[\xf0-\xf7]")


def passage_lines(path: Path) -> Iterator[bytes]:
    """Each line of a gzip file; one that is large or damaged is read in turn, so that the lines
    before the damage are given. Raises OSError, EOFError or zlib.error where it is damaged, and
    ValueError for one that would take more than `MAX_MEMORY`."""
    data = _small(path)
    if data is None:
        return _one_by_one(path)
    return iter(data.removeprefix(BOM).removesuffix(b"\n").split(b"\n") if data else ())


def _small(path: Path) -> bytes | None:
    """The bytes of a small file, None of one that is large or damaged, which goes line by line."""
    try:
        with open_file(path) as file, gzip.GzipFile(fileobj=file, mode="rb") as packed:
            data = packed.read(MAX_AT_ONCE + 1)
    except (OSError, EOFError, zlib.error):
        return None
    return data if len(data) <= MAX_AT_ONCE and memory_of(data) <= MAX_MEMORY else None


def _one_by_one(path: Path) -> Iterator[bytes]:
    memory = 0
    with (
        open_file(path) as file,
        gzip.GzipFile(fileobj=file, mode="rb") as packed,
        io.BufferedReader(packed) as stream,
    ):
        for _, line in lines(stream, MAX_LINE):
            memory += MAX_MEMORY + 1 if line is None else memory_of(line)
            if line is None or memory > MAX_MEMORY:
                raise ValueError(f"more than {MAX_MEMORY / 2**20:g} MiB of passages in one shard")
            yield line


def memory_of(line: bytes) -> int:
    """Bytes that a line of JSON, or several, take at most as values: the widest character of a text
    makes all the others as wide, and a value takes more than its comma or bracket."""
    width = 1 if line.isascii() else 4 if _WIDEST.search(line) else 2
    marks = line.count(b",") + line.count(b"[") + line.count(b"{")
    return width * len(line) + BYTES_A_VALUE * marks
