"""Writes the training files of nano's three roles: pairs for `clara pretrain`, questions with pools
for `clara train`. Everything is invented (world.py) and follows from the seed.

    python recipes/nano/data.py runs/nano-data --pairs 6000 --questions 8000
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import world

from clara_cli.search.bm25 import BM25

POOL = 8  # passages a question comes with


def pairs(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Two question-answer records to one paraphrase; half the passages carry their title."""
    rng = random.Random(f"pairs {seed}")
    for number in range(count):
        entry = world.entry(rng)
        text = f"{entry.title}\n{entry.text}" if rng.random() < 0.5 else entry.text
        if number % 3 == 2:
            record = {
                "data_type": "paraphrase",
                "question": [],
                "answers": [world.retell(entry, rng)],
            }
        else:
            facts = rng.sample(entry.facts, k=len(entry.facts))
            asked = [rng.choice(fact.questions) for fact in facts]
            record = {"data_type": "qa", "question": asked, "answers": [f.value for f in facts]}
        yield {**record, "docs": [text]}


def questions(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """One fact of one entity; half of the other passages are of the same kind. The pool is in the
    order a first stage gives it, BM25's."""
    rng = random.Random(f"questions {seed}")
    for number in range(count):
        gold = world.entry(rng)
        fact = rng.choice(gold.facts)
        others = [world.entry(rng, kind=gold.kind if i % 2 else None) for i in range(POOL - 1)]
        pool = rng.sample([gold, *others], k=POOL)
        question = rng.choice(fact.questions)
        _, ranked = BM25.build(f"{e.title}\n{e.text}" for e in pool).search(question, POOL)
        unranked = [i for i in range(POOL) if i not in ranked]
        order = [pool[i] for i in [*ranked, *unranked]]
        yield {
            "id": f"nano-{seed}-{number}",
            "question": question,
            "answer": fact.value,
            "paragraphs": [{"title": e.title, "text": e.text, "gold": e is gold} for e in order],
        }


def write(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--questions", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "pairs.jsonl", pairs(args.pairs, args.seed))
    write(args.out / "questions.jsonl", questions(args.questions, args.seed))


if __name__ == "__main__":
    main()
