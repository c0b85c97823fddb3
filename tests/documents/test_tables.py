"""CSV, Parquet and datasets by name: what each type of column becomes, and that a file is read
the same way, given directly or by name."""

from __future__ import annotations

import csv
import datetime
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_cli.config import DocumentOptions
from clara_cli.documents.documents import read_documents
from clara_cli.errors import DataError
from clara_cli.records import Document


def read(path: Path | str) -> tuple[list[Document], list[str]]:
    notes: list[str] = []
    return list(read_documents([str(path)], DocumentOptions(), print, notes.append)), notes


def parquet(path: Path, table) -> Path:
    import pyarrow.parquet as pq

    pq.write_table(table, path)
    return path


# --- the recorded cases ---


@pytest.fixture
def cases(shared: Path) -> Path:
    return shared / "cases" / "tables"


def test_a_uuid_is_text_as_an_id_and_as_a_field(cases: Path) -> None:
    first = "00000000-0000-0000-0000-000000000001"
    assert read(cases / "uuid.parquet")[0][0].id == first
    assert read(cases / "uuid_meta.parquet")[0][0].metadata == {"uid": first}


def test_a_duration_is_text(cases: Path) -> None:
    documents, _ = read(cases / "duration.parquet")
    assert [document.metadata["d"] for document in documents] == ["1 day, 0:00:00", None]


def test_the_bytes_of_an_image_are_left_out(cases: Path) -> None:
    (document,), _ = read(cases / "image.parquet")
    assert document.metadata == {"image": {"path": "a.png"}}


def test_an_empty_id_is_none(cases: Path) -> None:
    documents, _ = read(cases / "empty_id.csv")
    assert all(document.id.startswith("empty_id.csv#") for document in documents)
    assert len({document.id for document in documents}) == 2


def test_two_columns_of_one_name_are_refused(cases: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(DataError, match=r"dup_header\.csv:1: two columns have the name 'text'"):
        read(cases / "dup_header.csv")
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(DataError, match=r"a\.parquet: two columns have the name 'text'"):
        read(parquet(tmp_path / "a.parquet", table))
    (tmp_path / "a.tsv").write_text("text\tkind\tkind\na\tb\tc\n")
    with pytest.raises(DataError, match=r"a\.tsv:1: two columns have the name 'kind'"):
        read(tmp_path / "a.tsv")


# --- every type ---


def test_what_every_type_of_column_becomes(tmp_path: Path) -> None:
    import pyarrow as pa

    moment = datetime.datetime(2024, 5, 12, 13, 14, 15)
    values = {
        "date": (pa.array([moment.date()]), "2024-05-12"),
        "seconds": (pa.array([moment], pa.timestamp("s")), "2024-05-12 13:14:15"),
        "nanos": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        "far": (pa.array([10**12], pa.timestamp("s")), "1000000000000000 ms since 1970"),
        "time": (pa.array([1], pa.time64("us")), "00:00:00.000001"),
        "span": (pa.array([1_500], pa.duration("ms")), "0:00:01.500000"),
        "nanospan": (pa.array([1], pa.duration("ns")), "0:00:00.000000001"),
        "decimal": (pa.array(["1.50"]).cast(pa.decimal128(5, 2)), "1.50"),
        "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
        "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), {"a": 1}),
        "nested": (pa.array([{"b": b"\0", "n": {"b": b"\0", "t": "x"}}]), {"n": {"t": "x"}}),
        "none": (pa.array([None], pa.struct({"a": pa.int8()})), None),
        "nan": (pa.array([float("nan")]), None),
    }
    bytes_only = {
        "image": pa.array([b"\0"]),
        "images": pa.array([[b"\0"]]),
        "inside": pa.array([{"data": b"\0"}]),
        "fixed": pa.array([b"\0\0"], pa.binary(2)),
        "by_name": pa.array([[("a", b"\0")]], pa.map_(pa.string(), pa.binary())),
    }
    columns = {"text": pa.array(["x"]), **{name: array for name, (array, _) in values.items()}}
    path = parquet(tmp_path / "a.parquet", pa.table({**columns, **bytes_only}))
    (document,), notes = read(path)
    assert document.metadata == {name: wanted for name, (_, wanted) in values.items()}
    assert len(notes) == 1 and all(f"{name} (" in notes[0] for name in bytes_only)


# --- one file, two ways ---

FIELD = st.sampled_from(["date", "n", "mixed", "title", "more"])
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.sampled_from(["2024-05-12", "2024-05-12T10:00:00Z", "07", "1e3", "true", "NaN", ""]),
    st.lists(st.one_of(st.integers(0, 9), PLAIN), max_size=2),
    st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(st.integers(), PLAIN), max_size=2),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(FIELD, VALUE, max_size=4), min_size=1, max_size=4), st.data())
def test_a_dataset_by_name_is_its_files_given_directly(tmp_path_factory, rows, data) -> None:
    form = data.draw(st.sampled_from(["jsonl", "json", "csv"]))
    folder = tmp_path_factory.mktemp("set")
    path = folder / f"train.{form}"
    records = [{"text": f"text {n}", **row} for n, row in enumerate(rows)]
    for record in records:
        if not isinstance(record.get("title"), str | None):
            record["title"] = str(record["title"])
    if form == "csv":
        names = sorted({name for record in records for name in record})
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(records)
    elif form == "json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        lines = (json.dumps(record) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8")
    try:
        assert read(f"hf:{folder}") == read(path)
    finally:
        shutil.rmtree(folder)


def test_a_mixed_column_and_an_iso_date_are_kept_as_written(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "x", "title": "T", "extra": {"a": 1}, "date": "2024-05-12"},
        {"id": "b", "text": "y", "title": "U", "extra": "words", "date": "2024-05-13T00:00:00Z"},
        {"id": "c", "text": "z", "title": "V", "extra": [1, "x"], "date": "soon"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(lines)
    documents, _ = read(f"hf:{tmp_path}")
    assert [(d.id, d.title) for d in documents] == [("a", "T"), ("b", "U"), ("c", "V")]
    metadata = [{name: row[name] for name in ("extra", "date")} for row in rows]
    assert [d.metadata for d in documents] == metadata


def test_parquet_and_text_by_name_are_the_files_themselves(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "tables").mkdir()
    (tmp_path / "texts").mkdir()
    columns = {"text": ["a", "b"], "when": [datetime.date(2024, 5, 12)] * 2, "image": [b"x"] * 2}
    path = parquet(tmp_path / "tables" / "train.parquet", pa.table(columns))
    assert read(f"hf:{tmp_path / 'tables'}") == read(path)
    (tmp_path / "texts" / "train.txt").write_text("one\ntwo\n")
    (document,), _ = read(f"hf:{tmp_path / 'texts'}")
    assert (document.id, document.text) == ("train.txt", "one\ntwo\n")
