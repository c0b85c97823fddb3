"""Question-answer pairs of anybody's through the gates that need no language model: how many pass,
what turns the others away, and some of them to read.

python recipes/synth/gates.py pairs.jsonl --show 20 --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator

from clara_cli.documents.examples import read_pairs
from clara_cli.synthesis.quality_checks import (
    Candidate,
    Limits,
    Verdict,
    check_duplicate,
    check_pair,
)


def judged(paths: list[str]) -> Iterator[tuple[str, Candidate, Verdict | None]]:
    """(file:line, pair, verdict) of every question-answer pair; duplicates are sought among the
    pairs of one document."""
    for record in read_pairs(paths):
        kept: list[Candidate] = []
        text = "\n".join(record.texts)
        for pair in map(Candidate, record.questions, record.answers):
            verdict = check_pair(pair, text, Limits()) or check_duplicate(pair, kept)
            if verdict is None:
                kept.append(pair)
            yield record.source, pair, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--show", type=int, default=0, help="rejected pairs to print")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    rejected = []
    for source, pair, verdict in judged(args.pairs):
        counts["passed" if verdict is None else verdict.gate] += 1
        if verdict is not None:
            rejected.append((source, pair, verdict))
    shown = random.Random(args.seed).sample(rejected, min(args.show, len(rejected)))
    for source, pair, verdict in shown:
        line = {"source": source, "gate": verdict.gate, "detail": verdict.detail}
        line |= {"question": pair.question, "answer": pair.answer}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    totals = {"pairs": counts.total(), **dict(counts.most_common())}
    sys.stdout.write(json.dumps(totals) + "\n")


if __name__ == "__main__":
    main()
