"""Questions of a file, answered together: the same answers as alone, in their order."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_world
from helpers.answers import plain

from clara_cli.answering.engine import AskOptions
from clara_cli.answering.reading import like_lengths
from clara_cli.commands import ask
from clara_cli.errors import DataError, UsageError

QUESTIONS = [record["question"] for record in tiny_world.questions()]
QUESTION = tiny_world.questions()[0]["question"]


def test_questions_answered_together_get_the_answers_they_get_alone(clara):
    how = AskOptions(max_new_tokens=12)
    asked = [*QUESTIONS, "Schneit es in Zürich?", "Xyzzy plugh?", QUESTION]
    together = clara.ask_all(asked, how)
    assert [answer.question for answer in together] == asked
    for question, answer in zip(asked, together, strict=True):
        assert plain(answer) == plain(clara.ask(question, max_new_tokens=12))


@pytest.mark.parametrize(("device", "most"), [("cpu", 32), ("cuda", 64)])
def test_batches_are_of_like_length_and_hold_every_row_once(device, most):
    lengths = [900, 10, 12, 5000, 11, 20000, 10, *[30] * 100]
    batches = list(like_lengths(lengths, torch.device(device)))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) <= most and widest * len(batch) <= 16384)


def test_a_file_longer_than_a_batch_keeps_its_order(works, report, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "TOGETHER", 3)
    file = tmp_path / "q.txt"
    file.write_text("\n".join(QUESTIONS), encoding="utf-8")
    given = list(ask.run(tiny_world.ask(None, works.corpus, file=file), report))
    assert [answer.question for answer in given] == QUESTIONS
    assert report.steps == 3


@pytest.mark.parametrize(
    ("name", "line"), [("q.txt", "{}"), ("q.jsonl", '{{"question": "{}"}}')], ids=["text", "jsonl"]
)
def test_a_question_that_is_too_long_is_named_before_any_is_answered(
    works, report, tmp_path, monkeypatch, name, line
):
    monkeypatch.setattr(ask, "TOGETHER", 1)
    file = tmp_path / name
    lines = [line.format(question) for question in ("Who?", "long " * 20)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    answered = ask.run(tiny_world.ask(None, works.corpus, file=file), report)
    wanted = rf"{name}:3: the question 'long long .*\.\.\.' has more than 64 tokens"
    with pytest.raises(DataError, match=wanted) as caught:
        next(answered)
    assert caught.value.hint == "ask it more briefly"


def test_a_byte_that_is_not_utf8_is_named_by_its_line(works, report, tmp_path):
    file = tmp_path / "q.txt"
    file.write_bytes("Who?\n\nCafé?\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"q\.txt:3: not UTF-8: byte 0xe9 at 3"):
        list(ask.run(tiny_world.ask(None, works.corpus, file=file), report))


def test_a_budget_of_text_that_nothing_spends_is_refused(works, report):
    for read in ("memory", "text"):
        config = tiny_world.ask(QUESTION, works.corpus, read=read, text_tokens=9)
        with pytest.raises(UsageError, match=f"--text-tokens with --read {read}") as caught:
            list(ask.run(config, report))
        assert "--read auto" in caught.value.hint
