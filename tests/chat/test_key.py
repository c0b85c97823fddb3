"""The key is cut out of what servers say, whole and in part, and out of nothing else."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from clara_cli.chat.key import HIDDEN, IN_LINES, IN_REFUSALS, KeyGuard

KEY = "sk-Abc123Def456"
CHARACTERS = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=40)


def test_by_hand():
    guard = KeyGuard(KEY)
    assert guard.refusal(f"no {KEY}!") == "no ***!"
    assert guard.refusal("Incorrect: sk-Ab....f456.") == "Incorrect: ***....***."
    assert guard.refusal("sk- and Abc") == "sk- and Abc"
    assert guard.refusal(f"{KEY}{KEY} {KEY[2:9]}") == "*** ***"
    assert KeyGuard("EMPTY").refusal("key EMPTY") == "key ***"
    assert KeyGuard(None).refusal(KEY) == KEY == KeyGuard("").refusal(KEY)


def test_lines_keep_what_no_server_wrote():
    record = {
        "docs": [f"about {KEY}"],
        "question": [KEY[:8], "sk-Abc1"],
        "again": {"answer": f"x{KEY}x"},
        "round": 3,
        "score": None,
    }
    assert KeyGuard(KEY).line(record, frozenset(("docs",))) == {
        "docs": [f"about {KEY}"],
        "question": [HIDDEN, "sk-Abc1"],
        "again": {"answer": "x***x"},
        "round": 3,
        "score": None,
    }


@given(key=CHARACTERS, before=CHARACTERS, after=CHARACTERS, data=st.data())
def test_no_part_stays(key, before, after, data):
    start = data.draw(st.integers(0, len(key) - 1))
    text = f"{before}{key[start:]}{after}{key}"
    for length, cut in (
        (IN_REFUSALS, KeyGuard(key).refusal(text)),
        (IN_LINES, KeyGuard(key).line({"text": text}, frozenset())["text"]),
    ):
        length = min(length, len(key))
        parts = [key[at : at + length].lower() for at in range(len(key) - length + 1)]
        assert not [part for part in parts if part in cut.lower()]


@given(text=CHARACTERS)
def test_what_shares_nothing_with_the_key_stays(text):
    assert KeyGuard("\N{SNOWMAN}" * 9).refusal(text) == text
