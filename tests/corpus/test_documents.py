"""Documents in: every accepted form, every refusal with its place, and bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.corpus import sources
from clara_cli.corpus.documents import read_documents
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Document


def read(*inputs: Path | str, skip: bool = False) -> tuple[list[Document], list[str]]:
    bad: list[str] = []
    return list(read_documents([str(item) for item in inputs], skip, bad.append)), bad


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
    assert (second.id, second.text, second.metadata) == ("c.jsonl:3", "from contents", {})
    assert (third.id, third.text, third.title) == ("c.jsonl:4", "", "")


@pytest.mark.parametrize(
    "name", ["c.jsonl.gz", "c.jsonl.xz", "c.jsonl", "c.ndjson", "odd", "c.json"]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_compression_is_told_by_content(tmp_path: Path, name: str, pack) -> None:
    (tmp_path / name).write_bytes(pack(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}'))
    documents, _ = read(tmp_path / name)
    assert [d.text for d in documents] == ["a", "b"]
    assert [d.id for d in documents] == [f"{name}:1", f"{name}:2"]


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
    (tmp_path / "t.txt").write_bytes(b"abc\xe9")
    with pytest.raises(DataError, match=r"t\.txt: not UTF-8: byte 0xe9 at 3"):
        read(tmp_path / "t.txt")


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
        ("m.jsonl:1", "", "M"),
        ("sub/b.md", "b", "# B\r\n"),
    ]
    with pytest.raises(UsageError, match="a compressed corpus, not documents"):
        read(corpus)


def test_a_single_text_file_has_its_path_as_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("n").mkdir()
    Path("n/note.v2.txt").write_bytes(b"\xef\xbb\xbftext")
    assert read("n/note.v2.txt")[0] == [
        Document("n/note.v2.txt", "text", "note.v2", {}, "n/note.v2.txt")
    ]


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


def test_stdin(monkeypatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(b'{"text": "a"}\n')))

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert read("-")[0] == [Document("stdin:1", "a", "", {}, "<stdin>:1")]
    with pytest.raises(UsageError, match="- is given twice"):
        read("-", "-")


def test_paths_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(UsageError, match="no such file or folder"):
        read_documents([str(good), str(tmp_path / "gone.jsonl")], False, print)
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"a\.docx: not a type that is read"):
        read(tmp_path / "a.docx")
    (tmp_path / "array.json").write_text('[{"text": "a"}]')
    with pytest.raises(UsageError, match="a JSON array"):
        read(tmp_path / "array.json")


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no documents in"):
        read(tmp_path / "e.jsonl")
    with pytest.raises(DataError, match="no documents in"):
        read(tmp_path / "e.jsonl", skip=True)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_truncated_compression(tmp_path: Path, pack) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(1000))
    (tmp_path / "c.jsonl.gz").write_bytes(pack(lines)[:-20])
    with pytest.raises(DataError, match="damaged, it cannot be read to its end"):
        read(tmp_path / "c.jsonl.gz", skip=True)


def test_a_gigantic_line_is_refused_in_little_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b'{"text": "before"}\n{"text": "')
        for _ in range(64):
            stream.write(bytes(2**20))
        stream.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, bad = read(path, skip=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["before", "after"]
    assert bad == [f"{path}:2: a line longer than 1,048,576 bytes"]
    assert peak < 8 * 2**20


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with path.open("w") as stream:
        for number in range(20_000):
            stream.write(json.dumps({"text": f"{number} " * 200}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in read_documents([str(path)], False, print))
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
