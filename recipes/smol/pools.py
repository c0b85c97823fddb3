"""Questions with the passage that answers them among its nearest others by BM25.

    python recipes/smol/pools.py squad/dev.jsonl.xz runs/dev_pools.jsonl --questions 500

Every pool has the passage a question was asked about and its four best others of the file, in the
order BM25 ranks them; `clara bench --setting oracle` gives all five to the systems. Questions are
drawn with --seed.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import bm25s
from data import NEIGHBOURS, read_jsonl, write_jsonl


def main() -> None:
    """Draw questions, rank passages, write pools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    passages = list(read_jsonl(options.passages))
    asked = [(number, qa) for number, passage in enumerate(passages) for qa in passage["qas"]]
    drawn = random.Random(options.seed).sample(asked, min(options.questions, len(asked)))
    index = bm25s.BM25()
    texts = [f"{passage['title']} {passage['text']}" for passage in passages]
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    write_jsonl(options.out, [pool(passages, index, number, qa) for number, qa in drawn])


def pool(
    passages: list[dict[str, Any]], index: bm25s.BM25, gold: int, qa: dict[str, Any]
) -> dict[str, Any]:
    """One question with its five passages, best first; the one that answers it is the last where
    BM25 does not rank it among them."""
    query = bm25s.tokenize([qa["question"]], show_progress=False)
    rows, _ = index.retrieve(query, k=min(NEIGHBOURS + 1, len(passages)), show_progress=False)
    ranked = [int(row) for row in rows[0]]
    if gold not in ranked:
        ranked[-1] = gold
    paragraphs = [
        {"title": passages[row]["title"], "text": passages[row]["text"], "gold": row == gold}
        for row in ranked
    ]
    named = {"id": qa["id"], "question": qa["question"], "answers": qa["answers"]}
    return {**named, "paragraphs": paragraphs}


if __name__ == "__main__":
    main()
