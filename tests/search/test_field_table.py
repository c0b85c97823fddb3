"""The table of fields: it gives the rows that asking every passage gives, however it came to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.filters import ANYTHING, FILTERS, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clara_cli.errors import ArtefactError
from clara_cli.search.field_table import SIDECAR, TABLES, FieldTable
from clara_cli.search.where import Filter, named_fields, parse
from clara_cli.storage.files import sha256_file

RECORDS = st.lists(st.dictionaries(NAMES, ANYTHING, max_size=3), max_size=8)
BOOKS: list[dict[str, Any]] = [
    {"year": 2010, "tags": ["war", "sea"], "printed": True},
    {"year": "2010", "lang": "en"},
    {},
    {"year": 1.0, "printed": 1, "lang": "\ud800"},
    {"year": 1, "lang": None},
]


def by_passage(records: list[dict[str, Any]], wanted: Filter) -> list[int]:
    return [row for row, fields in enumerate(records) if wanted.matches(fields)]


@settings(max_examples=80, deadline=None)
@given(RECORDS, FILTERS, st.data())
def test_rows_are_those_of_every_passage_asked(
    records: list[dict[str, Any]], wanted: Filter, data: st.DataObject
) -> None:
    asked = st.sampled_from(list(named_fields(wanted)))
    for fields in records:  # so that the filter meets what it asks for
        fields[data.draw(asked)] = data.draw(ANYTHING)
    table = FieldTable.build(records)
    assert table.rows_where(wanted) == by_passage(records, wanted)
    assert len(table) == len(records) and table.names == {n for r in records for n in r}


@settings(max_examples=50, deadline=None)
@given(RECORDS, RECORDS, FILTERS, st.data())
def test_grown_cut_and_placed_it_is_that_of_what_is_left(
    records: list[dict[str, Any]],
    more: list[dict[str, Any]],
    wanted: Filter,
    data: st.DataObject,
) -> None:
    every = [*records, *more]
    kept = [row for row in range(len(every)) if data.draw(st.booleans())]
    rows = np.array(kept, np.int64)
    table = FieldTable.build(records).extended(more)
    assert table.rows_where(wanted) == by_passage(every, wanted)
    left = table.kept(rows)
    assert left.rows_where(wanted) == by_passage([every[row] for row in kept], wanted)
    assert left.names == {name for row in kept for name in every[row]}
    again = left.placed(rows, len(every)).kept(rows)
    assert again.rows_where(wanted) == left.rows_where(wanted)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("year=2010", [0, 1]),
        ("year='2010'", [1]),
        ("year=1", [3, 4]),
        ("printed=true", [0]),
        ("printed=1", [3]),
        ("tags=sea or not year>0", [0, 2]),
        ("missing!=x", [0, 1, 2, 3, 4]),
    ],
)
def test_stored_and_read_it_tells_values_apart(tmp_path: Path, where: str, rows: list[int]) -> None:
    assert FieldTable.build(BOOKS).save(tmp_path, "sum", "fields") > 0
    table = FieldTable.load(tmp_path / "fields", {5: "sum"})
    assert table is not None and len(table) == 5
    assert table.rows_where(parse(where)) == rows == by_passage(BOOKS, parse(where))


def test_there_is_none_where_none_was_saved(tmp_path: Path) -> None:
    assert FieldTable.load(tmp_path, {5: "sum"}) is None


def changed(folder: Path, **changes: torch.Tensor) -> None:
    """Write other tensors, with the sum that the description then needs."""
    described = json.loads((folder / SIDECAR).read_text("utf-8"))
    file = next(folder.glob(f"*/{TABLES}"))
    save_file({**load_file(file), **changes}, file)
    described["tables"]["sha256"] = sha256_file(file)
    (folder / SIDECAR).write_text(json.dumps(described), encoding="utf-8")


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def text(written: str) -> torch.Tensor:
    return torch.tensor(list(written.encode()), dtype=torch.uint8)


ONE = [{"year": 1}, {"year": 2}]  # rows 0 1, numbers 0 1, values [1,2]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("rows", int32(0), "no columns of 2 passages"),
        ("rows", int32(0, 2), "no columns of 2 passages"),
        ("rows", int32(-1, 1), "no columns of 2 passages"),
        ("rows", torch.tensor([0, 1]), "no tensor 'rows' of int32"),
        ("numbers", int32(0, 2), "numbers of values that it does not list"),
        ("numbers", int32(-1, 0), "numbers of values that it does not list"),
        ("numbers", int32(0), "no columns of 2 passages"),
        ("starts", torch.tensor([0, 3]), "no columns of 2 passages"),
        ("starts", torch.tensor([0, 0, 2]), "no columns of 2 passages"),
        ("starts", torch.tensor([], dtype=torch.int64), "no columns of 2 passages"),
        ("value_starts", torch.tensor([0, 4]), "no columns of 2 passages"),
        ("values", text("[1,2["), "not JSON"),
        ("values", text("12345"), "not a list"),
        ("names", text("[3]"), "no columns of 2 passages"),
        ("names", text('["a", "a"]'), "no columns of 2 passages"),
    ],
)
def test_numbers_that_cannot_be_are_one_error(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    FieldTable.build(ONE).save(tmp_path, "sum", "fields")
    changed(tmp_path / "fields", **{name: tensor})
    with pytest.raises(ArtefactError, match=message) as caught:
        table = FieldTable.load(tmp_path / "fields", {2: "sum"})
        assert table is not None
        table.rows_where(parse("year=1"))
    assert caught.value.hint == "build it again with clara index"


def test_names_are_stored_whatever_they_are(tmp_path: Path) -> None:
    records = [{"\ud800": 1}, {"": 2, "a b": 3}]
    FieldTable.build(records).save(tmp_path, "sum", "fields")
    table = FieldTable.load(tmp_path / "fields", {2: "sum"})
    assert table is not None and table.names == {"\ud800", "", "a b"}


def test_a_field_that_few_have_takes_what_they_have(tmp_path: Path) -> None:
    """A field of its own for each of many passages: bytes in proportion, not their square."""
    sizes = []
    for count in (1000, 4000):
        records = [{"kind": row % 9, f"attribute {row}": 1} for row in range(count)]
        sizes.append(FieldTable.build(records).save(tmp_path, "sum", f"fields{count}"))
    assert sizes[1] < 4.2 * sizes[0]
