"""Documents in: one stream of `Document` from JSONL, text, CSV and Parquet, each line checked.

Memory grows with the longest line and with one hashed id per document, not with the corpus.
Knows nothing of tokens, passages or models.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import PurePath
from typing import IO, Any, NoReturn

from clara_cli.corpus import sources
from clara_cli.corpus.sources import Source
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Document

LINE_HINT = 'a line is {"text": "...", "id"?, "title"?}; --skip-bad counts bad lines and goes on'
DROPPED_FIELDS = ("qas",)  # the questions of SQuAD-like lines: not about the text
_PARQUET_ROWS = 256

_Record = tuple[str, Any]  # where it stands (file:line), the parsed record or a _Bad


class _Bad(Exception):  # noqa: N818  (a verdict on one record; turned into DataError or a report)
    """What is wrong with one record."""


def read_documents(
    inputs: Sequence[str], skip_bad: bool, on_bad: Callable[[str], None]
) -> Iterator[Document]:
    """Stream the documents of `inputs` (files, folders, `-`), in order, `text` kept exactly.

    A bad record (not JSON, not an object, no string text, not UTF-8, a wrong id or title, an id
    seen before) raises DataError, or, with `skip_bad`, is told to `on_bad` and passed over.
    Raises UsageError at once for a missing path or a type that is not read, and DataError for
    damaged files and where there is no document at all.
    """
    files = sources.list_sources(inputs)
    return _documents(list(inputs), files, skip_bad, on_bad)


def _documents(
    inputs: list[str], files: list[Source], skip_bad: bool, on_bad: Callable[[str], None]
) -> Iterator[Document]:
    seen: set[int] = set()
    for source in files:
        with sources.opened(source) as (kind, stream):
            for where, record in _READERS[kind](source, stream):
                number = where.rpartition(":")[2]
                default_id = source.label if kind == "text" else f"{source.label}:{number}"
                try:
                    document = _document(record, default_id, where)
                    _refuse_second(document.id, seen)
                except _Bad as bad:
                    message = f"{where}: {bad}"
                    if not skip_bad:
                        raise DataError(message, LINE_HINT) from None
                    on_bad(message)
                else:
                    yield document
    if not seen:
        raise DataError(f"no documents in {', '.join(inputs)}", sources.ACCEPTED)


def _refuse_second(document_id: str, seen: set[int]) -> None:
    digest = hashlib.blake2b(document_id.encode(), digest_size=12).digest()
    key = int.from_bytes(digest, "big")
    if key in seen:
        raise _Bad(f"the id {_short(document_id)} was used before")
    seen.add(key)


def _document(record: Any, default_id: str, where: str) -> Document:
    """A parsed record as a Document, or _Bad saying what is wrong with it."""
    if isinstance(record, _Bad):
        raise record
    if not isinstance(record, dict):
        raise _Bad(f"not a JSON object: {_short(record)}")
    key = "text" if record.get("text") is not None else "contents"
    text, title = record.get(key), record.get("title")
    if text is None:
        fields = ", ".join(map(str, record)) or "none"
        raise _Bad(f"no text (nor contents); its fields: {_short(fields)}")
    if not isinstance(text, str):
        raise _Bad(f"{key} is {_short(text)}, not a string")
    if not isinstance(title, str | None):
        raise _Bad(f"title is {_short(title)}, not a string")
    document_id = _id(record.get("id"), default_id)
    taken = {key, "text", "title", "id", *DROPPED_FIELDS}
    metadata = {name: value for name, value in record.items() if name not in taken}
    for name, value in (("text", text), ("title", title or ""), ("id", document_id)):
        _refuse_surrogates(name, value)
    if metadata:
        _refuse_unwritable(metadata)
    return Document(document_id, text, title or "", metadata, where)


def _id(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Bad(f"id is {_short(value)}, neither a string nor an integer")
    return str(value)


def _refuse_surrogates(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # a byte that CSV decoding could not read
            raise _Bad(f"{name} is not UTF-8: byte 0x{code - 0xDC00:02x}") from None
        raise _Bad(f"{name} has the lone surrogate \\u{code:04x}, no character") from None


def _refuse_unwritable(metadata: dict[str, Any]) -> None:
    try:
        json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise _Bad(f"a lone surrogate in the fields {_short(list(metadata))}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise _Bad(f"its other fields cannot be kept: {error}") from None


def _short(value: Any, width: int = 60) -> str:
    """`repr` of a value, cut to `width` characters, without holding a long one's repr."""
    if isinstance(value, str | bytes):
        value = value[:width]
    elif isinstance(value, list):
        value = value[:width]
    shown = repr(value)
    return shown if len(shown) <= width else f"{shown[: width - 3]}..."


def _read_jsonl(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    for number, line in sources.lines(stream, sources.MAX_LINE_BYTES):
        where = f"{source.name}:{number}"
        if line is None:
            yield where, _Bad(f"a line longer than {sources.MAX_LINE_BYTES:,} bytes")
        elif line and not line.isspace():
            yield where, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return _Bad(f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start:,}")
    except json.JSONDecodeError as error:
        return _Bad(f"not JSON ({error.msg} at {error.colno}): {_short(line.decode())}")
    except ValueError as error:
        return _Bad(f"not JSON ({str(error)[:60]}): {_short(line.decode())}")
    except RecursionError:
        return _Bad(f"JSON nested too deeply: {_short(line.decode())}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _read_text(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    data = sources.whole(stream, sources.MAX_LINE_BYTES)
    if data is None:
        yield source.name, _Bad(f"a text longer than {sources.MAX_LINE_BYTES:,} bytes")
        return
    title = PurePath(PurePath(source.label).name.removesuffix(".gz").removesuffix(".xz")).stem
    try:
        yield source.name, {"title": title, "text": data.decode()}
    except UnicodeDecodeError as error:
        yield source.name, _Bad(f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start:,}")


def _read_csv(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    """Rows of a CSV with a header. Bytes that are not UTF-8 travel as surrogates, so that one bad
    row does not end the reading."""
    csv.field_size_limit(sources.MAX_LINE_BYTES)  # process-wide; the default refuses long texts
    reader = csv.reader(_csv_lines(source, stream), strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{source.name}:{reader.line_num}", _Bad(f"not CSV: {error}")
            continue
        where = f"{source.name}:{reader.line_num}"
        if header is None:
            header = _csv_header(row, where)
        elif row and len(row) != len(header):
            yield where, _Bad(f"{len(row)} fields under a header of {len(header)}")
        elif row:
            yield where, dict(zip(header, row, strict=True))


def _csv_header(row: list[str], where: str) -> list[str]:
    if not {"text", "contents"} & set(row):
        columns = ", ".join(map(repr, row[:20]))
        raise DataError(f"{where}: no column 'text' among {columns}", "name one in the header")
    return row


def _csv_lines(source: Source, stream: IO[bytes]) -> Iterator[str]:
    for number, line in sources.lines(stream, sources.MAX_LINE_BYTES):
        if line is None:
            limit = sources.MAX_LINE_BYTES
            message = f"{source.name}:{number}: a line longer than {limit:,} bytes"
            raise DataError(message, "split the file, or check that it is text")
        yield line.decode(errors="surrogateescape") + "\n"


def _read_parquet(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    """Rows of a Parquet file in small batches; binary columns are left out, dates and decimals
    become strings, not-a-number becomes null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not stream.seekable():
        raise UsageError(f"{source.name}: Parquet needs a file, not a pipe", sources.ACCEPTED)
    try:
        table = pq.ParquetFile(stream)
        columns = [
            column.name
            for column in table.schema_arrow
            if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type))
        ]
        if not {"text", "contents"} & set(columns):
            message = f"{source.name}: no string column 'text' among {', '.join(columns)}"
            raise DataError(message, "name the column of the documents 'text'")
        row = 0
        for batch in table.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
            for record in batch.to_pylist():
                row += 1
                yield f"{source.name}:{row}", {key: _plain(v) for key, v in record.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"{source.name}: not readable as Parquet: {_short(str(error), 120)}"
        raise DataError(message, "write the file again") from error


def _plain(value: Any) -> Any:
    """A Parquet value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Decimal | date | time | bytes):
        return str(value)
    return value


_READERS: dict[str, Callable[[Source, IO[bytes]], Iterator[_Record]]] = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
