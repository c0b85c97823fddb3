"""Questions that lean on the one before them: found by rule, completed by what was said.

Pure functions over texts.
"""

from __future__ import annotations

import re

from clara_cli.records import Answer

CONTEXT_WORDS = 48  # of what was said before; a question and this fit any query reasoner's window
_POINTS = re.compile(
    r"\b(?:it|its|he|him|his|she|her|hers|they|them|their|theirs|there|this|that|these|those|"
    r"the same|the other)\b",
    re.IGNORECASE,
)
_CARRIES_ON = re.compile(
    r"^(?:and|but|so|also|what about|how about)\b|^why\W*$|^\W*\.\.\.", re.IGNORECASE
)
_NAME = re.compile(r"(?<!^)\b[^\W\d_a-z]\w+")


def refers_back(question: str) -> bool:
    """Whether a question leans on the one before it, by English words: it carries on (`and`, `what
    about`), or points (`its`, `there`) and names nothing itself. In other languages begin the
    question with three dots."""
    if _CARRIES_ON.search(question):
        return True
    return _POINTS.search(question) is not None and _NAME.search(question) is None


def completed(question: str, before: Answer | None) -> str:
    """What to search with: the question, after the last question and answer if it leans on them."""
    if before is None or not refers_back(question):
        return question
    before_words = f"{before.question} {before.answer}".split()
    return " ".join([*before_words[-CONTEXT_WORDS:], question.removeprefix("...").strip()])
