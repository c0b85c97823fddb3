"""Lines of a shard's passages: those of a small file at once are those of a large one in turn."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.corpus import passage_lines


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"{}", b"\xef\xbb\xbf", b"\xff", b" "])))
def test_a_small_file_has_the_lines_of_a_large_one(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.jsonl.gz"
        file.write_bytes(gzip.compress(b"".join(pieces)))
        at_once = list(passage_lines.passage_lines(file))
        assert at_once == list(passage_lines._one_by_one(file))


def test_a_large_file_and_a_damaged_one_go_line_by_line(tmp_path: Path, monkeypatch) -> None:
    file, text = tmp_path / "a.jsonl.gz", b"one\ntwo\nthree\n"
    file.write_bytes(gzip.compress(text))
    monkeypatch.setattr(passage_lines, "MAX_AT_ONCE", 5)
    assert passage_lines._small(file) is None
    assert list(passage_lines.passage_lines(file)) == [b"one", b"two", b"three"]
    monkeypatch.undo()
    file.write_bytes(gzip.compress(text)[:-4])
    with pytest.raises(EOFError):
        list(passage_lines.passage_lines(file))
    file.write_bytes(gzip.compress(text))
    monkeypatch.setattr(passage_lines, "MAX_MEMORY", 10)
    with pytest.raises(ValueError, match="of passages in one shard"):
        list(passage_lines.passage_lines(file))
