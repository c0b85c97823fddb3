"""Passages' fields by column, so that a filter is asked of every different value once instead of
every passage.

A column lists the different values of one field, and for each passage that has the field the number
of its value. All of passages' metadata stands in the table; only the columns that a filter names
are looked at. Filters are those of `search.where`. Letters: N passages, C columns, P passages with
a field, V different values of it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from clara_cli.errors import ArtefactError
from clara_cli.search.errors import REBUILD, refuse_other_corpus
from clara_cli.search.where import AllOf, AnyOf, Compare, Filter, Not
from clara_cli.storage import versions
from clara_cli.storage.artefact import parse
from clara_cli.storage.tensors import read_tensors, save_tensors
from clara_cli.storage.versions import Version

SIDECAR, TABLES = "fields.json", "fields.safetensors"
_FORM = ("clara-fields", 1)
# of all columns, one after the other: rows_P and numbers_P, column c's at starts[c]:starts[c + 1];
# its values as a JSON list in `values`, from value_starts[c] on; the names of all in `names`
_DTYPES = {"rows": "int32", "numbers": "int32", "starts": "int64", "value_starts": "int64"}
_TEXTS = {"values": "uint8", "names": "uint8"}

Record = Mapping[str, Any]  # a passage's fields, values as JSON has them


@dataclass(frozen=True)
class Column:
    """One field: the rows that have it, in order, the number of each one's value, and the values as
    a list in JSON, which is decoded when it is first asked for. `place` names it in errors."""

    rows_P: np.ndarray
    numbers_P: np.ndarray
    values_json: np.ndarray
    place: str = "fields"

    @cached_property
    def values(self) -> Sequence[Any]:
        """The different values. Raises ArtefactError where they are damaged."""
        values = _parsed(self.values_json, self.place)
        numbers_P = self.numbers_P
        if len(numbers_P) and not 0 <= numbers_P.min() <= numbers_P.max() < len(values):
            raise ArtefactError(f"{self.place}: numbers of values that it does not list", REBUILD)
        return values


@dataclass
class _GrowingColumn:
    """A column while records come: each different value has a number, by its JSON."""

    numbers_by_json: dict[str, int] = field(default_factory=dict)
    rows: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[int] = field(default_factory=lambda: array("i"))

    @classmethod
    def of(cls, column: Column) -> _GrowingColumn:
        """One that goes on from a column."""
        numbers_by_json = {_json(value): number for number, value in enumerate(column.values)}
        rows, numbers = column.rows_P.tolist(), column.numbers_P.tolist()
        return cls(numbers_by_json, array("i", rows), array("i", numbers))

    def add(self, row: int, value: Any) -> None:
        """The value of one more row."""
        known = self.numbers_by_json
        self.rows.append(row)
        self.numbers.append(known.setdefault(_json(value), len(known)))

    def finished(self) -> Column:
        """The column of what was added."""
        listed = _bytes(f"[{','.join(self.numbers_by_json)}]")
        return Column(np.array(self.rows, np.int32), np.array(self.numbers, np.int32), listed)


class FieldTable:
    """The fields of passages; row r is the r-th record given to `build`."""

    def __init__(self, columns: dict[str, Column], rows: int) -> None:
        self._columns, self._rows = columns, rows

    @classmethod
    def build(cls, records: Iterable[Record]) -> FieldTable:
        """Number the values of every field of every record."""
        return cls({}, 0).extended(records)

    def extended(self, records: Iterable[Record]) -> FieldTable:
        """The table with more records behind those it has."""
        columns = {name: _GrowingColumn.of(column) for name, column in self._columns.items()}
        rows = len(self)
        for record in records:
            for name, value in record.items():
                if name not in columns:
                    columns[name] = _GrowingColumn()
                columns[name].add(rows, value)
            rows += 1
        return FieldTable({name: column.finished() for name, column in columns.items()}, rows)

    def kept(self, rows: np.ndarray) -> FieldTable:
        """The table of some of its records alone, sorted rows: they are numbered anew."""
        new_N = np.full(len(self), -1, np.int32)
        new_N[rows] = np.arange(len(rows))
        columns = {}
        for name, column in self._columns.items():
            rows_P = new_N[column.rows_P]
            kept_P = rows_P >= 0
            if kept_P.any():
                pairs = (rows_P[kept_P], column.numbers_P[kept_P])
                columns[name] = Column(*pairs, column.values_json, column.place)
        return FieldTable(columns, len(rows))

    def placed(self, rows: np.ndarray, total: int) -> FieldTable:
        """The table with its records at these sorted rows of `total`; the others have no fields."""
        columns = {}
        for name, column in self._columns.items():
            rows_P = rows[column.rows_P].astype(np.int32)
            columns[name] = Column(rows_P, column.numbers_P, column.values_json, column.place)
        return FieldTable(columns, total)

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> set[str]:
        """Every field that some record has."""
        return set(self._columns)

    def rows_where(self, wanted: Filter) -> list[int]:
        """The rows that fulfil a filter, in order."""
        return [int(row) for row in np.flatnonzero(self._fulfilling(wanted))]

    def _fulfilling(self, wanted: Filter) -> np.ndarray:
        """Which records do: bool (N)."""
        if isinstance(wanted, Not):
            return ~self._fulfilling(wanted.part)
        if isinstance(wanted, AllOf | AnyOf):
            join = np.logical_and if isinstance(wanted, AllOf) else np.logical_or
            return reduce(join, map(self._fulfilling, wanted.parts))
        return self._passing(wanted)

    def _passing(self, test: Compare) -> np.ndarray:
        """Which records pass one test: bool (N)."""
        passing_N = np.full(len(self), test.matches({}))
        column = self._columns.get(test.field)
        if column is not None:
            passing_V = np.array([test.matches({test.field: value}) for value in column.values])
            passing_N[column.rows_P] = passing_V[column.numbers_P]
        return passing_N

    def save(self, root: Path, corpus_sha256: str = "", place: str = "") -> int:
        """Put the table in place of the one at `root / place`, at once; returns its bytes. Raises
        ClaraError; then the one before stays."""
        tables = self._tables()

        def fill(folder: Path) -> dict[str, Any]:
            encode = partial(save_tensors, tensors=tables)
            return {
                "format": _FORM[0], "version": _FORM[1], "rows": len(self),
                "corpus_sha256": corpus_sha256,
                "tables": versions.save_file(folder, TABLES, encode),
            }  # fmt: skip

        return versions.publish(root, place, SIDECAR, (TABLES,), fill)

    def _tables(self) -> dict[str, Any]:
        """All columns in one tensor of each kind."""
        import torch

        columns = list(self._columns.values())
        none = np.empty(0, np.int32)
        tables = {
            "rows": np.concatenate([none, *(column.rows_P for column in columns)]),
            "numbers": np.concatenate([none, *(column.numbers_P for column in columns)]),
            "starts": _starts(len(column.rows_P) for column in columns),
            "values": np.concatenate([_bytes(""), *(column.values_json for column in columns)]),
            "value_starts": _starts(len(column.values_json) for column in columns),
            "names": _bytes(_json(list(self._columns))),
        }
        return {name: torch.from_numpy(table) for name, table in tables.items()}

    @classmethod
    def load(cls, folder: Path, states: Mapping[int, str]) -> FieldTable | None:
        """The saved table of a corpus that had these `states` (fingerprints by rows), None where
        there is none of this version. Raises ArtefactError where it is damaged or of another
        corpus."""

        def use(version: Version) -> FieldTable:
            rows = refuse_other_corpus(version.fields, states)
            path = version.file("tables", TABLES)
            tables = read_tensors(path, REBUILD)
            for name, dtype in (_DTYPES | _TEXTS).items():
                tensor = tables.get(name)
                if tensor is None or str(tensor.dtype) != f"torch.{dtype}" or tensor.ndim != 1:
                    raise ArtefactError(f"{path}: no tensor {name!r} of {dtype}", REBUILD)
            arrays = {name: tensor.numpy() for name, tensor in tables.items()}
            return cls(_columns(path, arrays, rows), rows)

        return versions.read(folder, SIDECAR, _FORM, REBUILD, use)


def _columns(path: Path, tables: Mapping[str, np.ndarray], rows: int) -> dict[str, Column]:
    """The columns of a file. Raises ArtefactError where they are not those of so many rows."""
    names = _parsed(tables["names"], f"{path}: names")
    starts, value_starts = tables["starts"], tables["value_starts"]
    whole = (
        all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names) == len(starts) - 1 == len(value_starts) - 1
        and _cuts(starts, len(tables["rows"]))
        and _cuts(value_starts, len(tables["values"]))
        and len(tables["numbers"]) == len(tables["rows"])
        and (tables["rows"] >= 0).all()
        and (tables["rows"] < rows).all()
    )
    if not whole:
        raise ArtefactError(f"{path}: no columns of {rows} passages", REBUILD)
    columns = {}
    for number, name in enumerate(names):
        pairs = slice(starts[number], starts[number + 1])
        values = slice(value_starts[number], value_starts[number + 1])
        columns[name] = Column(
            tables["rows"][pairs],
            tables["numbers"][pairs],
            tables["values"][values],
            f"{path}: column {name[:60]!r}",
        )
    return columns


def _cuts(starts: np.ndarray, end: int) -> bool:
    """Whether starts go up from 0 to the end."""
    return bool(starts[0] == 0 and starts[-1] == end and (np.diff(starts) >= 0).all())


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.array(list(accumulate(lengths, initial=0)), np.int64)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(bytearray(text.encode()), np.uint8)


def _json(value: Any) -> str:
    """What tells values apart, 1, 1.0, true and "1" too; in ASCII, since text may have halves of a
    character."""
    return json.dumps(value)


def _parsed(data: np.ndarray, place: str) -> Sequence[Any]:
    """A list in JSON. Raises ArtefactError where it is none."""
    try:
        values = parse(data.tobytes())
    except ValueError as error:
        raise ArtefactError(f"{place}: not JSON", REBUILD) from error
    if not isinstance(values, list):
        raise ArtefactError(f"{place}: not a list", REBUILD)
    return values
