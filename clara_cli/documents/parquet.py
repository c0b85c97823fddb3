"""Rows of Parquet files as records. Read in a process of its own (`reader_process`): a file of
a few bytes may say that it holds gigabytes.

Knows columns and their types; knows nothing of what a record means.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any

from clara_cli.documents.listing import Source
from clara_cli.documents.sources import shortened
from clara_cli.documents.tables import refuse_repeated
from clara_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFER = 2**20
_BATCH_ROWS, _BATCH_BYTES = 256, 2**24
_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

Convert = Callable[[Any], Any]


def rows(
    source: Source, stream: IO[bytes], note: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, in small batches. Dates, times, durations, UUIDs and decimals
    become strings, not-a-number null; bytes (images, sound) are left out, in whatever they lie,
    and `note` is called with the columns that nothing is left of.

    Raises:
        DataError: for a file that is not Parquet, damaged, without the text's column, or with two
            columns of one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        refuse_repeated(table.schema_arrow.names, source.name)
        kept = {f.name: convert for f in table.schema_arrow if (convert := converter(f.type))}
        if not set(source.fields) & set(kept):
            columns = ", ".join(kept)
            message = f"{source.name}: no string column {source.fields[0]!r} among {columns}"
            named = f"as in --text-field {shlex.quote(list(kept)[-1])}" if kept else "if it has one"
            raise DataError(message, f"name the column of the text, {named}")
        if left_out := [f for f in table.schema_arrow if f.name not in kept]:
            named = ", ".join(f"{field.name} ({field.type})" for field in left_out)
            note(f"{source.name}: columns left out, of bytes: {shortened(named, 200)[1:-1]}")
        for batch in _batches(table, list(kept)):
            yield from _records(batch, kept)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, MemoryError):
            raise
        message = f"{source.name}: not readable as Parquet: {shortened(str(error), 120)}"
        raise DataError(message, "write the file again") from error


def _batches(table: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The table, a few megabytes at a time; row by row where rows are larger than it says."""
    metadata = table.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    stored = sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows)
    rows_a_batch = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, stored)))
    done = 0
    try:
        for batch in table.iter_batches(rows_a_batch, columns=columns, use_threads=False):
            yield batch
            done += batch.num_rows
    except MemoryError:  # a dictionary makes long rows of short ones
        if rows_a_batch == 1:
            raise
        singly = table.iter_batches(1, columns=columns, use_threads=False)
        for number, batch in enumerate(singly):
            if number >= done:
                yield batch


def _records(batch: pa.RecordBatch, kept: dict[str, Convert]) -> Iterator[dict[str, Any]]:
    columns = [batch.column(name) for name in kept]
    for row in range(batch.num_rows):
        pairs = zip(kept.items(), columns, strict=True)
        yield {name: convert(column[row]) for (name, convert), column in pairs}


def converter(kind: pa.DataType) -> Convert | None:
    """What makes a scalar of this type a value that JSON has; None for bytes, and for a type that
    nothing is left of without them."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.UuidType):
        return lambda scalar: scalar.as_py() and str(scalar.as_py())
    if isinstance(kind, pa.BaseExtensionType):
        return _stored_converter(kind.storage_type)
    if types.is_dictionary(kind):
        return _stored_converter(kind.value_type)
    if _is_bytes(kind):
        return None
    if types.is_struct(kind):
        return _struct_converter(kind)
    if types.is_map(kind):
        return _map_converter(kind)
    if types.is_nested(kind):
        return _list_converter(kind.value_type)
    if types.is_temporal(kind):
        return _temporal_converter(kind)
    return lambda scalar: _plain(scalar.as_py())


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    views = getattr(types, "is_binary_view", lambda kind: False)
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, views)
    return any(is_of(kind) for is_of in tests)


def _stored_converter(kind: Any) -> Convert | None:
    """Of a scalar that stands for another one, of this type."""
    inner = converter(kind)
    return None if inner is None else lambda s: inner(s.value) if s.is_valid else None


def _list_converter(kind: Any) -> Convert | None:
    inner = converter(kind)
    return None if inner is None else lambda s: [*map(inner, s.values)] if s.is_valid else None


def _struct_converter(kind: Any) -> Convert | None:
    fields = {field.name: convert for field in kind if (convert := converter(field.type))}
    if not fields:
        return None
    return lambda scalar: (
        {name: convert(scalar[name]) for name, convert in fields.items()}
        if scalar.is_valid
        else None
    )


def _map_converter(kind: Any) -> Convert | None:
    keys, items = converter(kind.key_type), converter(kind.item_type)
    if keys is None or items is None:
        return None

    def mapping(scalar: Any) -> dict[str, Any] | None:
        if not scalar.is_valid:
            return None
        return {str(keys(entry["key"])): items(entry["value"]) for entry in scalar.values}

    return mapping


def _temporal_converter(kind: Any) -> Convert:
    """Dates, times and spans as Python writes them; nanoseconds keep their digits, and years
    that Python lacks are counted from 1970."""
    import pyarrow as pa

    if pa.types.is_duration(kind):
        ticks = _TICKS[kind.unit]
        return lambda scalar: _duration(scalar.value, ticks) if scalar.is_valid else None

    def text(scalar: Any) -> str | None:
        try:
            exact = getattr(kind, "unit", "") != "ns"
            return _plain(scalar.as_py()) if exact else scalar.cast(pa.string()).as_py()
        except (ValueError, OverflowError):
            return f"{scalar.value} {getattr(kind, 'unit', 'days')} since 1970"

    return text


def _duration(value: int, ticks: int) -> str:
    """A span as `1 day, 2:03:04.000005`, with nine digits where its nanoseconds are not zero."""
    seconds, rest = divmod(value, ticks)
    try:
        text = str(timedelta(seconds=seconds))
    except OverflowError:
        return f"{value / ticks} s"
    nanoseconds = rest * (1_000_000_000 // ticks)
    digits = f"{nanoseconds:09}" if nanoseconds % 1000 else f"{nanoseconds // 1000:06}"
    return f"{text}.{digits}" if nanoseconds else text


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
