"""What people see: progress, answers, summaries; and the conversation, driven key by key."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.answers import make_answer
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.cli.show import answers, json_line, terminal
from clara_cli.errors import ClaraError, DataError, Interrupted
from clara_cli.records import (
    CompressResult,
    Hit,
    IndexResult,
    Progress,
    SearchResult,
    TrainResult,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


COMPRESSED = CompressResult("c.clara", 2, 3, 1, 0, {}, 0, 16, 16, 7.5, 999, 75.0, 2.0)
INDEXED = IndexResult("c.clara", "hnsw", 3, 64, 0.98765, 5, 200, 1.5, 10_000)
TRAINED = TrainResult("runs/a/checkpoint", "instruct", 10, 1.23456, None, 3700.0, 900.0)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(params=[40, 80, 200])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


# --- reports ---


def test_progress_off_a_terminal_is_a_line_after_a_second_every_ten_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with terminal.TerminalReport(clock=clock) as report:
        for step in range(1, 31):
            report.progress(Progress("compress", step * 100, 3000, "passages", {"loss": "1.5"}))
            clock.now += 0.9
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "compress: 10% 300/3,000 passages, ETA 0:00:24, loss 1.5",
        "compress: 50% 1,500/3,000 passages, ETA 0:00:14, loss 1.5",
        "compress: 90% 2,700/3,000 passages, ETA 0:00:03, loss 1.5",
        "compress: 100% 3,000/3,000 passages, loss 1.5",
    ]


def test_the_first_step_is_a_line_where_it_took_long(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with terminal.TerminalReport(clock=clock) as report:
        clock.now += 60
        report.progress(Progress("bench", 8, 300, "questions"))
        assert capsys.readouterr().err == "bench: 2% 8/300 questions, ETA -:--:--\n"


@pytest.mark.parametrize("before", [0.0, 0.5])
def test_the_time_remaining_follows_this_runs_own_pace(
    before: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an earlier run did is no speed of this one; work of unknown size has its share alone."""
    clock = Clock()
    with terminal.TerminalReport(clock=clock) as report:
        report.progress(Progress("compress", 0, None, "passages", share=before))
        clock.now += 30
        done = before + (1 - before) / 4
        report.progress(Progress("compress", 70, None, "passages", share=done))
    percent = {0.0: 25, 0.5: 62}[before]
    assert capsys.readouterr().err == f"compress: {percent}% 70 passages, ETA 0:01:30\n"


def test_a_new_task_and_the_end_say_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.TerminalReport() as report:
        report.progress(Progress("read", 1, None, "lines"))
        report.progress(Progress("read", 2, None, "lines"))
        report.progress(Progress("write", 1, 9, "files"))
    assert capsys.readouterr().err.splitlines() == [
        "read: 2 lines",
        "write: 11% 1/9 files, ETA -:--:--",
    ]


def test_quiet_silences_notes_and_progress_not_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with terminal.TerminalReport(quiet=True) as report:
        report.note("note")
        report.progress(Progress("read", 1, 1, "lines"))
        report.warn("careful")
        report.warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")


def test_notes_and_warnings_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = terminal.TerminalReport()
    for _ in range(3):
        report.note("exact scan")
        report.warn("exact scan")
    assert capsys.readouterr().err == "exact scan\nwarning: exact scan\n"


def test_a_held_report_speaks_at_the_pause(capsys: pytest.CaptureFixture[str]) -> None:
    report = terminal.TerminalReport(hold=True)
    report.note("exact scan")
    report.progress(Progress("read", 1, 1, "lines"))
    assert capsys.readouterr().err == ""
    report.pause()
    assert capsys.readouterr().err == "exact scan\n"


def test_bar_on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tty, results = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", tty)
    monkeypatch.setattr(sys, "stdout", results)
    with terminal.TerminalReport() as report:
        for step in range(4):
            report.progress(Progress("compress", step, 3, "passages", {"loss": "1.5"}))
        report.warn("careful")
        sys.stdout.write("result\n")
        report.pause()
        report.progress(Progress("another", 1, None, "files"))
    assert "compress" in tty.getvalue()
    assert "3/3 passages" in tty.getvalue()
    assert "warning: careful" in tty.getvalue()
    assert ("loss 1.5" in tty.getvalue()) is (columns >= terminal.NARROW)
    assert results.getvalue() == "result\n"


def test_no_bar_on_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    tty = Terminal()
    monkeypatch.setattr(sys, "stderr", tty)
    with terminal.TerminalReport() as report:
        report.progress(Progress("compress", 1, 1, "passages"))
    assert tty.getvalue() == "compress: 100% 1/1 passages\n"


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_unless_refused(
    no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    tty = Terminal()
    monkeypatch.setattr(sys, "stderr", tty)
    terminal.show_error(DataError("it broke", "mend it"))
    assert ("\x1b[31m" in tty.getvalue()) is not no_color
    assert "it broke" in tty.getvalue()


# --- answers and results ---


def test_answer_and_sources_at_every_width(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.show(make_answer())
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Ann [x].\n")
    assert max(len(line) for line in out.splitlines()) <= columns
    assert "document-2" in out
    assert "0.250" in out
    assert "supported (0.90)" in out
    assert "Ann was elected" in out
    assert out.count("elected") == 2  # the best sentence of each passage, no more of it


def test_answer_on_a_terminal_names_ranks_in_order(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tty = Terminal()
    monkeypatch.setattr(sys, "stdout", tty)
    answers.show(make_answer(), titled=True)
    assert tty.getvalue().index("document-1") < tty.getvalue().index("document-2")
    assert "Who?" in tty.getvalue()


def test_answer_without_text_sources_or_words(capsys: pytest.CaptureFixture[str]) -> None:
    bare = dataclasses.replace(make_answer().sources[0].passage, text=None, title="")
    answers.show(make_answer(sources=(Hit(1, 0, 0.1, bare),), support=None, supported=None))
    answers.show(make_answer(answer="", sources=(), supported=False))
    out = capsys.readouterr().out
    assert "(text not kept)" in out
    assert "support unjudged" in out
    assert "(no answer)" in out
    assert "NOT supported" in out


def test_documents_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    answers.show(make_answer(answer="red \x1b[31m alert\x07"))
    terminal.show_error(ClaraError("title \x1b]0;x\x07"))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_sources_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    answers.show_sources(make_answer())
    out = capsys.readouterr().out
    assert "1. Title 1 document-1 [0:9] 0.500" in out
    assert out.count("[bold]mayor[/bold]") == 40


def test_sources_name_their_place_and_mark_the_answers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a file.txt"
    file.write_text("x")
    hit = make_answer().sources[0]
    placed = dataclasses.replace(
        hit, corpus="two.clara", passage=dataclasses.replace(hit.passage, source=f"{file}:7")
    )
    gone = dataclasses.replace(
        hit, passage=dataclasses.replace(hit.passage, source="no/such.txt:3")
    )
    answer = make_answer(answer="a mayor", sources=(placed, gone))
    record = json_line.answer_json(answer)
    assert (record["sources"][0]["file"], record["sources"][0]["line"]) == (str(file), 7)
    assert record["sources"][0]["corpus"] == "two.clara"
    tty = Terminal()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", tty)
    answers.show(answer)
    shown = tty.getvalue()
    assert f";{file.as_uri()}" in shown and f"{file}:7" in shown and "two.clara" in shown
    assert "no/such.txt:3" in shown and shown.count("\x1b]8;") == 2  # opened and closed once
    assert re.search(r"\x1b\[[\d;]*4[\d;]*mmayor", shown)


@pytest.mark.parametrize(
    ("answer", "words"),
    [("in the Red Tower", {"red", "tower"}), ("it is so", {"it", "is", "so"}), ("", set())],
)
def test_telling_words(answer: str, words: set[str]) -> None:
    assert answers.telling_words(answer) == words


def test_an_excerpt_surrounds_the_answer() -> None:
    text = "start " * 50 + "needle " + "end " * 50
    piece = answers.excerpt(text, {"needle"}, 40)
    assert piece == "…start needle end end end end…"
    assert answers.excerpt(text, {"absent"}, 40).startswith("start start")
    assert answers.excerpt("a\n b", set(), 40) == "a b"
    assert answers.excerpt("a" * 50, set(), 40) == "a" * 39 + "…"


@given(st.lists(st.text("xyz", min_size=1, max_size=9), min_size=1), st.integers(12, 60))
def test_an_excerpt_is_a_line_of_the_text(words: list[str], width: int) -> None:
    text = " ".join(words)
    piece = answers.excerpt(text, {words[-1]}, width)
    assert 0 < len(piece) <= width and piece.strip("…") in text


def test_answer_json_has_the_contracts_keys_in_order() -> None:
    record = json_line.answer_json(make_answer())
    assert list(record) == [
        *("question", "answer", "support", "supported", "sources", "memory_tokens"),
        *("prompt_tokens", "text_tokens_replaced", "seconds"),
    ]
    assert list(record["sources"][0]) == [
        *("rank", "passage_id", "document_id", "title", "text", "start", "end", "score"),
        "sentence",
    ]
    assert list(record["sources"][0]["sentence"]) == ["text", "start", "end"]


def test_an_unsupported_answer_comes_small_and_marked_after_the_best_sentences(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.show(make_answer(answer="Bob.", supported=False, support=0.1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT supported (0.10)")
    shown = " ".join(lines)
    assert shown.index("Ann was") < shown.index("generated, NOT supported: Bob.")


def test_an_answer_abstained_from_is_not_shown_and_is_in_the_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = make_answer(answer="Bob.", supported=False, abstained=True)
    answers.show(answer)
    out = capsys.readouterr().out
    assert out.startswith("not in the documents\n") and "Bob" not in out
    assert "Ann was" in out
    record = json_line.answer_json(answer)
    assert (record["answer"], record["generated"]) == ("not in the documents", "Bob.")
    assert "abstained" not in record and "generated" not in json_line.answer_json(make_answer())


def test_passages_alone_are_their_best_sentences_and_places(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hit = make_answer().sources[0]
    assert hit.sentence is not None
    passage = dataclasses.replace(hit.passage, source="notes/a.md:3#section=Mayors")
    sentence = dataclasses.replace(hit.sentence, line=17)
    placed = dataclasses.replace(hit, passage=passage, sentence=sentence)
    answers.show_search(SearchResult("Who was mayor?", (placed,), {"query": 0.0, "search": 0.1}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1. Ann was elected") and max(map(len, lines)) <= columns
    assert any("notes/a.md:17 section Mayors" in line for line in lines)
    answers.show_search(SearchResult("Who?", (), {}))
    assert "no passage was found" in capsys.readouterr().out
    record = json_line.search_json(SearchResult("Who?", (placed,), {"search": 0.1}))
    assert list(record) == ["question", "sources", "seconds"]
    (source,) = record["sources"]
    assert source["sentence"]["line"] == 17
    assert [source[key] for key in ("file", "line", "section")] == ["notes/a.md", 3, "Mayors"]


def test_a_draft_gives_way_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pyte = pytest.importorskip("pyte", reason="reads a terminal's codes: pip install pyte")
    tty = Terminal()
    monkeypatch.setattr(sys, "stdout", tty)
    with answers.Stream() as stream:
        for number in range(60):
            stream.say(f"piece {number}\n")
    answers.show(make_answer(answer="Ann."))
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(tty.getvalue().replace("\n", "\r\n"))
    assert "piece 5" in tty.getvalue()
    assert not any("piece" in line for line in screen.display)
    assert screen.display[0].strip() == "Ann."


def test_json_has_no_nan_and_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    json_line.write_json({"a": float("nan"), "b": [float("inf"), 0.5], "c": Path("x"), "d": "é"})
    out = capsys.readouterr().out
    assert out == '{"a": null, "b": [null, 0.5], "c": "x", "d": "é"}\n'
    json_line.write_json({"lone": "\ud800"})
    assert json.loads(capsys.readouterr().out) == {"lone": "\ud800"}


@pytest.mark.parametrize(
    ("result", "only", "parts"),
    [
        (COMPRESSED, None, ["1 empty", "effective 7.5", "1 min 15 s", "next: clara index c.clara"]),
        (dataclasses.replace(COMPRESSED, passages_per_second=0.004), None, [", 0.004 passages/s"]),
        (dataclasses.replace(COMPRESSED, passages_per_second=None), None, ["nothing to compute"]),
        (COMPRESSED, "dry_run", ["would hold", "without --dry-run"]),
        (INDEXED, None, ["recall@5 0.988 over 200 questions", "10.0 kB", "clara ask"]),
        (
            dataclasses.replace(INDEXED, engine="exact"),
            None,
            [
                "c.clara: exact scan of 3 vectors; the graph, 64 wide, "
                "recall@5 0.988 over 200 questions, was not kept\n"
            ],
        ),
        (
            dataclasses.replace(INDEXED, engine="exact", recall_at_k=None),
            None,
            ["exact scan of 3 vectors; the graph, 64 wide, was not kept\n"],
        ),
        (INDEXED, "check", ["every file matches"]),
        (TRAINED, None, ["ce 1.235", "1 h 1 min", "--stage e2e --init runs/a/checkpoint"]),
        (
            dataclasses.replace(TRAINED, tokens_per_second=None),
            None,
            ["10 steps, ce 1.235\nnothing was left to do\n"],
        ),
        (dataclasses.replace(TRAINED, stage="pretrain"), None, ["--stage instruct"]),
        (dataclasses.replace(TRAINED, stage="e2e"), None, ["clara compress with documents"]),
    ],
)
def test_summaries(
    result: Any, only: str | None, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.show_result(result, only=only)
    out = capsys.readouterr().out
    assert all(part in out for part in parts), out


def test_interruption_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_error(Interrupted("interrupted", "clara train ... goes on"))
    assert capsys.readouterr().err == "interrupted\nhint: clara train ... goes on\n"


def test_a_reader_that_goes_away_is_the_error_boundarys_business(monkeypatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(BrokenPipeError):
            terminal.console(stderr=False).print("an answer")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what closing flushes
