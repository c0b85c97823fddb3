"""Rows of CSV and tab-separated files as records, each row within bounded memory.

Knows delimiters and headers; knows nothing of what a record means.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import IO

from clara_cli.documents import sources
from clara_cli.documents.json_lines import BYTES_A_VALUE
from clara_cli.documents.listing import Source
from clara_cli.documents.sources import BadRecord, Record
from clara_cli.errors import DataError
from clara_cli.printable import shell_word

_COLLECTIONS = {  # columns of tab-separated rows without a header, by their number
    2: ("id", "text"),
    3: ("id", "text", "title"),
    4: ("id", "url", "title", "text"),
}


def read_csv(source: Source, stream: IO[bytes], limit: int) -> Iterator[Record]:
    """Rows of a CSV file with a header; a row is at most `limit` bytes.

    Raises:
        DataError: for a header without the text's column or with a name twice, and for a row that
            is too long, quoted or not: where it would end is not known.
    """
    yield from _table(source, _RowLines(source, stream, limit, ","), ",")


def read_tsv(source: Source, stream: IO[bytes], limit: int) -> Iterator[Record]:
    """A table with tabs under a header (DPR's), quoted as CSV is; or, without one, a collection of
    id and text (MS MARCO's), nothing quoted.

    Raises:
        DataError: as `read_csv`, and for another number of cells without a header.
    """
    lines = _RowLines(source, stream, limit, "\t")
    for first in lines:
        cells = first.rstrip("\r\n").split("\t")
        if _is_header(cells, source.fields):
            lines.again(first)
            yield from _table(source, lines, "\t")
        else:
            lines.again(first)
            yield from _collection(source, lines, cells)


class _RowLines(Iterator[str]):
    """The lines of a table, of which a row may take several, counted from `start_row` on. Bytes
    that are not UTF-8 travel as surrogates, so that one bad row does not end the reading."""

    def __init__(self, source: Source, stream: IO[bytes], limit: int, delimiter: str) -> None:
        self._lines = sources.lines(stream, limit)
        self._name, self._limit, self._delimiter = source.name, limit, delimiter.encode()
        self._bytes = self._cells = 0
        self._held: str | None = None

    def start_row(self) -> None:
        """The next line begins a row."""
        self._bytes = self._cells = 0

    def again(self, line: str) -> None:
        """Give this line, the last one, once more."""
        self._held = line

    def __next__(self) -> str:
        if self._held is not None:
            held, self._held = self._held, None
            return held
        number, line = next(self._lines)
        self._bytes += self._limit + 1 if line is None else len(line) + 1
        self._cells += 0 if line is None else line.count(self._delimiter)
        if line is None or self._bytes > self._limit + 1:
            message = f"{self._name}:{number}: {sources.too_long('a row', self._limit)}"
            raise DataError(message, "look for a quote that is never closed, or raise it")
        if self._cells > self._limit // BYTES_A_VALUE:
            most = self._limit // BYTES_A_VALUE
            message = f"{self._name}:{number}: more than {most:,} cells in one row"
            raise DataError(message, "--max-record-mib raises the most")
        return line.decode(errors="surrogateescape") + "\n"


def _is_header(cells: Sequence[str], fields: tuple[str, ...]) -> bool:
    """Whether a first row names columns: the text's among them, one the user named, or names all
    through."""
    named = all(cell.isidentifier() for cell in cells)
    return named or bool(set(fields) & set(cells)) or len(fields) == 1


def _collection(source: Source, lines: _RowLines, first: Sequence[str]) -> Iterator[Record]:
    """Rows without a header: id and text; id, text and title (ColBERT's); or id, url, title and
    text (MS MARCO's documents).

    Raises:
        DataError: for another number of cells, or questions with their answers.
    """
    columns = _COLLECTIONS.get(len(first))
    if columns is None:
        widths = ", ".join(map(str, _COLLECTIONS))
        message = f"{source.name}:1: {len(first)} cells and no header, known without one: {widths}"
        raise DataError(message, "add a header: id, text, title")
    if len(first) == 2 and first[1].startswith("[") and first[1].endswith("]"):
        message = f"{source.name}:1: questions with their answers, not documents"
        raise DataError(message, f"clara bench --dataset {shell_word(source.name)} reads them")
    for number, line in enumerate(lines, 1):
        lines.start_row()
        where, cells = f"{source.name}:{number}", line.rstrip("\r\n").split("\t")
        if len(cells) == len(columns):
            yield where, dict(zip(columns, cells, strict=True))
        elif line.strip():
            yield where, BadRecord(f"{len(cells)} cells, the first line has {len(columns)}")


def _table(source: Source, lines: _RowLines, delimiter: str) -> Iterator[Record]:
    """Rows of a table with a header; an empty id is none."""
    csv.field_size_limit(2**31 - 1)  # process-wide, and too low by default: the lines are bounded
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        lines.start_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{source.name}:{reader.line_num}", BadRecord(f"not CSV: {error}")
            continue
        where = f"{source.name}:{reader.line_num}"
        if header is None:
            header = _header(row, where, source.fields)
        elif row and len(row) != len(header):
            yield where, BadRecord(f"{len(row)} fields under a header of {len(header)}")
        elif row:
            record = dict(zip(header, row, strict=True))
            yield where, record if record.get("id") != "" else {**record, "id": None}


def _header(row: list[str], where: str, fields: tuple[str, ...]) -> list[str]:
    if not set(fields) & set(row):
        columns = ", ".join(map(repr, row[:20]))
        message = f"{where}: no column {fields[0]!r} among {columns}"
        raise DataError(
            message, f"name the column of the text, as in --text-field {shell_word(row[-1])}"
        )
    refuse_repeated(row, where)
    return row


def refuse_repeated(columns: Sequence[str], where: str) -> None:
    """Raise DataError for two columns of one name: only one of them could be kept."""
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: two columns have the name {repeated!r}", "rename one of them")
