"""Writes the sample corpus: 100 invented and 100 real passages, and 60 questions on them.

The invented passages come from `recipes/nano/world.py`, held-out entities only, so no model trained
on that world has seen them. The real passages and their questions are kept by hand in `real.jsonl`
and `real_questions.jsonl`. Output depends on nothing but these files and the seed.
Run: python recipes/sample/make.py
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
SEED = 2024
INVENTED_PASSAGES = 100
INVENTED_QUESTIONS = 30
MOST_MENTIONS = 3  # of its own name in one passage; more reads badly
# Sentences that do not quite say what their questions ask: where someone was born, when a ship was
# launched, what a company makes, who employed someone.
LOOSE = r"\b(grew up in|came from|Work on the|sells|spent many years at)\b"


def load_world() -> ModuleType:
    """The generator of invented facts, loaded from its file."""
    path = HERE.parent / "nano" / "world.py"
    spec = importlib.util.spec_from_file_location("clara_sample_world", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write objects as JSON Lines, the same bytes on every system."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode("utf-8"))


def polish(text: str) -> str:
    """Mend the English of a generated passage: "a engineer", a book that "plays in" a town."""
    text = re.sub(r"\ba (?=[aeio])", "an ", text)
    return text.replace(" plays in ", " is set in ")


def invent(world: ModuleType, rng: random.Random) -> list[Any]:
    """Held-out entries with different titles and few mentions of them, the kinds taking turns."""
    kinds = list(world.KINDS)
    made: dict[str, Any] = {}
    while len(made) < INVENTED_PASSAGES:
        entry = world.entry(rng, held_out=True, kind=kinds[len(made) % len(kinds)])
        if entry.text.count(entry.title) <= MOST_MENTIONS:
            made.setdefault(entry.title, entry)
    return list(made.values())


def askable(fact: Any, entry: Any, texts: list[str]) -> bool:
    """Whether one passage answers a question on this fact, and it alone names the entity."""
    if re.search(LOOSE, fact.sentence):
        return False
    name = re.compile(rf"\b{re.escape(entry.title)}\b")
    return sum(bool(name.search(text)) for text in texts) == 1


def answers(fact: Any) -> list[str]:
    """The value as it stands in the passage, then other ways to write it."""
    found = [fact.value]
    if fact.value.startswith("River "):
        found.append(fact.value.removeprefix("River "))
    if fact.attribute in ("population", "staff", "length") and int(fact.value) >= 1000:
        found.append(f"{int(fact.value):,}")
    return found


def ask(
    world: ModuleType, rng: random.Random, entries: list[Any], texts: list[str]
) -> list[dict[str, Any]]:
    """Questions on different entities: every kind equally often, each time another attribute."""
    per_kind = INVENTED_QUESTIONS // len(world.KINDS)
    rows = []
    for kind, (_, _, attributes) in world.KINDS.items():
        used: set[int] = set()
        for attribute in rng.sample(list(attributes), k=per_kind):
            choices = [
                (place, fact)
                for place, entry in enumerate(entries)
                if entry.kind == kind and place not in used
                for fact in entry.facts
                if fact.attribute == attribute and askable(fact, entry, texts)
            ]
            place, fact = rng.choice(choices)
            used.add(place)
            rows.append(
                {
                    "question": rng.choice(fact.questions),
                    "answers": answers(fact),
                    "gold": [f"invented-{place + 1:03d}"],
                    "kind": "invented",
                }
            )
    return rows


def build(folder: Path = HERE) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write corpus.jsonl and questions.jsonl into a folder; return their rows."""
    world = load_world()
    rng = random.Random(SEED)
    entries = invent(world, rng)
    texts = [polish(entry.text) for entry in entries]
    invented = [
        {"id": f"invented-{place:03d}", "title": entry.title, "text": text, "kind": "invented"}
        for place, (entry, text) in enumerate(zip(entries, texts, strict=True), start=1)
    ]
    real = [
        {"id": f"real-{place:03d}", **row, "kind": "real"}
        for place, row in enumerate(read_lines(HERE / "real.jsonl"), start=1)
    ]
    by_title = {row["title"]: row["id"] for row in real}
    asked = ask(world, rng, entries, texts) + [
        {
            "question": row["question"],
            "answers": row["answers"],
            "gold": [by_title[row["title"]]],
            "kind": "real",
        }
        for row in read_lines(HERE / "real_questions.jsonl")
    ]
    corpus = invented + real
    rng.shuffle(corpus)
    rng.shuffle(asked)
    questions = [{"id": f"q-{place:03d}", **row} for place, row in enumerate(asked, start=1)]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "questions.jsonl", questions)
    return corpus, questions


if __name__ == "__main__":
    passages, questions = build()
    print(f"{len(passages)} passages and {len(questions)} questions written to {HERE}")
