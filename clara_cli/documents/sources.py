"""Bytes in: the content of a source and its lines, decompressed, within bounded memory.

Knows magic bytes and limits; knows nothing of what a record means.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from clara_cli.documents.listing import ACCEPTED, Source
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Heading
from clara_cli.storage.file_kinds import special_file

MAX_LINE_BYTES = 32 * 2**20  # of a line of questions or pairs, once decompressed
MAX_XZ_BYTES = 128 * 2**20  # memory to decompress: twice what xz -9 asks for
_GZIP, _XZ, _PARQUET = b"\x1f\x8b", b"\xfd7zXZ\x00", b"PAR1"
_BUFFER = 2**17
BOM = b"\xef\xbb\xbf"
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error)  # OSError: BadGzipFile, failing disks


Record = tuple[str, Any]  # where it stands (file:line), the parsed record or a BadRecord


class BadRecord(Exception):  # noqa: N818  (a verdict on one record)
    """What is wrong with one record."""


@dataclass(frozen=True)
class FileText:
    """What a file that is one document holds: `parts` are where its pages, slides, sheets or
    sections start in the text, as (start, `page=3`); `first_line` is the file's line on which the
    text starts; `headings` are those of Markdown."""

    title: str
    text: str
    parts: list[tuple[int, str]]
    metadata: dict[str, Any]
    first_line: int = 1
    headings: tuple[Heading, ...] = ()


def shortened(value: Any, width: int = 60) -> str:
    """`repr` of a value, cut to `width` characters, without holding a long one's repr."""
    if isinstance(value, str | bytes | list):
        value = value[:width]
    shown = repr(value)
    return shown if len(shown) <= width else f"{shown[: width - 3]}..."


def too_long(what: str, limit: int) -> str:
    """That a line, row or text is longer than `limit` bytes, and what raises the limit."""
    return f"{what} longer than {limit / 2**20:g} MiB; --max-record-mib raises the most"


def not_utf8(data: bytes, at: int) -> tuple[int, str]:
    """(line, from 1, what is wrong in it) of the first byte of `data` that is not UTF-8."""
    before = data[:at]
    within = at - (before.rfind(b"\n") + 1)
    return before.count(b"\n") + 1, f"not UTF-8: byte 0x{data[at]:02x} at {within:,}"


@contextmanager
def opened(source: Source) -> Iterator[tuple[str, IO[bytes]]]:
    """The kind of a source and its bytes, decompressed where their magic says so.

    Raises UsageError where the file is of a type that is not read, and DataError where it cannot
    be opened or read to its end (damaged compressed data, a failing disk).
    """
    raw = _raw(source)
    closing = [] if source.name == "<stdin>" else [raw]
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


def _raw(source: Source) -> Any:
    """The bytes as they lie on the disk or the Hub."""
    if source.name == "<stdin>":
        if sys.stdin is None:
            raise DataError("<stdin>: closed", "pipe JSONL into it, or name a file")
        return sys.stdin.buffer
    if not source.url and (special := special_file(source.path)):
        raise DataError(f"{source.name}: {special}", "give a file, or pipe it in as -")
    try:
        if source.url:
            import fsspec

            return io.BufferedReader(fsspec.open(source.url, "rb").open(), _BUFFER)
        return source.path.open("rb")
    except OSError as error:
        message = f"{source.name}: {error.strerror or error}"
        raise DataError(message, "check the file's permissions and its disk") from error


def as_utf8(source: Source, stream: IO[bytes], encoding: str) -> IO[bytes]:
    """A stream of UTF-8 of one in another encoding. Reading it raises DataError for bytes that are
    not of it."""
    return io.BufferedReader(_Utf8Stream(source.name, stream, encoding), _BUFFER)


class _Utf8Stream(io.RawIOBase):
    """What a stream of another encoding holds, in UTF-8."""

    def __init__(self, name: str, stream: IO[bytes], encoding: str) -> None:
        self.beneath, self._name, self._encoding = stream, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, perhaps not wholly; 0 at the end."""
        while not self._ready:
            data = self.beneath.read(_BUFFER)
            try:
                self._ready = self._decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                message = f"{self._name}: not {self._encoding}: {error}"
                raise DataError(
                    message, "--encoding takes another, or leave the file out"
                ) from error
            if not data:
                break
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)


def size(source: Source) -> int | None:
    """Bytes of a source as it lies on disk or on the Hub; None where that is not known: a pipe, or
    what went meanwhile (opening it says so)."""
    try:
        if source.url:
            from fsspec.core import url_to_fs

            files, path = url_to_fs(source.url)
            return files.size(path)
        piped = source.name == "<stdin>"
        if piped and sys.stdin is None:
            return None
        status = os.fstat(sys.stdin.buffer.fileno()) if piped else source.path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def position(stream: IO[bytes]) -> int:
    """How many bytes of the file, as it lies on disk, were read so far."""
    packed = getattr(stream, "raw", None)
    if isinstance(packed, _Utf8Stream):
        return position(packed.beneath)
    if isinstance(packed, gzip.GzipFile):
        beneath: Any = packed.fileobj
    else:
        beneath = packed.file if isinstance(packed, _XzStream) else stream
    return int(beneath.tell())


def _decompressed(stream: Any) -> Any:
    """A buffered stream of what `stream` holds, recognised by its first bytes."""
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
    if head.removeprefix(BOM).lstrip().startswith(b"{"):
        return "jsonl"
    if is_array(stream):
        return "json"
    raise UsageError(f"{name}: not a type that is read", ACCEPTED)


def is_array(stream: Any) -> bool:
    """Whether a stream, at its beginning, holds one JSON array."""
    return bool(stream.peek(64)[:64].removeprefix(BOM).lstrip().startswith(b"["))


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
            line = line.removeprefix(BOM) if number == 1 else line
            yield number, line.removesuffix(b"\n")


def _pass_over(stream: IO[bytes]) -> None:
    while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
        pass


def whole(stream: IO[bytes], limit: int) -> bytes | None:
    """All bytes without a byte-order mark, or None where there are more than `limit`."""
    data = stream.read(limit + 1)
    return None if len(data) > limit else data.removeprefix(BOM)
