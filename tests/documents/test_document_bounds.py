"""What one record or file may take: memory, nesting, values, time. Every input here is harmless;
the limits are lowered instead."""

from __future__ import annotations

import gc
import gzip
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clara_cli.config import DocumentOptions
from clara_cli.documents import documents, json_lines
from clara_cli.documents.documents import read_documents
from clara_cli.documents.examples import read_records
from clara_cli.documents.json_lines import MAX_DEPTH, array_items, parse_line
from clara_cli.documents.listing import Source
from clara_cli.documents.reader_process import Bounds, ReaderProcess
from clara_cli.documents.sources import MAX_LINE_BYTES, BadRecord
from clara_cli.errors import DataError

MIB = 2**20
PEAK = """
import os, re, sys, threading, time
from pathlib import Path
from clara_cli.config import DocumentOptions
from clara_cli.corpus.progress import CompressionProgress
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import read_documents
from clara_cli.errors import ClaraError
import pyarrow.parquet

def peak(process="self"):
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path(f"/proc/{process}/status").read_text())[1])

def watch():
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for child in children.read_text().split():
            try:
                peaks.append(peak(child))
            except (OSError, TypeError):  # it is gone
                pass
        time.sleep(0.005)

def tokens(text):
    return [(n, n + 1) for n in range(len(text))]

peaks, passages, documents = [0], 0, 0
before, progress = peak(), CompressionProgress(None, 1)
threading.Thread(target=watch, daemon=True).start()
try:
    options = DocumentOptions(max_record_mib=int(sys.argv[1]))
    for document in read_documents(sys.argv[2:], options, print, print):
        documents += 1
        progress.document(document)
        if not sys.argv[2].endswith("parquet"):  # each takes a while
            passages = len(split_document(document, 256, tokens, "sentences", True))
    end = f"read {passages or documents}"
except ClaraError as error:
    end = f"{int(error.code)} {error.message}"
print(end, (peak() - before) // 1024, (max(peaks) - before) // 1024)
"""


def read(*paths: Path, skip: bool = False, mib: int = 1) -> tuple[list[str], list[str]]:
    bad: list[str] = []
    options = DocumentOptions(skip_bad=skip, max_record_mib=mib)
    reading = read_documents([str(path) for path in paths], options, bad.append, bad.append)
    return [document.text for document in reading], bad


def assert_too_large(path: Path, message: str) -> None:
    """Refused, with file, limit and the option that raises it; read where it is raised."""
    with pytest.raises(DataError) as caught:
        read(path)
    said = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.message.startswith(str(path)) and message in caught.value.message
    assert "--max-record-mib" in said
    assert len(read(path, mib=4)[0]) >= 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_line_and_a_text_have_a_limit(tmp_path: Path, pack) -> None:
    (tmp_path / "a.jsonl").write_bytes(pack(json.dumps({"text": "x" * MIB}).encode()))
    assert_too_large(tmp_path / "a.jsonl", ":1: a line longer than 1 MiB")
    (tmp_path / "b.txt").write_bytes(pack(b"x" * (MIB + 1)))
    assert_too_large(tmp_path / "b.txt", ": a text longer than 1 MiB")


def test_a_quoted_field_that_never_closes_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,one\n2,"' + "a line\n" * (MIB // 6) + '"\n3,three\n')
    assert_too_large(path, "a row longer than 1 MiB")
    texts, bad = read(path, skip=True)
    assert texts == ["one"] and len(bad) == 1 and "a row longer than" in bad[0]


def test_a_row_has_so_many_cells_and_a_record_so_many_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,b\nx" + "," * 100_000 + "\n")
    with pytest.raises(DataError, match=r"a\.csv:2: more than 65,536 cells in one row"):
        read(tmp_path / "a.csv")
    values = [0] * 100_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "values": values}))
    assert_too_large(tmp_path / "a.jsonl", ":1: more than 65,536 values in one record")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": ",[{" * 100_000}))
    assert len(read(tmp_path / "b.jsonl")[0]) == 1  # inside a string they are letters


def test_nesting_and_integers_have_a_limit_everywhere(tmp_path: Path) -> None:
    for value, what in {
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1): "nested too deeply",
        "[" * 900 + "]" * 900: "nested too deeply",
        "[" * 50_000 + "]" * 50_000: "nested too deeply",
        '{"a":' * 400 + "1" + "}" * 400: "nested too deeply",
        "9" * 5000: "not JSON",
        "-" + "9" * 5000: "not JSON",
    }.items():
        (tmp_path / "a.jsonl").write_text(f'{{"text": "x", "more": {value}}}\n')
        with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{what}"):
            read(tmp_path / "a.jsonl")
        with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{what}"):
            list(read_records([str(tmp_path / "a.jsonl")], "a hint"))
    allowed = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_line(f'{{"x": {allowed}}}'.encode(), MIB)
    with pytest.raises(BadRecord):
        parse_line(f'{{"x": [{allowed}]}}'.encode(), MIB)


# --- JSON arrays ---


def test_an_array_is_read_item_by_item(tmp_path: Path, monkeypatch) -> None:
    texts = ['a "quoted" \\ one', "[{,]}", "", "é" * 200, "last"]
    items = [{"text": text, "n": [{"m": number}]} for number, text in enumerate(texts)]
    (tmp_path / "a.json").write_text(json.dumps(items, indent=2), encoding="utf-8")
    (tmp_path / "b.json").write_text("\ufeff\n " + json.dumps(items), encoding="utf-8")
    for piece in (7, 64, 2**16):
        monkeypatch.setattr(json_lines, "_PIECE", piece)
        for name in ("a.json", "b.json"):
            reading = read_documents([str(tmp_path / name)], DocumentOptions(), print, print)
            found = [(d.source, d.text, d.metadata) for d in reading]
            places = enumerate(texts)
            path = tmp_path / name
            assert found == [(f"{path}:{n + 1}", t, {"n": [{"m": n}]}) for n, t in places]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (b"[]", []),
        (b"[1, 2", [1, BadRecord]),
        (b'["a', [BadRecord]),
        (b"[1, x]", [1, BadRecord]),
        (b"[[1, [2]], {}]", [[1, [2]], {}]),
        (b'["' + b"x" * 200 + b'", 1]', [BadRecord, 1]),
    ],
)
def test_an_array_that_is_cut_or_wrong(tmp_path: Path, text: bytes, items: list) -> None:
    (tmp_path / "a").write_bytes(text)
    with (tmp_path / "a").open("rb") as stream:
        read_items = list(array_items(stream, 100))
    assert [BadRecord if isinstance(item, BadRecord) else item for item in read_items] == items


# --- Parquet, and the process that reads it ---


def table(path: Path, **columns: list) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def test_a_parquet_page_that_is_larger_than_its_bound_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "ROW_MEMORY", 8)  # MiB, where a record is at most one
    path = table(tmp_path / "a.parquet", text=["short"], other=["x" * (24 * MIB)])
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == f"{path}: cannot be read within 8 MiB of memory"
    assert "--max-record-mib" in caught.value.hint
    other = table(tmp_path / "b.parquet", text=["after"])
    texts, bad = read(path, other, skip=True)
    assert texts == ["after"] and bad == [caught.value.message]


def test_a_parquet_row_has_a_limit_and_its_neighbours_are_read(tmp_path) -> None:
    path = table(tmp_path / "a.parquet", text=["first", "x" * (MIB + 1), "last"])
    texts, bad = read(path, skip=True)
    assert texts == ["first", "last"]
    assert bad == [f"{path}:2: a row longer than 1 MiB; --max-record-mib raises the most"]


def test_a_dictionary_that_makes_long_rows_of_short_ones_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROW_MEMORY", 16)
    path = table(tmp_path / "a.parquet", text=["x" * (MIB // 2)] * 128)
    assert len(read(path)[0]) == 128


def test_a_reader_that_takes_too_long_is_ended_and_replaced(tmp_path, monkeypatch) -> None:
    path = table(tmp_path / "a.parquet", text=["x"])
    child = ReaderProcess(print)
    source = Source(path, "a.parquet", str(path), "parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not read within 0 seconds"):
        list(child.read(source, Bounds(MIB, 64 * MIB, seconds=0.0)))
    for _ in range(2):
        records = [record for record, _ in child.read(source, Bounds(MIB, 64 * MIB, 60.0))]
        assert records == [(f"{path}:1", {"text": "x"})]
        os.kill(child._child.pid, 9)  # what the next file finds
        child._child.wait()
        child.close()
    child.close()


def test_the_child_reads_what_it_is_told_and_writes_no_file(tmp_path) -> None:
    """Its limits, asked of itself."""
    script = (
        "import resource; from clara_cli.documents.reader_process import limit_memory;"
        "limit_memory(64 * 2**20); b = bytearray(32 * 2**20)\n"
        "try: bytearray(128 * 2**20); print('taken')\n"
        "except MemoryError: print('refused')\n"
        "try: open('file', 'wb', 0).write(b'x'); print('written')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    words = [sys.executable, "-c", script]
    run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.stdout.splitlines()[0] == "refused" and "written" not in run.stdout


def test_a_reading_that_is_given_up_leaves_no_process(tmp_path) -> None:
    path = table(tmp_path / "a.parquet", text=["x"] * 1000)
    reading = read_documents([str(path)], DocumentOptions(), print, print)
    next(reading)
    child = reading._child._child
    assert child is not None and child.poll() is None
    del reading
    gc.collect()  # it holds its own generator
    deadline = time.monotonic() + 10
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is not None


# --- resident memory ---


LONG = bool(os.environ.get("CLARA_LONG"))  # at the limit that holds without the option
LIMIT = DocumentOptions().max_record_mib if LONG else 2
MOST = 32 * LIMIT  # MiB, beside what imports take
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def peak_of(path: Path) -> tuple[str, int]:
    """What reading a file in a process of its own ends in, and its most MiB beyond the imports: of
    that process, or of the one it has tables read by."""
    words = [sys.executable, "-c", PEAK, str(LIMIT), str(path)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    end, own, childs = run.stdout.splitlines()[-1].rsplit(" ", 2)
    return end, max(int(own), int(childs))


def test_the_longest_record_may_take_512_mib() -> None:
    assert DocumentOptions().max_record_mib * 32 == 512


@on_linux
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("form", ["sentences", "wide", "values", "row"])
def test_memory_for_a_record_stays_within_32_times_its_limit(
    tmp_path: Path, form: str, pack
) -> None:
    """The longest record, of the shapes that take the most: a sentence every other letter, one
    letter that makes all the others four bytes wide, and as many values as are admitted."""
    size = LIMIT * MIB
    record = {
        "sentences": {"text": "? " * ((size - 100) // 2)},
        "wide": {"text": "x y. " * ((size - 100) // 5) + "\U0001f389"},
        "values": {"text": "x", "v": [[]] * (size // json_lines.BYTES_A_VALUE // 2 - 100)},
        "row": {"text": "x y. " * ((size - 100) // 5) + "\U0001f389"},
    }[form]
    path = tmp_path / ("a.csv" if form == "row" else "a.jsonl")
    line = json.dumps(record, ensure_ascii=False)
    path.write_bytes(pack((f'text\n"{record["text"]}"\n' if form == "row" else line).encode()))
    end, peak = peak_of(path)
    assert end.startswith("read ") and int(end.split()[1]) >= 1 and peak < MOST


@on_linux
@pytest.mark.parametrize(
    ("name", "start", "says"),
    [
        ("a.jsonl.gz", b'{"text": "', ":1: a line longer than"),
        ("a.csv.gz", b'text\n"', ":2: a row longer than"),
        ("a.txt.gz", b"", ": a text longer than"),
    ],
)
def test_a_packed_record_without_an_end_is_never_held(tmp_path, name, start, says) -> None:
    """A hundred times the limit, in a small file."""
    path = tmp_path / name
    with gzip.open(path, "wb", 1) as stream:
        stream.write(start)
        for _ in range(100):
            stream.write(b"x" * (LIMIT * MIB))
    end, peak = peak_of(path)
    assert end.startswith(f"4 {path}{says} {LIMIT} MiB") and peak < MOST


@on_linux
@pytest.mark.parametrize("form", ["dictionary", "page", "list"])
def test_a_parquet_file_takes_no_more_either(tmp_path: Path, form: str) -> None:
    """A dictionary that makes long rows of a short file, a page and a list beyond the limit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = LIMIT * MIB
    many = pa.nulls(2 * size, pa.int64()).fill_null(1)
    columns = {
        "dictionary": {"text": pa.DictionaryArray.from_arrays([0] * 6, ["x" * (size - 999)])},
        "page": {"text": ["s"], "other": ["x" * (20 * size)]},
        "list": {"text": ["s"], "other": pa.ListArray.from_arrays([0, len(many)], many)},
    }[form]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd")
    end, peak = peak_of(path)
    refused = f"4 {path}: cannot be read within {documents.ROW_MEMORY * LIMIT} MiB of memory"
    assert end.startswith("read 6" if form == "dictionary" else refused) and peak < MOST


QUESTION_PEAK = """
import re, sys
from pathlib import Path
from clara_cli.documents.examples import read_records

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
print(len(list(read_records(sys.argv[1:], "mend it"))))
print((peak() - before) // 1024)
"""


@on_linux
@pytest.mark.parametrize("form", ["wide", "values"])
def test_the_longest_line_of_questions_stays_within_512_mib(tmp_path: Path, form: str) -> None:
    size = MAX_LINE_BYTES
    record = {
        "wide": {"question": "x y. " * ((size - 100) // 5) + "\U0001f389"},
        "values": {"question": "x", "v": [[]] * (size // json_lines.BYTES_A_VALUE // 2 - 100)},
    }[form]
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(record, ensure_ascii=False).encode(), 1))
    words = [sys.executable, "-c", QUESTION_PEAK, str(path)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    records, peak = map(int, run.stdout.split())
    assert records == 1 and peak < 512
