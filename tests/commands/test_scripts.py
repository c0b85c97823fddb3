"""What scripts use: questions on stdin, their ids, bare answers, a log."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import pytest
from helpers import tiny_world

from clara_cli.cli import ask as terminal_ask
from clara_cli.cli.show import answers
from clara_cli.commands import ask
from clara_cli.errors import DataError, UsageError
from clara_cli.records import Answer

LINES = b"""Who is mayor of Elmgate?

{"id": 7, "question": "Who is mayor of Quarrel?"}
{"id": "x", "question": "Who is mayor of Pinewick?"}
"""


class Stdin:
    """What is piped in."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def piped(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", Stdin(data))


def run(config, capsys, *, as_json: bool = False) -> list[str]:
    terminal_ask.run(config, as_json=as_json, quiet=True)
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def config(works):
    return tiny_world.ask(None, works.corpus, file=Path("-"), top_k=1)


def test_stdin_is_a_question_a_line_as_text_or_json_and_ids_are_kept(config, piped, capsys):
    piped(LINES)
    records = [json.loads(line) for line in run(config, capsys, as_json=True)]
    assert [record.get("id") for record in records] == [None, 7, "x"]
    assert [record["question"].split()[-1] for record in records] == [
        *("Elmgate?", "Quarrel?", "Pinewick?")
    ]
    assert list(records[1])[:2] == ["id", "question"] and "id" not in records[0]


def test_a_file_gives_the_same_answers_and_ids_as_stdin(works, config, piped, tmp_path, report):
    piped(LINES)
    streamed = list(ask.run(config, report))
    file = tmp_path / "q.jsonl"
    file.write_bytes(b'{"question": "Who is mayor of Elmgate?"}\n' + LINES[LINES.index(b"{") :])
    filed = list(ask.run(dataclasses.replace(config, file=file), report))
    assert [(a.id, a.question, a.answer) for a in streamed] == [
        (a.id, a.question, a.answer) for a in filed
    ]
    alone = dataclasses.replace(config, file=file, search=True, max_new_tokens=128)
    assert [result.id for result in ask.run(alone, report)] == [None, 7, "x"]


def test_a_question_is_answered_before_the_next_one_is_written(works, config, monkeypatch, report):
    """As a program does that asks, reads the answer and then knows what to ask."""
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading, "r"))
    answers = ask.run(config, report)
    with os.fdopen(writing, "wb", buffering=0) as questions:
        questions.write(b"Who is mayor of Elmgate?\n")
        assert next(answers).question == "Who is mayor of Elmgate?"
        questions.write(b"Who is mayor of Quarrel?\n")
        assert next(answers).question == "Who is mayor of Quarrel?"
    assert list(answers) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n \n", "no questions on stdin"),
        (b"ok?\n\xff\n", r"<stdin>:2: not UTF-8"),
        (b'{"question": \n', r"<stdin>:1: not JSON"),
        (b'{"id": 3}\n', r"<stdin>:1: question is missing"),
        (b"W" * 65 + b"\n", r"<stdin>:1: the question .* more than 64 tokens"),
    ],
)
def test_a_bad_line_is_named(config, piped, data, message, report):
    piped(data)
    with pytest.raises(DataError, match=message):
        list(ask.run(config, report))


def test_answer_only_is_a_line_a_question(works, config, piped, capsys, report):
    piped(LINES)
    answers = [answer.answer for answer in ask.run(config, report)]
    piped(LINES)
    lines = run(dataclasses.replace(config, answer_only=True), capsys)
    assert len(lines) == 3 == len(answers)
    one = tiny_world.ask("Who is mayor of Elmgate?", works.corpus, top_k=1, answer_only=True)
    assert run(one, capsys)[0] == lines[0]
    with pytest.raises(UsageError, match="--json and --answer-only"):
        terminal_ask.run(one, as_json=True, quiet=True)


def test_an_answer_abstained_from_is_so_in_its_line(capsys):
    answer = Answer("q", "x\ny", 0.1, False, (), 0, 0, 0, {}, abstained=True)
    answers.show_text(answer, line=True)
    answers.show_text(dataclasses.replace(answer, abstained=False), line=True)
    assert capsys.readouterr().out == "not in the documents\nx y\n"


def test_the_log_is_appended_to_and_its_owners_alone(works, config, piped, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        piped(LINES)
        run(dataclasses.replace(config, log=log), capsys)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record.get("id") for record in records] == [None, 7, "x"] * 2
    assert list(records[0])[:2] == ["time", "question"] and records[0]["sources"]
    assert log.stat().st_mode & 0o077 == 0
    piped(LINES)
    with pytest.raises(UsageError, match="--log .*: Is a directory"):
        terminal_ask.run(dataclasses.replace(config, log=tmp_path), as_json=False, quiet=True)


def test_documents_asked_are_named_as_the_user_named_them(works, config, report):
    named = dataclasses.replace(config, documents=("./notes", "a.md"))
    session = ask.open_session(named, report)
    assert session.corpus_name == "./notes, a.md"
    session.change_corpus([works.corpus.parent / "." / works.corpus.name, works.corpus])
    assert "./notes" not in session.corpus_name


def test_passages_alone_are_logged_too(works, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    terminal_ask.run(
        tiny_world.ask("Elmgate", works.corpus, search=True, log=log), as_json=False, quiet=True
    )
    (record,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert record["question"] == "Elmgate" and "answer" not in record
