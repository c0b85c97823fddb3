"""Text from outside, wherever it is printed: no control or direction-turning character arrives raw,
no name in a hint becomes an option or a second command."""

from __future__ import annotations

import json
import shlex
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from clara_cli.cli.show import answers, json_line, terminal
from clara_cli.corpus.store import Corpus
from clara_cli.documents.listing import list_inputs
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.evaluation.report.page import markdown, page
from clara_cli.evaluation.report.tables import Cell
from clara_cli.evaluation.report.tables import Table as ReportTable
from clara_cli.printable import clean, clean_line, escaped_json, shell_word
from clara_cli.records import Answer, Hit, Passage

HOSTILE = "a\x1b[2J\x07\u202eb\u2066c\x9b31m\u200e\u2028d\x00\ufeff"
TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def raw(text: str) -> set[str]:
    """The characters of a text that are obeyed rather than shown."""
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    return (controls - set("\n\t")) | (set(text) & TURNING)


@given(st.text())
def test_clean_text_has_none_of_them_and_is_left_alone_otherwise(text: str) -> None:
    assert not raw(clean(text))
    assert len(clean(text)) == len(text)
    assert "\n" not in clean_line(text)


@pytest.mark.parametrize(
    "text", ["Ünïcode 東京", "a\u00a0b\u3000c", "👩\u200d💻", "می\u200cخواهم", "a\n\tb"]
)
def test_what_people_write_is_kept(text: str) -> None:
    assert clean(text) == text == escaped_json(text)


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=3)))
def test_json_keeps_every_value_and_prints_none_raw(value: object) -> None:
    line = escaped_json(json.dumps(value, ensure_ascii=False))
    assert not raw(line) and "\n" not in line
    assert json.loads(line) == value


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_a_name_is_one_word_and_never_an_option(name: str) -> None:
    (word,) = shlex.split(shell_word(name))
    assert word.removeprefix("./") == name.removeprefix("./") and not word.startswith("-")


def test_nothing_raw_is_shown_on_a_terminal(capsys) -> None:
    passage = Passage(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0, 9, 3, source=f"{HOSTILE}:3")
    hit = Hit(1, 0, 0.5, passage, HOSTILE)
    seconds = {"query": 0.1, "search": 0.2, "generate": 0.3}
    answer = Answer(HOSTILE, HOSTILE, 0.9, True, (hit,), 16, 40, 200, seconds)
    answers.show(answer, titled=True)
    answers.show_sources(answer)
    terminal.show_error(DataError(HOSTILE, HOSTILE))
    json_line.write_json(json_line.answer_json(answer))
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE))
    terminal.console(stderr=False).print(table)
    with terminal.TerminalReport() as report:
        report.note(HOSTILE)
        report.warn(HOSTILE)
    printed = capsys.readouterr()
    assert not raw(printed.out) and not raw(printed.err)
    (line,) = [line for line in printed.out.splitlines() if line.startswith("{")]
    assert json.loads(line)["sources"][0]["title"] == HOSTILE


def test_nothing_raw_is_written_into_a_report() -> None:
    table = ReportTable(HOSTILE, ("system", "note"), ((Cell(HOSTILE), Cell("x", HOSTILE)),))
    for text in (markdown(HOSTILE, HOSTILE, [table], []), page(HOSTILE, HOSTILE, [table], {})):
        assert not raw(text)


def test_a_hint_quotes_a_name_that_would_be_an_option(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "-rf $(x).clara"
    with pytest.raises(ArtefactError) as caught:
        Corpus.open(Path(name))
    assert caught.value.hint.endswith(f"--out '.{'/'}{name}'")
    (tmp_path / name / "shards").mkdir(parents=True)
    (tmp_path / name / "manifest.json").write_text("{}")
    with pytest.raises(UsageError) as refused:
        list_inputs([name])
    assert shlex.split(refused.value.hint)[-1] == f"./{name}"
