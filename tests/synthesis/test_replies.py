"""What is read out of replies, whatever stands around it or is missing from it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.synthesis.quality_checks import Candidate
from clara_cli.synthesis.replies import (
    MOST_PAIRS,
    Malformed,
    read_linked,
    read_pairs,
    read_text,
    read_verdict,
)

ONE = '{"question": "Who?", "answer": "Ann"}'
ANN = Candidate("Who?", "Ann")
WHOLE = f'{{"pairs": [{ONE}, {{"question": "When?", "answer": 1871}}]}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{{"pairs": [{ONE}]}}', [ANN]),
        (WHOLE, [ANN, Candidate("When?", "1871")]),
        (f"Sure! Here it is:\n```json\n{WHOLE}\n```\nAnything else?", 2),
        (f"[{ONE}]", [ANN]),
        (f"{ONE}\n{ONE}", [ANN, ANN]),
        (f"<think>{ONE} {{</think>\n[]", []),
        (f'<think>hm {{"pairs": []}}</think>{ONE}', [ANN]),
        ('{"pairs": []}', []),
        ("[]", []),
        (WHOLE[:-20], [ANN]),
        (f'{{"pairs": [{ONE}, {{"question": "Wh', [ANN]),
        ('{"pairs": [{"question": ["Who?"], "answer": ["Ann"]}]}', [ANN]),
        ('{"question": "Two\nlines?", "answer": " a  b "}', [Candidate("Two lines?", "a b")]),
        ('{"question": "odd\\ud800?", "answer": "x"}', [Candidate("odd?", "x")]),
        ('{"pairs": "none"}', Malformed("not_json")),
        ('{"question": null, "answer": true}', Malformed("not_json")),
        ("", Malformed("empty")),
        (" \n", Malformed("empty")),
        ("I'm sorry, but I can't help with that.", Malformed("refusal")),
        ("Paris is nice.", Malformed("not_json")),
        ("[" * 70_000, Malformed("not_json")),
        ('{"a":' * 20_000, Malformed("not_json")),
    ],
)
def test_pairs(text: str, expected: object) -> None:
    found = read_pairs(text)
    assert (len(found) if isinstance(expected, int) else found) == expected  # type: ignore[arg-type]


def test_cut_without_a_whole_item_says_so() -> None:
    assert read_pairs('{"pairs": [{"question": "Wh', cut=True) == Malformed("cut")


def test_a_reply_of_many_pairs_is_bounded() -> None:
    found = read_pairs(json.dumps({"pairs": [{"question": "a?", "answer": "b"}] * 500}))
    assert len(found) == MOST_PAIRS  # type: ignore[arg-type]


def test_ten_megabytes_are_read_in_no_time() -> None:
    started = time.monotonic()
    for unit in ('{"pairs": [', "x{", '{"question": "', "<think>"):
        read_pairs(unit * (10_000_000 // len(unit)))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "r", "correct": true}', (True, "r")),
        ('{"correct": "Incorrect"}', (False, "")),
        ('thinking... {"x": 1} {"correct": false, "reason": "no"}', (False, "no")),
        ('{"correct": 1}', Malformed("not_json")),
        ("true", Malformed("not_json")),
        ("", Malformed("empty")),
    ],
)
def test_verdicts(text: str, expected: object) -> None:
    assert read_verdict(text, "correct") == expected


def test_texts_and_linked_pairs() -> None:
    assert read_text('{"paraphrase": " a\\nb "}', "paraphrase") == "a b"
    assert read_text("no", "paraphrase") == Malformed("not_json")
    item = '{"question": "Who?", "answer": "Ann", "passages": [2, 1, 9, true, "3"]}'
    assert read_linked(f'{{"pairs": [{item}, {ONE}]}}', 3) == [(ANN, (0, 1))]
    assert read_linked('{"pairs": []}', 3) == []
    assert read_linked(ONE, 3) == Malformed("not_json")


@settings(max_examples=100, deadline=None)
@given(st.text('{}[]",:\\ abcquestion answer', max_size=300), st.booleans())
def test_any_text_is_read_as_pairs_or_malformed(text: str, cut: bool) -> None:
    for found in (read_pairs(text, cut), read_linked(text, 3, cut)):
        assert isinstance(found, Malformed) or isinstance(found, list)
    assert read_verdict(text, "correct", cut) is not None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=5), st.data())
def test_whole_items_survive_any_cut(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    items = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
    text = '{"pairs": [' + ", ".join(items)
    keep = data.draw(st.integers(0, len(items)))
    cut_at = len('{"pairs": [' + ", ".join(items[:keep]))
    found = read_pairs(text[:cut_at], cut=True)
    wanted = read_pairs('{"pairs": [' + ", ".join(items[:keep]) + "]}")
    assert found == (wanted or Malformed("cut"))
