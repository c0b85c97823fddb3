"""What a model's reply holds: JSON found in whatever stands around it, complete items of a list
that was cut off, and nothing where there is none.

Knows the shapes asked for (pairs, a verdict, a text), not what they are about. Bounded: a reply is
read up to `READ` characters, and in a bounded number of tries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clara_cli.synthesis.quality_checks import Candidate

READ = 65_536
MOST_PAIRS = 20  # of one reply
LONGEST = 4_000  # characters of one string of a reply
_TRIES = 64
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_REFUSAL = re.compile(
    r"\A\W*(?:I(?:['’]m| am) (?:sorry|unable|not able)|sorry\b|I (?:can(?:not|['’]t)|won['’]t)\b"
    r"|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)
_DECODER = json.JSONDecoder(strict=False)  # newlines inside strings are common


@dataclass(frozen=True, slots=True)
class Malformed:
    """A reply without what was asked for: empty, cut, refusal or not_json."""

    why: str


def _values(text: str) -> Iterator[Any]:
    """The JSON values that stand in a text, first ones first, at most `_TRIES` looked for."""
    position = 0
    for _ in range(_TRIES):
        starts = [at for at in (text.find("{", position), text.find("[", position)) if at >= 0]
        if not starts:
            return
        try:
            value, position = _DECODER.raw_decode(text, min(starts))
            yield value
        except (ValueError, RecursionError):
            position = min(starts) + 1  # inside of what is broken there may be whole items


def _objects(text: str) -> Iterator[dict[str, Any]]:
    for value in _values(text):
        items = value if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, dict))


def _malformed(text: str, cut: bool) -> Malformed:
    if cut:
        return Malformed("cut")
    if not text.strip():
        return Malformed("empty")
    return Malformed("refusal" if _REFUSAL.match(text) else "not_json")


def _bare(text: str) -> str:
    return _THOUGHT.sub("", text[:READ])


def _string(record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)[:LONGEST]
    return " ".join(text.encode(errors="ignore").decode().split())  # no lone surrogates


def read_pairs(text: str, cut: bool = False) -> list[Candidate] | Malformed:
    """The question-answer pairs of a reply, the first `MOST_PAIRS`. An empty list is a reply
    that says there are none."""
    text = _bare(text)
    items, said_none = _items(text)
    pairs = [pair for pair in map(_pair, items) if pair is not None]
    if pairs or said_none or text.strip() == "[]":
        return pairs[:MOST_PAIRS]
    return _malformed(text, cut)


def _items(text: str) -> tuple[list[Any], bool]:
    """What may be pairs in a reply, and whether it says that there are none."""
    lists = [record.get("pairs", record) for record in _objects(text)]
    items = [
        item for listed in lists for item in (listed if isinstance(listed, list) else [listed])
    ]
    return items, [] in lists


def _pair(item: Any) -> Candidate | None:
    if not isinstance(item, dict):
        return None
    question, answer = _string(item, "question"), _string(item, "answer")
    if question is None or answer is None:
        return None
    return Candidate(question, answer)


Linked = tuple[Candidate, tuple[int, ...]]  # a pair and the passages, from 0, it needs


def read_linked(text: str, passages: int, cut: bool = False) -> list[Linked] | Malformed:
    """Pairs with the passages each says it needs; those that name none are left out."""
    text = _bare(text)
    items, said_none = _items(text)
    found: list[Linked] = []
    for item in items:
        pair = _pair(item)
        named = item.get("passages") if pair is not None else None
        if pair is not None and isinstance(named, list):
            rows = {n - 1 for n in named if type(n) is int and 1 <= n <= passages}
            found.append((pair, tuple(sorted(rows))))
    return found[:MOST_PAIRS] if found or said_none else _malformed(text, cut)


def read_text(text: str, key: str, cut: bool = False) -> str | Malformed:
    """The string under `key` in a reply."""
    text = _bare(text)
    for record in _objects(text):
        value = _string(record, key)
        if value is not None:
            return value
    return _malformed(text, cut)


def read_verdict(text: str, key: str, cut: bool = False) -> tuple[bool, str] | Malformed:
    """A yes or no under `key` and the reason beside it."""
    text = _bare(text)
    for record in _objects(text):
        value = record.get(key)
        if isinstance(value, str) and value.strip().lower() in _SPELLED:
            value = _SPELLED[value.strip().lower()]
        if isinstance(value, bool):
            return value, _string(record, "reason") or ""
    return _malformed(text, cut)


_SPELLED = {"true": True, "yes": True, "correct": True}
_SPELLED |= {"false": False, "no": False, "incorrect": False}
