"""Documents in: every accepted form, every refusal with its place, and bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import re
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.config import DocumentOptions
from clara_cli.documents.documents import read_documents
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.records import Document


def read(
    *inputs: Path | str, skip: bool = False, **options: Any
) -> tuple[list[Document], list[str]]:
    bad: list[str] = []
    how = DocumentOptions(skip_bad=skip, **options)
    return list(read_documents([str(item) for item in inputs], how, bad.append, print)), bad


def jsonl(path: Path, *records: object) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_fields_ids_and_metadata(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "c.jsonl",
        {"text": "  kept\n exactly ", "id": 7, "title": "T", "year": 1999, "qas": [1]},
        "",
        {"contents": "from contents"},
        {"text": "", "id": None, "title": None},
    )
    first, second, third = read(path)[0]
    assert first == Document("7", "  kept\n exactly ", "T", {"year": 1999}, f"{path}:1")
    assert (second.text, second.metadata) == ("from contents", {})
    assert (third.text, third.title) == ("", "")
    assert re.fullmatch(r"c\.jsonl#[0-9a-f]{16}", second.id) and second.id != third.id


@pytest.mark.parametrize(
    "name", ["c.jsonl.gz", "c.jsonl.xz", "c.jsonl", "c.ndjson", "odd", "c.json"]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_compression_is_told_by_content(tmp_path: Path, name: str, pack) -> None:
    (tmp_path / name).write_bytes(pack(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}'))
    documents, _ = read(tmp_path / name)
    assert [d.text for d in documents] == ["a", "b"]
    assert [d.source for d in documents] == [f"{tmp_path / name}:{n}" for n in (1, 2)]
    assert all(d.id.startswith(f"{name}#") for d in documents)


BAD = {
    "{": "not JSON",
    "[1]": "not a JSON object: [1]",
    '"x"': "not a JSON object: 'x'",
    '{"title": "t"}': "no text (nor contents); its fields: 'title'",
    '{"text": 5}': "text is 5, not a string",
    '{"text": null}': "no text",
    '{"contents": ["a"]}': "contents is ['a'], not a string",
    '{"text": "a", "id": 1.5}': "id is 1.5",
    '{"text": "a", "id": true}': "id is True",
    '{"text": "a", "title": 3}': "title is 3",
    '{"text": "a", "x": NaN}': "NaN is not a JSON number",
    '{"text": "a", "x": 1e999}': "cannot be kept",
    '{"text": "\\ud83d"}': "text has the lone surrogate \\ud83d",
    '{"text": "a", "x": "\\ud83d"}': "lone surrogate",
    '{"text": "a", "id": "same"}': "the id 'same' was used before",
    "[" * 100_000: "nested too deeply",
    '{"text": "a", "x": ' + "9" * 5000 + "}": "not JSON",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:24])
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, line: str) -> None:
    path = jsonl(tmp_path / "c.jsonl", {"text": "ok", "id": "same"}, line, {"text": "last"})
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert BAD[line] in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 200
    documents, bad = read(path, skip=True)
    assert [d.text for d in documents] == ["ok", "last"]
    assert bad == [caught.value.message]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: not UTF-8: byte 0xff at 10"):
        read(path)
    (tmp_path / "t.txt").write_bytes(b"abc\n\nab\xe9\0")
    with pytest.raises(DataError, match=r"t\.txt: line 3: not UTF-8: byte 0xe9 at 2") as caught:
        read(tmp_path / "t.txt")
    assert caught.value.hint.startswith("save the file as UTF-8")


def test_duplicate_ids_across_files(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "a.jsonl", {"text": "x", "id": "1"})
    two = jsonl(tmp_path / "b.jsonl", {"text": "y", "id": 1})
    with pytest.raises(DataError, match=r"b\.jsonl:1: the id '1' was used before"):
        read(one, two)
    documents, bad = read(one, two, skip=True)
    assert len(documents) == 1 and len(bad) == 1


def test_folders_are_walked_in_order_without_corpora(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("# B\r\n", newline="")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "z.bin").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_text("no")
    jsonl(tmp_path / "m.jsonl", {"text": "M"})
    corpus = tmp_path / "old.clara"
    (corpus / "shards").mkdir(parents=True)
    (corpus / "manifest.json").write_text("{}")
    jsonl(corpus / "p.jsonl", {"text": "no"})
    documents, _ = read(tmp_path)
    assert [(d.id, d.title, d.text) for d in documents] == [
        ("a.txt", "a", "A"),
        (documents[1].id, "", "M"),
        ("sub/b.md", "B", "# B\r\n"),
    ]
    with pytest.raises(UsageError, match="a compressed corpus, not documents") as caught:
        read(corpus)
    assert f"--corpus {corpus}" in caught.value.hint
    with pytest.raises(UsageError, match="an empty name among the files"):
        read("")


def test_a_single_text_file_has_the_same_id_from_any_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n/note.v2.txt").write_bytes(b"\xef\xbb\xbftext")
    monkeypatch.chdir(tmp_path)
    wanted = Document("note.v2.txt", "text", "note.v2", {}, "n/note.v2.txt")
    assert read("n/note.v2.txt")[0] == [wanted]
    assert read(tmp_path / "n/note.v2.txt")[0][0].id == wanted.id == read("n")[0][0].id
    (tmp_path / "note.v2.txt").write_text("another")
    assert [d.id for d in read("n/note.v2.txt", "note.v2.txt")[0]] == [
        "n/note.v2.txt",
        "note.v2.txt",
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=8),
    st.integers(0, 8),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_a_line_put_between_others_changes_no_other_id(tmp_path_factory, texts, at, more) -> None:
    path = tmp_path_factory.mktemp("ids") / "c.jsonl"
    before = [d.id for d in read(jsonl(path, *({"text": text} for text in texts)))[0]]
    texts.insert(at, f"new {more}")
    after = [d.id for d in read(jsonl(path, *({"text": text} for text in texts)))[0]]
    del after[min(at, len(texts) - 1)]
    assert after == before and len(set(before)) == len(before)


def test_csv_with_newlines_in_fields_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    rows = b'id,text,year\n1,"two\r\nlines ""quoted""",1999\n2,short\n3,"a\xff",2\n\n4,last,3\n'
    path.write_bytes(rows)
    documents, bad = read(path, skip=True)
    assert [(d.id, d.text) for d in documents] == [("1", 'two\r\nlines "quoted"'), ("4", "last")]
    assert documents[0].metadata == {"year": "1999"}
    assert bad == [
        f"{path}:4: 2 fields under a header of 3",
        f"{path}:5: text is not UTF-8: byte 0xff",
    ]
    (tmp_path / "h.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"h\.csv:1: no column 'text' among 'a', 'b'"):
        read(tmp_path / "h.csv")
    long = tmp_path / "long.csv"
    with long.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], ["x" * 300_000]])
    assert len(read(long)[0][0].text) == 300_000


def test_parquet(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": ["a", None, "c"],
            "when": [datetime.date(2020, 1, 2)] * 3,
            "score": [1.5, 2.0, float("nan")],
            "image": [b"\0"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    documents, bad = read(tmp_path / "p.parquet", skip=True)
    assert [(d.id, d.text) for d in documents] == [("1", "a"), ("3", "c")]
    assert documents[1].metadata == {"when": "2020-01-02", "score": None}
    assert bad == [f"{tmp_path / 'p.parquet'}:2: no text (nor contents); its fields: "
                   "'id, text, when, score'"]  # fmt: skip
    (tmp_path / "broken.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read(tmp_path / "broken.parquet")


def test_parquet_of_one_huge_row_group_is_streamed(tmp_path: Path, monkeypatch) -> None:
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq

    from clara_cli.documents import documents

    texts = pa.table({"text": [random.Random(n).randbytes(1000).hex() for n in range(12_000)]})
    plain = {"compression": None, "use_dictionary": False}
    pq.write_table(texts, tmp_path / "p.parquet", row_group_size=10**9, **plain)
    monkeypatch.setattr(documents, "ROW_MEMORY", 16)  # MiB, where a record is at most one
    assert len(read(tmp_path / "p.parquet", max_record_mib=1)[0]) == 12_000  # the file has 24 MB


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_the_text_can_be_in_another_field(tmp_path: Path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    path, record = tmp_path / f"a.{form}", {"id": "1", "context": "the text", "text": "not this"}
    if form == "jsonl":
        jsonl(path, record)
    else:
        table = pa.table({name: [value] for name, value in record.items()})
        (pc.write_csv if form == "csv" else pq.write_table)(table, path)
    (document,) = read_documents([str(path)], DocumentOptions(text_field="context"), print, print)
    assert (document.text, document.metadata) == ("the text", {"text": "not this"})
    with pytest.raises(DataError, match=r"no (string )?(column )?'?body") as caught:
        list(read_documents([str(path)], DocumentOptions(text_field="body"), print, print))
    assert "a." + form in caught.value.message


def test_how_far_a_reading_is(tmp_path: Path, monkeypatch) -> None:
    records = [{"text": f"{n} " * 2000} for n in range(200)]
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl(tmp_path / "a.jsonl", *records).read_bytes()))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.xz"):
        reading = read_documents([str(tmp_path / name)], DocumentOptions(), print, print)
        shares = [reading.fraction for _ in reading]
        assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] <= 1
        assert shares[-1] > 0.99
    with packed.open("rb") as stream:  # clara compress - < b.jsonl.gz
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        reading = read_documents(["-"], DocumentOptions(), print, print)
        redirected = [reading.fraction for _ in reading]
    assert redirected == sorted(redirected) and 0 < redirected[0] and redirected[-1] > 0.99


def test_how_far_a_reading_of_a_pipe_is_nobody_knows(tmp_path: Path, monkeypatch) -> None:
    known = jsonl(tmp_path / "a.jsonl", {"text": "x"})
    reading_end, writing_end = os.pipe()
    os.write(writing_end, b'{"text": "a"}\n{"text": "b"}\n')
    os.close(writing_end)
    with os.fdopen(reading_end, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        reading = read_documents([str(known), "-"], DocumentOptions(), print, print)
        assert [reading.fraction for _ in reading] == [None] * 3


@pytest.mark.parametrize("where", ["here", "on the Hub"])
def test_how_far_a_reading_of_a_dataset_by_name_is(tmp_path: Path, monkeypatch, where) -> None:
    """Its files' sizes are asked for before the first is read."""
    import datasets
    import fsspec

    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train-0.jsonl", "train-1.jsonl"):
        jsonl(folder / name, *({"text": f"{name} {n} " * 5000} for n in range(20)))
    name = f"hf:{folder}"
    if where == "on the Hub":
        for file in folder.iterdir():
            with fsspec.open(f"memory://owner/set@main/{file.name}", "wb") as stream:
                stream.write(file.read_bytes())
        listed = [f"memory://owner/set@main/train-{n}.jsonl" for n in range(2)]
        builder = datasets.load_dataset_builder(str(folder))
        builder.config.data_files = {"train": listed}
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names: builder)
        name = "hf:owner/set"
    reading = read_documents([name], DocumentOptions(), print, print)
    assert reading.fraction == 0
    shares = [reading.fraction for _ in reading]
    assert shares == sorted(shares) and len(set(shares)) > 10
    assert 0.4 < shares[19] <= 0.55 and shares[-1] > 0.99


def test_an_id_that_is_refused_is_a_bad_record(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "x", "id": "a"}, {"text": "y", "id": "b"})
    had = {"a": "the id 'a' is in it already"}
    bad: list[str] = []
    how, refuse = DocumentOptions(skip_bad=True), lambda name: had.get(name, "")
    kept = list(read_documents([str(path)], how, bad.append, print, refuse))
    assert [d.id for d in kept] == ["b"] and bad == [f"{path}:1: the id 'a' is in it already"]
    with pytest.raises(DataError, match=r"a\.jsonl:1: the id 'a' is in it already"):
        list(read_documents([str(path)], DocumentOptions(), print, print, refuse))


# --- datasets ---


def test_a_dataset_is_streamed_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"id": "1", "text": "a", "n": 3}, {"id": "2", "text": "b", "n": 4}]
    jsonl(folder / "train.jsonl", *rows)
    jsonl(folder / "test.jsonl", {"id": "3", "text": "c", "n": 5})
    name = f"hf:{folder}"
    documents, _ = read(name)
    assert documents[1] == Document("2", "b", "", {"n": 4}, f"{folder}/train.jsonl:2")
    assert [d.id for d in read(f"{name}:test")[0]] == ["3"]
    with pytest.raises(UsageError, match="Bad split: dev"):
        read(f"{name}:dev")
    for odd in ("hf:", "hf:squad", "hf:a/b/c/d", f"hf:{tmp_path}/none"):
        with pytest.raises(UsageError, match="names no dataset|no such folder"):
            read(odd)


def test_only_plain_data_is_read(tmp_path: Path) -> None:
    """A tar of pickles is a dataset too; it is refused before anything is opened."""
    import tarfile

    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        member = tarfile.TarInfo("a.pkl")
        archive.addfile(member, io.BytesIO())
    with pytest.raises(UsageError, match="of the format 'webdataset', not read"):
        read(f"hf:{tmp_path}")


def test_a_hub_that_cannot_be_reached(monkeypatch) -> None:
    import datasets

    def offline(*args: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'rajpurkar/squad' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(ArtefactError, match="hf:rajpurkar/squad: not downloaded yet, and the Hub"):
        read("hf:rajpurkar/squad")


# --- damage and bombs ---


def test_an_xz_file_of_several_streams(tmp_path: Path) -> None:
    one, two = (lzma.compress(b'{"text": "%d"}\n' % n) for n in range(2))
    (tmp_path / "a.jsonl.xz").write_bytes(one + bytes(8) + two)
    assert [d.text for d in read(tmp_path / "a.jsonl.xz")[0]] == ["0", "1"]


def test_an_xz_file_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    """It says that its dictionary is 512 MiB, however short it is; LZMAFile would take them."""
    packed = bytearray(lzma.compress(b'{"text": "a"}\n'))
    packed[16] = 34  # in the block's header, whose sum follows
    packed[20:24] = struct.pack("<I", zlib.crc32(packed[12:20]))
    assert lzma.decompress(bytes(packed)) == b'{"text": "a"}\n'
    (tmp_path / "bomb.jsonl.xz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot be read to its end: Memory usage limit exceeded"):
        read(tmp_path / "bomb.jsonl.xz")


def test_stdin(monkeypatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(b'{"text": "a"}\n')))

    monkeypatch.setattr(sys, "stdin", Stdin)
    (document,), _ = read("-")
    assert document == Document(document.id, "a", "", {}, "<stdin>:1")
    assert document.id.startswith("stdin#")
    monkeypatch.setattr(sys, "stdin", None)  # as `<&-` leaves it
    with pytest.raises(DataError, match="<stdin>: closed"):
        read("-")
    with pytest.raises(UsageError, match="- is given twice"):
        read("-", "-")


def test_paths_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(UsageError, match="no such file or folder"):
        read_documents([str(good), str(tmp_path / "gone.jsonl")], DocumentOptions(), print, print)
    (tmp_path / "a.xyz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"a\.xyz: not a type that is read"):
        read(tmp_path / "a.xyz")


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no documents in"):
        read(tmp_path / "e.jsonl")
    with pytest.raises(DataError, match="no documents in"):
        read(tmp_path / "e.jsonl", skip=True)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_truncated_compression(tmp_path: Path, pack) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(40_000))
    (tmp_path / "c.jsonl.gz").write_bytes(pack(lines)[:-20])
    jsonl(tmp_path / "whole.jsonl", {"text": "whole"})
    with pytest.raises(DataError, match="damaged, it cannot be read to its end") as caught:
        read(tmp_path)
    documents, bad = read(tmp_path, skip=True)
    assert [d.text for d in documents[:2]] == ["0", "1"] and documents[-1].text == "whole"
    assert bad == [caught.value.message]


def test_a_gigantic_line_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b'{"text": "before"}\n{"text": "')
        for _ in range(64):
            stream.write(bytes(2**20))
        stream.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, bad = read(path, skip=True, max_record_mib=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before", "after"]
    assert bad == [f"{path}:2: a line longer than 1 MiB; --max-record-mib raises the most"]
    assert peak < 8 * 2**20


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with path.open("w") as stream:
        for number in range(20_000):
            stream.write(json.dumps({"text": f"{number} " * 200}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in read_documents([str(path)], DocumentOptions(), print, print))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 6 * 2**20  # the file has 22 MB


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b" ")), max_size=8))
def test_any_bytes_give_documents_or_reports(tmp_path_factory, garbage: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "c.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "\xc3\xa9"}', *garbage]))
    documents, bad = read(path, skip=True)
    assert documents[0].text == "é"
    assert len(documents) + len(bad) <= 1 + len(garbage)


# --- tab-separated collections ---


def test_dprs_collection_is_read_with_its_quotes_undone(shared: Path) -> None:
    (document,) = read(shared / "cases" / "dpr" / "psgs_w100.tsv")[0]
    assert (document.id, document.title) == ("1", "Elmgate")
    assert document.text == 'The mayor of "Elmgate" is Nora Velden.'


@pytest.mark.parametrize(
    ("line", "title", "metadata"),
    [
        ('7\t"Bees," she said, make "honey', "", {}),
        ('7\t"Bees," she said, make "honey\tBees', "Bees", {}),
        ('7\thttp://x.test\tBees\t"Bees," she said, make "honey', "Bees", {"url": "http://x.test"}),
    ],
)
def test_a_collection_without_a_header_is_read_as_it_stands(
    line: str, title: str, metadata: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "collection.tsv").write_text(f"{line}\n\n{line.replace('7', '8', 1)}\r\n")
    first, second = read(tmp_path / "collection.tsv")[0]
    assert (first.id, first.title, first.metadata) == ("7", title, metadata)
    assert first.text == '"Bees," she said, make "honey'
    assert (second.id, second.text, second.title) == ("8", first.text, title)
    assert second.source.endswith("collection.tsv:3")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("pid\tremark\n1\tx\n", "no column 'text' among 'pid', 'remark'"),
        ("1\ta\tb\tc\td\n", "1: 5 cells and no header"),
        ("who\t['Ann', \"Anna\"]\n", "questions with their answers, not documents"),
        ("1\tx\n2\ty\tz\n", "2: 3 cells, the first line has 2"),
        ("", "no documents"),
    ],
)
def test_what_is_no_collection_says_so(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path / "c.tsv")
    assert caught.value.hint


# --- which field is what ---


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["content", "body", "passage", "page_content"])
def test_a_text_by_another_name_is_found_and_told(tmp_path: Path, form: str, name: str) -> None:
    path = records_in(tmp_path / f"a.{form}", {"id": "1", name: "the text", "kind": "x"})
    notes: list[str] = []
    (document,) = read_documents([str(path)], DocumentOptions(), print, notes.append)
    assert (document.text, document.metadata) == ("the text", {"kind": "x"})
    assert notes == [f"{path}: the text is taken from {name!r}"]
    with pytest.raises(DataError, match="no (string column 'text'|column 'text'|text)"):
        read(path, strict_fields=True)


def test_two_fields_that_may_be_the_text_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"body": "a", "content": "b"}, {"body": "c", "content": 1})
    with pytest.raises(DataError, match=r":1: no text, which may be in 'content' or 'body'"):
        read(path)
    assert [d.text for d in read(path, skip=True)[0]] == ["c"]
    assert [d.text for d in read(path, text_field="body")[0]] == ["a", "c"]
    both = jsonl(tmp_path / "b.jsonl", {"text": "t", "body": "b"})
    assert read(both)[0][0].metadata == {"body": "b"}
    with pytest.raises(UsageError, match="--text-field and --strict-fields"):
        read(both, text_field="text", strict_fields=True)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_title_and_id_may_be_in_any_field(tmp_path: Path, form: str) -> None:
    record = {"text": "x", "id": "kept", "key": "k1", "title": "also kept", "headline": "H"}
    path = records_in(tmp_path / f"a.{form}", record)
    (document,), _ = read(path, title_field="headline", id_field="key")
    assert (document.id, document.title) == ("k1", "H")
    assert document.metadata == {"id": "kept", "title": "also kept"}
    with pytest.raises(DataError, match="no record has the field 'slug'"):
        read(path, id_field="slug")


def records_in(path: Path, *records: dict[str, str]) -> Path:
    """The same records in a file of any form."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    if path.suffix == ".jsonl":
        return jsonl(path, *records)
    table = pa.Table.from_pylist(list(records))
    (pc.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return path
