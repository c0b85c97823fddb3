"""Answers: one with two sources, made up, and any as programs read it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from clara_cli.cli.show import json_line
from clara_cli.records import (
    Answer,
    Hit,
    Passage,
    Sentence,
)


def make_answer(question: str = "Who?", **changes: Any) -> Answer:
    text = "Ann was\nelected [bold]mayor[/bold]. " * 20
    passages = [Passage(f"d{i}:0", f"document-{i}", f"Title {i}", text, 0, 9, 3) for i in (1, 2)]
    sentence = Sentence("Ann was\nelected [bold]mayor[/bold].", 0, 34, 0)
    hits = tuple(Hit(i, i, 0.5 / i, p, sentence=sentence) for i, p in enumerate(passages, 1))
    seconds = {"query": 0.1, "search": 0.2, "generate": 0.3}
    made = Answer(question, "Ann [x].", 0.9, True, hits, 32, 60, 1200, seconds)
    return dataclasses.replace(made, **changes)


def plain(answer: Answer) -> dict[str, Any]:
    """An answer as programs read it, without its times."""
    record = json.loads(json.dumps(json_line.answer_json(answer)))
    record.pop("seconds")
    return record
