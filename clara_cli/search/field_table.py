"""Passages' fields by column, so that a filter is asked of every different value once instead of
every passage.

A column lists the different values of one field and the number of each passage's in that list.
Filters are those of `search.where`. Letters: N passages, V different values.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
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
ABSENT = -1  # the number of a value that is not there
_FORM = ("clara-fields", 1)
Record = Mapping[str, Any]  # a passage's fields, values as JSON has them


@dataclass(frozen=True)
class Column:
    """One field: the number of every passage's value, and the values as a list in JSON."""

    numbers_N: np.ndarray
    json: bytes
    where: str = "fields"

    @cached_property
    def values(self) -> list[Any]:
        """The different values. Raises ArtefactError where they are damaged."""
        try:
            values = parse(self.json)
        except ValueError as error:
            raise ArtefactError(f"{self.where}: values that are not JSON", REBUILD) from error
        if not isinstance(values, list) or self.numbers_N.max(initial=ABSENT) >= len(values):
            raise ArtefactError(f"{self.where}: numbers of values that it does not list", REBUILD)
        return values

    @property
    def is_used(self) -> bool:
        """Whether some passage has the field."""
        return bool((self.numbers_N > ABSENT).any())


class FieldTable:
    """The fields of passages; row r is the r-th record given to `build`."""

    def __init__(self, columns: dict[str, Column], rows: int) -> None:
        self._columns, self._rows = columns, rows

    @classmethod
    def build(cls, records: Iterable[Record]) -> FieldTable:
        """Number the values of every field of every record."""
        return cls._extending({}, {}, 0, records)

    def extended(self, records: Iterable[Record]) -> FieldTable:
        """The table with more records behind those it has."""
        listed = {
            name: {_key(value): number for number, value in enumerate(column.values)}
            for name, column in self._columns.items()
        }
        numbers = {
            name: array("i", column.numbers_N.tolist()) for name, column in self._columns.items()
        }
        return self._extending(listed, numbers, len(self), records)

    @classmethod
    def _extending(
        cls,
        listed: dict[str, dict[Any, int]],
        numbers: dict[str, array[int]],
        rows: int,
        records: Iterable[Record],
    ) -> FieldTable:
        for record in records:
            for name, value in record.items():
                column = numbers.setdefault(name, array("i"))
                column.extend([ABSENT] * (rows - len(column)))  # those before had none
                values = listed.setdefault(name, {})
                column.append(values.setdefault(_key(value), len(values)))
            rows += 1
        columns = {}
        for name, column in numbers.items():
            column.extend([ABSENT] * (rows - len(column)))
            texts = (key[0] if isinstance(key, tuple) else _json(key) for key in listed[name])
            text = f"[{','.join(texts)}]".encode()
            columns[name] = Column(np.array(column, np.int32), text)
        return cls(columns, rows)

    def kept(self, rows: np.ndarray) -> FieldTable:
        """The table of some of its records alone, sorted rows: they are numbered anew."""
        columns = {
            name: Column(column.numbers_N[rows], column.json, column.where)
            for name, column in self._columns.items()
        }
        return FieldTable(columns, len(rows))

    def placed(self, rows: np.ndarray, total: int) -> FieldTable:
        """The table with its records at these sorted rows of `total`; the others have no fields."""
        columns = {}
        for name, column in self._columns.items():
            numbers_N = np.full(total, ABSENT, np.int32)
            numbers_N[rows] = column.numbers_N
            columns[name] = Column(numbers_N, column.json, column.where)
        return FieldTable(columns, total)

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> set[str]:
        """Every field that some record has."""
        return {name for name, column in self._columns.items() if column.is_used}

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
        column = self._columns.get(test.field)
        if column is None:
            return np.full(len(self), test.matches({}))
        passing = [test.matches({test.field: value}) for value in column.values]
        # the last is that of no value, which ABSENT is the number of
        return np.array([*passing, test.matches({})])[column.numbers_N]

    def save(self, root: Path, corpus_sha256: str = "", place: str = "") -> int:
        """Put the table in place of the one at `root / place`, at once; returns its bytes. Raises
        ClaraError; then the one before stays."""
        import torch

        tensors = {}
        for number, column in enumerate(self._columns.values()):
            tensors[f"numbers.{number}"] = torch.from_numpy(column.numbers_N)
            tensors[f"values.{number}"] = torch.frombuffer(
                bytearray(column.json), dtype=torch.uint8
            )

        def fill(folder: Path) -> dict[str, Any]:
            encode = partial(save_tensors, tensors=tensors)
            return {
                "format": _FORM[0], "version": _FORM[1], "rows": len(self),
                "corpus_sha256": corpus_sha256, "names": list(self._columns),
                "tables": versions.save_file(folder, TABLES, encode),
            }  # fmt: skip

        return versions.publish(root, place, SIDECAR, (TABLES,), fill)

    @classmethod
    def load(cls, folder: Path, states: Mapping[int, str]) -> FieldTable | None:
        """The saved table of a corpus that had these `states` (fingerprints by rows), None where
        there is none of this version. Raises ArtefactError where it is damaged or of another
        corpus."""

        def use(version: Version) -> FieldTable:
            rows = refuse_other_corpus(version.fields, states)
            names = version.fields.list_of("names", str)
            path = version.file("tables", TABLES)
            return cls(_columns(path, names, rows), rows)

        return versions.read(folder, SIDECAR, _FORM, REBUILD, use)


def _columns(path: Path, names: Sequence[str], rows: int) -> dict[str, Column]:
    """The columns of a file. Raises ArtefactError where they are not those of so many rows."""
    import torch

    nothing = torch.empty(0)
    stored = read_tensors(path, REBUILD)
    columns = {}
    for number, name in enumerate(names):
        numbers, text = (stored.get(f"{kind}.{number}", nothing) for kind in ("numbers", "values"))
        what = f"{path}: column {name[:60]!r}"
        kinds = (numbers.dtype, text.dtype, numbers.shape, text.ndim)
        if kinds != (torch.int32, torch.uint8, (rows,), 1):
            raise ArtefactError(f"{what}: not numbers of {rows} passages and values", REBUILD)
        if int(numbers.numpy().min(initial=ABSENT)) < ABSENT:
            raise ArtefactError(f"{what}: numbers below {ABSENT}", REBUILD)
        columns[name] = Column(numbers.numpy(), text.numpy().tobytes(), what)
    return columns


def _key(value: Any) -> Any:
    """What tells values apart: text is itself, others are what JSON writes, so that 1, 1.0 and true
    are three."""
    return value if isinstance(value, str) else (_json(value),)


def _json(value: Any) -> str:
    return json.dumps(value)  # in ASCII: text may have halves of a character
