"""Documents in: one stream of `Document` from files, datasets and stdin, each record checked.

Memory grows with the longest line, not with the corpus.
Knows nothing of tokens, passages or models.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import PurePath
from typing import IO, Any, NoReturn

from clara_cli.config.documents import DocumentOptions
from clara_cli.documents import hub, listing, sources
from clara_cli.documents.listing import Source
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Document
from clara_cli.storage.disk_set import DiskSet

SKIP_HINT = "add --skip-bad: it is then left out and counted"
TEXT_HINT = f"save the file as UTF-8, in parts where it is large; or {SKIP_HINT}"
LINE_HINT = 'a line is {"text": "...", "id"?, "title"?}; --skip-bad counts bad lines and goes on'
DROPPED_FIELDS = ("qas",)  # the questions of SQuAD-like lines: not about the text
_COLLECTIONS = {  # columns of tab-separated rows without a header, by their number
    2: ("id", "text"),
    3: ("id", "text", "title"),
    4: ("id", "url", "title", "text"),
}
_PARQUET_ROWS = 256
_PARQUET_BUFFER = 2**20

_Record = tuple[str, Any]  # where it stands (file:line), the parsed record or a _Bad


class _Bad(Exception):  # noqa: N818  (a verdict on one record; turned into DataError or a report)
    """What is wrong with one record."""


def read_documents(
    inputs: Sequence[str],
    options: DocumentOptions,
    on_bad: Callable[[str], None],
    refuse: Callable[[str], str] | None = None,
) -> Reading:
    """Stream the documents of `inputs` (files, folders, datasets, `-`), in order, their text kept
    exactly; it is taken from `options.text_field`, else from `text` or `contents`.

    A bad record (not JSON, not an object, no string text, not UTF-8, a wrong id or title, an id
    seen before, or one that `refuse` has a word against) and a file or folder that cannot be read,
    or not to its end, raise DataError, or, with `skip_bad`, are told to `on_bad` and passed over.
    Raises UsageError at once for a missing path or a type that is not read, and DataError where
    there is no document at all.
    """
    return Reading(inputs, options, on_bad, refuse)


class Reading(Iterator[Document]):
    """The documents of some inputs, and how far into them the reading is. `left_out` counts the
    files of folders that are of no kind read, by suffix."""

    def __init__(
        self,
        inputs: Sequence[str],
        options: DocumentOptions,
        on_bad: Callable[[str], None],
        refuse: Callable[[str], str] | None,
    ) -> None:
        listed = listing.list_documents(inputs, options)
        self._inputs, self._files = list(inputs), listed.sources
        self.left_out = dict(listed.left_out)
        self._skip_bad, self._on_bad, self._refuse = options.skip_bad, on_bad, refuse
        for line in listed.unreadable:
            on_bad(line)
        self._total = _total_bytes(self._files)
        self._bytes = 0
        self._documents = self._read()

    def __next__(self) -> Document:
        return next(self._documents)

    @property
    def fraction(self) -> float | None:
        """The share of the files' bytes, as they lie on disk, that was read; None where their size
        is not known (pipes, datasets by name)."""
        return min(1.0, self._bytes / self._total) if self._total else None

    def _read(self) -> Iterator[Document]:
        seen = DiskSet()
        for source, where, record in self._records():
            number = where.rpartition(":")[2]
            default_id = source.label if where == source.name else f"{source.label}:{number}"
            try:
                document = _document(record, default_id, where, source.fields)
                if self._refuse and (reason := self._refuse(document.id)):
                    raise _Bad(reason)
                _refuse_second(document.id, seen)
            except _Bad as bad:
                message = f"{where}: {bad}"
                if not self._skip_bad:
                    hint = TEXT_HINT if source.kind == "text" else LINE_HINT
                    raise DataError(message, hint) from None
                self._on_bad(message)
            else:
                yield document
        if not seen:
            left_out = listing.describe_left_out(self.left_out)
            among = f" (left out: {left_out})" if left_out else ""
            message = f"no documents in {', '.join(self._inputs)}{among}"
            raise DataError(message, listing.ACCEPTED)

    def _records(self) -> Iterator[tuple[Source, str, Any]]:
        """The records of every file, one after another, with the place of each."""
        before = 0
        for source in self._files:
            size = _size(source) if self._total else 0
            try:
                with sources.opened(source) as (kind, stream):
                    for where, record in _READERS[kind](source, stream):
                        if self._total:
                            self._bytes = before + sources.position(stream)
                        yield source, where, record
            except DataError as error:
                if not self._skip_bad:
                    raise DataError(error.message, f"{error.hint}; or {SKIP_HINT}") from error
                self._on_bad(error.message)
            before += size


def _total_bytes(files: Sequence[Source]) -> int | None:
    """Bytes of all files as they lie on disk; None where that of one is not known."""
    known = all(file.path.is_file() for file in files)
    return sum(map(_size, files)) if known else None


def _size(file: Source) -> int:
    try:
        return file.path.stat().st_size
    except OSError:  # it went meanwhile; opening it says so
        return 0


def _refuse_second(document_id: str, seen: DiskSet) -> None:
    if not seen.add(hashlib.blake2b(document_id.encode(), digest_size=12).hexdigest()):
        raise _Bad(f"the id {_short(document_id)} was used before")


def _document(record: Any, default_id: str, where: str, fields: tuple[str, ...]) -> Document:
    """A parsed record as a Document, or _Bad saying what is wrong with it."""
    if isinstance(record, _Bad):
        raise record
    if not isinstance(record, dict):
        raise _Bad(f"not a JSON object: {_short(record)}")
    key = next((name for name in fields if record.get(name) is not None), fields[-1])
    text, title = record.get(key), record.get("title")
    if text is None:
        known = ", ".join(map(str, record)) or "none"
        wanted = " (nor ".join(fields) + ")" * (len(fields) - 1)
        raise _Bad(f"no {wanted}; its fields: {_short(known)}")
    if not isinstance(text, str):
        raise _Bad(f"{key} is {_short(text)}, not a string")
    if not isinstance(title, str | None):
        raise _Bad(f"title is {_short(title)}, not a string")
    document_id = _id(record.get("id"), default_id)
    taken = {key, fields[0], "title", "id", *DROPPED_FIELDS}
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
        return _Bad(sources.not_utf8(line, error.start)[1])
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
        yield source.name, {"title": title, source.fields[0]: data.decode()}
    except UnicodeDecodeError as error:
        number, what = sources.not_utf8(data, error.start)
        yield f"{source.name}:{number}", _Bad(what)


def _read_csv(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    yield from _table(source, _table_lines(source, stream), ",")


def _read_tsv(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    """A table with tabs under a header (DPR's), quoted as CSV is; or, without one, a collection of
    id and text (MS MARCO's), nothing quoted."""
    lines = _table_lines(source, stream)
    for first in lines:
        cells = first.rstrip("\r\n").split("\t")
        every = itertools.chain([first], lines)
        if _is_header(cells, source.fields):
            yield from _table(source, every, "\t")
        else:
            yield from _collection(source, every, cells)


def _is_header(cells: Sequence[str], fields: tuple[str, ...]) -> bool:
    """Whether a first row names columns: the text's among them, one the user named, or names all
    through."""
    named = all(cell.isidentifier() for cell in cells)
    return named or bool(set(fields) & set(cells)) or fields != listing.TEXT_FIELDS


def _collection(source: Source, lines: Iterable[str], first: Sequence[str]) -> Iterator[_Record]:
    """Rows without a header: id and text; id, text and title (ColBERT's); or id, url, title and
    text (MS MARCO's documents).

    Raises:
        DataError: for another number of cells, or questions with their answers.
    """
    columns = _COLLECTIONS.get(len(first))
    if columns is None:
        known = ", ".join(map(str, _COLLECTIONS))
        message = f"{source.name}:1: {len(first)} cells and no header, known without one: {known}"
        raise DataError(message, "add a header: id, text, title")
    if len(first) == 2 and first[1].startswith("[") and first[1].endswith("]"):
        message = f"{source.name}:1: questions with their answers, not documents"
        raise DataError(message, f"clara bench --dataset {shlex.quote(source.name)} reads them")
    for number, line in enumerate(lines, 1):
        where, cells = f"{source.name}:{number}", line.rstrip("\r\n").split("\t")
        if len(cells) == len(columns):
            yield where, dict(zip(columns, cells, strict=True))
        elif line.strip():
            yield where, _Bad(f"{len(cells)} cells, the first line has {len(columns)}")


def _table(source: Source, lines: Iterable[str], delimiter: str) -> Iterator[_Record]:
    """Rows of a table with a header. Bytes that are not UTF-8 travel as surrogates, so that one bad
    row does not end the reading."""
    csv.field_size_limit(sources.MAX_LINE_BYTES)  # process-wide; the default refuses long texts
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
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
            header = _csv_header(row, where, source.fields)
        elif row and len(row) != len(header):
            yield where, _Bad(f"{len(row)} fields under a header of {len(header)}")
        elif row:
            yield where, dict(zip(header, row, strict=True))


def _csv_header(row: list[str], where: str, fields: tuple[str, ...]) -> list[str]:
    if not set(fields) & set(row):
        columns = ", ".join(map(repr, row[:20]))
        message = f"{where}: no column {fields[0]!r} among {columns}"
        raise DataError(message, "name the documents' column: --text-field NAME")
    return row


def _table_lines(source: Source, stream: IO[bytes]) -> Iterator[str]:
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
        raise UsageError(f"{source.name}: Parquet needs a file, not a pipe", listing.ACCEPTED)
    try:
        table = pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER, pre_buffer=False)
        columns = [
            column.name
            for column in table.schema_arrow
            if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type))
        ]
        if not set(source.fields) & set(columns):
            known = ", ".join(columns)
            message = f"{source.name}: no string column {source.fields[0]!r} among {known}"
            raise DataError(message, "name the documents' column: --text-field NAME")
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


def _read_hub(source: Source, stream: IO[bytes]) -> Iterator[_Record]:
    for number, row in enumerate(hub.stream_rows(source.label), 1):
        yield f"{source.name}:{number}", {key: _plain(value) for key, value in row.items()}


_READERS: dict[str, Callable[[Source, IO[bytes]], Iterator[_Record]]] = {
    "jsonl": _read_jsonl,
    "text": _read_text,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "hub": _read_hub,
}
