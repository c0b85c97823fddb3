"""Questions of a bench: who is mayor of six towns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAYORS = [
    ("Elmgate", "Nora Velden"),
    ("Frostmouth", "Ivo Sand"),
    ("Pinewick", "Una Holt"),
    ("Quarrel", "Max Orme"),
    ("Redwater", "Lia Frost"),
    ("Stonebridge", "Ben Lark"),
]


def sentence(town: str, name: str) -> str:
    return f"The mayor of {town} is {name}."


def question(number: int, pool: int = 3, **changes: Any) -> dict[str, Any]:
    """Who is mayor: a pool of the town's sentence and its neighbours', in the towns' order."""
    town, name = MAYORS[number]
    near = sorted((number + step) % len(MAYORS) for step in range(pool))
    paragraphs = [
        {"title": MAYORS[n][0], "text": sentence(*MAYORS[n]), "gold": n == number} for n in near
    ]
    record = {"id": f"q{number}", "question": f"Who is mayor of {town}?", "answer": name}
    return {**record, "paragraphs": paragraphs, **changes}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
