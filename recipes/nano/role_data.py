"""Writes the training files of nano's three roles: pairs for `clara pretrain`, questions with pools
for `clara train`, and the pools' passages as documents. Invented (world.py), and real where
`--real` names a folder with squad/train.

    python recipes/nano/role_data.py runs/nano-data --pairs 6000 --questions 8000 --real DATA

Pools are in the order a first stage gives them, BM25's, and say which passage is gold; with
`clara train --pool retrieved` nobody looks at that. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sources
import world

from clara_cli.search.bm25 import BM25

POOL = 8  # passages a question comes with
LONGEST = 40  # characters of a real answer


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


def short(passage: sources.Source) -> list[tuple[str, str]]:
    """A real passage's questions with short answers."""
    return [(q, a) for q, a in passage.pairs if 0 < len(a) <= LONGEST]


def real_pairs(squad: list[sources.Source], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Real passages with up to six of their questions."""
    rng = random.Random(f"real pairs {seed}")
    usable = [p for p in squad if short(p)]
    for passage in rng.sample(usable, k=min(count, len(usable))):
        chosen = rng.sample(short(passage), k=min(6, len(short(passage))))
        yield {
            "data_type": "qa",
            "question": [q for q, _ in chosen],
            "answers": [a for _, a in chosen],
            "docs": [f"{passage.title}\n{passage.text}"],
        }


def real_questions(squad: list[sources.Source], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Real questions; the pool is what BM25 finds among all passages, the gold one added last
    where it is not found."""
    rng = random.Random(f"real questions {seed}")
    bm25 = BM25.build(f"{p.title}\n{p.text}" for p in squad)
    usable = [i for i, p in enumerate(squad) if short(p)]
    for number, gold in enumerate(rng.sample(usable, k=min(count, len(usable)))):
        question, answer = rng.choice(short(squad[gold]))
        _, found = bm25.search(question, POOL)
        pool = found if gold in found else [*found[: POOL - 1], gold]
        yield {
            "id": f"squad-{seed}-{number}",
            "question": question,
            "answer": answer,
            "paragraphs": [
                {"title": squad[i].title, "text": squad[i].text, "gold": i == gold} for i in pool
            ],
        }


def mixed(*parts: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Records of several kinds, shuffled."""
    records = [record for part in parts for record in part]
    random.Random(seed).shuffle(records)
    yield from records


def documents(questions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every passage of the questions' pools, once: what `--pool retrieved` searches."""
    pools = (passage for question in questions for passage in question["paragraphs"])
    for title, text in dict.fromkeys((p["title"], p["text"]) for p in pools):
        yield {"title": title, "text": text}


def write(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--questions", type=int, default=8000)
    parser.add_argument("--real", type=Path, help="folder with squad/train.jsonl.xz: half is real")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    squad = []
    if args.real is not None:
        found = sources.squad(args.real / "squad" / "train.jsonl.xz")
        squad = [p for p in found if not p.held]
    half, seed = (2 if squad else 1), args.seed
    made_pairs = list(pairs(args.pairs // half, seed))
    made_questions = list(questions(args.questions // half, seed))
    asked = list(real_pairs(squad, args.pairs // 2, seed))
    pooled = list(real_questions(squad, args.questions // 2, seed)) if squad else []
    write(args.out / "pairs.jsonl", mixed(made_pairs, asked, seed=seed))
    write(args.out / "questions.jsonl", mixed(made_questions, pooled, seed=seed))
    write(args.out / "documents.jsonl", documents(made_questions + pooled))


if __name__ == "__main__":
    main()
