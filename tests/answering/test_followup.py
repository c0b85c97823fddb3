"""Which questions lean on the one before, and what is searched for then."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.answering.followup import CONTEXT_WORDS, completed, refers_back
from clara_cli.records import Answer


def said(question: str, answer: str) -> Answer:
    return Answer(question, answer, None, None, (), 0, 0, 0, {})


@pytest.mark.parametrize(
    ("question", "leans"),
    [
        ("When was it founded?", True),
        ("Who is its mayor?", True),
        ("And in winter?", True),
        ("Why?", True),
        ("What about Frostmouth?", True),
        ("... und wann?", True),
        ("When did Einstein publish his theory?", False),
        ("Who is the mayor of Bern?", False),
        ("Why is the sky blue?", False),
        ("How many items are left?", False),
    ],
)
def test_by_hand(question: str, leans: bool) -> None:
    assert refers_back(question) == leans


def test_what_is_searched_for() -> None:
    before = said("Who commanded the Walrus?", "Casper Jarmond")
    assert completed("Where was he born?", None) == "Where was he born?"
    found = completed("Where was he born?", before)
    assert found == "Who commanded the Walrus? Casper Jarmond Where was he born?"
    assert completed("Who built Rome?", before) == "Who built Rome?"
    assert completed("... et quand?", before).endswith("Casper Jarmond et quand?")


@given(st.text(), st.text(), st.text())
def test_what_was_said_is_bounded(asked: str, answer: str, question: str) -> None:
    found = completed(question, said(asked, answer))
    assert len(found.split()) <= CONTEXT_WORDS + len(question.split())


def test_pairs_of_the_sample_all_lean_and_its_questions_do_not(monkeypatch) -> None:
    sample = Path(__file__).parents[2] / "recipes" / "sample"
    monkeypatch.syspath_prepend(str(sample))
    followups = importlib.import_module("followups")
    pairs = list(followups.pairs())
    assert len(pairs) == 36 and all(refers_back(pair.second) for pair in pairs)
    assert not any(refers_back(pair.first) for pair in pairs)
    rows = followups.read_lines(sample / "questions.jsonl")
    assert not any(refers_back(row["question"]) for row in rows)
