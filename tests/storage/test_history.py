"""Histories of JSON lines, whatever a kill left of the last one."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.errors import ArtefactError
from clara_cli.storage.history import History

RECORDS = st.lists(st.dictionaries(st.text(), st.integers() | st.text()), max_size=6)


@given(RECORDS, RECORDS, st.data())
def test_cut_anywhere_it_goes_on_after_the_last_whole_line(before, after, data):
    with TemporaryDirectory() as folder:
        history = History(Path(folder), "h.jsonl", "mend it")
        history.append(before)
        written = history.path.read_bytes()
        end = data.draw(st.integers(0, len(written)))
        history.path.write_bytes(written[:end])
        whole = before[: written[:end].count(b"\n")]
        assert [fields.values for fields in history.lines()] == whole
        count = data.draw(st.integers(0, len(whole)))
        history.keep(count)
        history.append(after)
        assert [fields.values for fields in history.lines()] == whole[:count] + after


def test_no_file_is_no_line(tmp_path):
    history = History(tmp_path, "h.jsonl", "")
    history.keep(0)
    assert list(history.lines()) == [] and not history.path.exists()


def test_a_damaged_line_is_named(tmp_path):
    history = History(tmp_path, "h.jsonl", "mend it")
    for line in ("{", "3", '"a"', "[" * 100_000, "1" * 5_000, "\0"):
        history.path.write_text(f"{json.dumps({'n': 1})}\n{line}\n")
        with pytest.raises(ArtefactError, match=r"h\.jsonl:2: not ") as caught:
            list(history.lines())
        assert caught.value.hint == "mend it"
