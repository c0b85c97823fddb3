"""Writes the corpora and questions for `recipes/support/calibrate.py` and for measuring `--read`.

    python recipes/nano/support_data.py runs/controls [--squad dev.jsonl.xz]

`world`: held-out invented entities, a question each. `squad`: the passages of a file of passage
lines (`title`, `text`, `qas`), the first question of every fifth. Follows from the seed alone.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import world

EVERY = 5  # passages of squad to one question


def invented(count: int, seed: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(document, question) of distinct held-out entities."""
    rng = random.Random(f"support {seed}")
    entries: dict[str, world.Entry] = {}
    while len(entries) < count:
        entry = world.entry(rng, held_out=True)
        entries.setdefault(entry.title, entry)
    for number, entry in enumerate(entries.values()):
        name, fact = f"w{number}", rng.choice(entry.facts)
        document = {"id": name, "title": entry.title, "text": entry.text}
        asked = {"question": rng.choice(fact.questions), "answers": [fact.value], "gold": [name]}
        yield document, asked


def squad(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """(document, question or None) of every passage."""
    opened = lzma.open if file.suffix == ".xz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record, name = json.loads(line), f"s{number}"
            document = {"id": name, "title": record["title"], "text": record["text"]}
            asked = None
            if number % EVERY == 0 and record["qas"]:
                first = record["qas"][0]
                asked = {k: first[k] for k in ("question", "answers")} | {"gold": [name]}
            yield document, asked


def write(folder: Path, name: str, made: Iterator[tuple[dict[str, Any], Any]]) -> None:
    """`name.jsonl` and `name_questions.jsonl`."""
    pairs = list(made)
    for suffix, records in (
        ("", [d for d, _ in pairs]),
        ("_questions", [q for _, q in pairs if q]),
    ):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}{suffix}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--entities", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, "world", invented(args.entities, args.seed))
    if args.squad is not None:
        write(args.out, "squad", squad(args.squad))


if __name__ == "__main__":
    main()
