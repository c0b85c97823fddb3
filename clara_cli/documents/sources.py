"""Bytes in: which files an input names, and their lines, decompressed, within bounded memory.

Knows paths, magic bytes and limits; knows nothing of what a record means.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clara_cli.errors import DataError, UsageError

MAX_LINE_BYTES = 256 * 2**20  # no line, and no text file, may be longer once decompressed
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
HUB = "hf:"  # before the name of a Hugging Face dataset
ACCEPTED = (
    "accepted: .jsonl .txt .md .csv .tsv (also .gz, .xz), .parquet, a folder, hf:OWNER/DATASET, or "
    "- for stdin"
)
MAX_XZ_BYTES = 128 * 2**20  # memory to decompress: twice what xz -9 asks for
_GZIP, _XZ, _PARQUET = b"\x1f\x8b", b"\xfd7zXZ\x00", b"PAR1"
_BUFFER = 2**17
TEXT_FIELDS = ("text", "contents")
_BOM = b"\xef\xbb\xbf"
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error)  # OSError: BadGzipFile, failing disks


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read. `label` names its documents, `name` names it in errors; `kind` is
    jsonl, text, csv, tsv, parquet, hub (a dataset, no file), or empty where the content decides; a
    record's text is in the first of `fields` that it has."""

    path: Path
    label: str
    name: str
    kind: str
    fields: tuple[str, ...] = TEXT_FIELDS


def list_sources(inputs: Sequence[str], fields: tuple[str, ...] = TEXT_FIELDS) -> list[Source]:
    """The files that `inputs` name: `-` is stdin, `hf:...` a dataset, a folder is walked in sorted
    order (hidden entries and compressed corpora left out), anything else is a file.

    Raises UsageError for a path that is empty or does not exist, a type that is not read, or a
    second `-`.
    """
    if list(inputs).count("-") > 1:
        raise UsageError("- is given twice, and stdin can be read once", "give it once")
    names = Counter(Path(item).name for item in inputs)
    sources: list[Source] = []
    for item in inputs:
        path = Path(item)
        if not item:  # as a path, it would be the present folder
            raise UsageError("an empty name among the files", "is a variable unset?")
        if item == "-":
            sources.append(Source(path, "stdin", "<stdin>", "jsonl", fields))
        elif item.startswith(HUB):
            sources.append(Source(path, item.removeprefix(HUB), item, "hub", fields))
        elif _is_corpus(path):
            hint = f'ask it: clara ask "..." --corpus {item}'
            raise UsageError(f"{item}: a compressed corpus, not documents", hint)
        elif path.is_dir():
            sources.extend(_walk(path, fields))
        elif path.exists():
            kind = _kind(path)
            unique = names[path.name] == 1 and kind != "text"
            label = path.name if unique else path.as_posix()
            sources.append(Source(path, label, item, kind, fields))
        else:
            raise UsageError(f"{item}: no such file or folder", ACCEPTED)
    return sources


def not_utf8(data: bytes, at: int) -> tuple[int, str]:
    """(line, from 1, what is wrong in it) of the first byte of `data` that is not UTF-8."""
    before = data[:at]
    within = at - (before.rfind(b"\n") + 1)
    return before.count(b"\n") + 1, f"not UTF-8: byte 0x{data[at]:02x} at {within:,}"


def _walk(folder: Path, fields: tuple[str, ...]) -> Iterator[Source]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _skipped(Path(parent), name))
        for name in sorted(files):
            path = Path(parent, name)
            kind = _kind(path)
            if kind and not name.startswith("."):
                label = path.relative_to(folder).as_posix()
                yield Source(path, label, str(path), kind, fields)


def _skipped(parent: Path, name: str) -> bool:
    """Hidden folders, and corpora: their passages are not the user's documents."""
    return name.startswith(".") or _is_corpus(parent / name)


def _is_corpus(folder: Path) -> bool:
    marks = (folder / "manifest.json", folder / "journal.json")
    return (folder / "shards").is_dir() and any(mark.is_file() for mark in marks)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".xz"):
        suffixes.pop()
    return KINDS.get(suffixes[-1], "") if suffixes else ""


def counts_lines(file: str) -> bool:
    """Whether the lines of a file are those of the text it holds (.txt, .md), not records."""
    return _kind(Path(file)) == "text"


@contextmanager
def opened(source: Source) -> Iterator[tuple[str, IO[bytes]]]:
    """The kind of a source and its bytes, decompressed where their magic says so.

    Raises UsageError where the file cannot be opened or is of a type that is not read, and
    DataError where it cannot be read to its end (damaged compressed data, a failing disk).
    """
    if source.kind == "hub":
        yield source.kind, io.BytesIO()
        return
    try:
        raw: Any = sys.stdin.buffer if source.name == "<stdin>" else source.path.open("rb")
    except OSError as error:
        raise UsageError(f"{source.name}: {error.strerror}", ACCEPTED) from error
    closing = [] if raw is sys.stdin.buffer else [raw]
    try:
        stream = _decompressed(raw)
        if stream is not raw:
            closing.insert(0, stream)
        yield source.kind or _sniff(stream, source.name), stream
    except _DAMAGE as error:
        message = f"{source.name}: damaged, it cannot be read to its end: {error}"
        raise DataError(message, "fetch or compress the file again") from error
    finally:
        for stream in closing:
            stream.close()


def position(stream: IO[bytes]) -> int:
    """How many bytes of the file, as it lies on disk, were read so far."""
    packed = getattr(stream, "raw", None)
    if isinstance(packed, gzip.GzipFile):
        beneath: Any = packed.fileobj
    else:
        beneath = packed.file if isinstance(packed, _XzStream) else stream
    return int(beneath.tell())


def _decompressed(stream: Any) -> Any:
    """A buffered stream of what `stream` holds, told by its first bytes."""
    magic = stream.peek(6)[:6]
    if magic.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream, mode="rb"), _BUFFER)
    if magic.startswith(_XZ):
        return io.BufferedReader(_XzStream(stream), _BUFFER)
    return stream


class _XzStream(io.RawIOBase):
    """What an xz file holds, its streams one after another, within `MAX_XZ_BYTES`: the file itself
    says how large a dictionary to decompress it with takes, up to 4 GiB, and `LZMAFile` obeys."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self._packed = b""
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, perhaps not wholly; 0 at the end. Raises EOFError where it comes early."""
        while True:
            if self._decoder.eof:
                self._packed = (self._decoder.unused_data or self.file.read(_BUFFER)).lstrip(
                    b"\0"  # between streams
                )
                if not self._packed:
                    return 0
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES)
            elif self._decoder.needs_input and not self._packed:
                self._packed = self.file.read(_BUFFER)
                if not self._packed:
                    raise EOFError("the compressed data ends early")
            data = self._decoder.decompress(self._packed, len(buffer))
            self._packed = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


def _sniff(stream: Any, name: str) -> str:
    head = stream.peek(64)[:64]
    if head.startswith(_PARQUET):
        return "parquet"
    if head.removeprefix(_BOM).lstrip().startswith(b"{"):
        return "jsonl"
    if head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise UsageError(f"{name}: a JSON array", "write one JSON object a line, as .jsonl")
    raise UsageError(f"{name}: not a type that is read", ACCEPTED)


def lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines (from 1) without their newline, split on newline bytes only; None in place
    of a line longer than `limit` bytes, which is passed over without being held."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            _pass_over(stream)
            yield number, None
        else:
            line = line.removeprefix(_BOM) if number == 1 else line
            yield number, line.removesuffix(b"\n")


def _pass_over(stream: IO[bytes]) -> None:
    while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
        pass


def whole(stream: IO[bytes], limit: int) -> bytes | None:
    """All bytes without a byte-order mark, or None where there are more than `limit`."""
    data = stream.read(limit + 1)
    return None if len(data) > limit else data.removeprefix(_BOM)
