"""Follow-up questions in a conversation over the sample: how often the right passage comes first
and the answer is exact, with and without what was said before.

Thirty-six pairs about held-out invented entities, six of each kind: a first question that names the
entity, a second on another fact that only points back ("When was it founded?").

clara compress recipes/sample/corpus.jsonl --ratio 16 --out sample.clara
python recipes/sample/followups.py sample.clara --top-k 1
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make import SEED, askable, invent, load_world, polish, read_lines

from clara_cli.answering.engine import Clara
from clara_cli.answering.followup import refers_back
from clara_cli.answering.session import ClaraSession
from clara_cli.config import AskConfig
from clara_cli.evaluation.metrics import exact_match
from clara_cli.records import NullReport

HERE = Path(__file__).resolve().parent
EACH = 6  # pairs of a kind


@dataclass(frozen=True)
class Pair:
    """A question that names its entity, and one that points back to it."""

    first: str
    second: str
    answer: str
    document: str


def pairs() -> Iterator[Pair]:
    """Two facts of an entry of the sample, the second question with its name taken out."""
    world = load_world()
    entries = invent(world, random.Random(SEED))
    texts = [polish(entry.text) for entry in entries]
    for kind in world.KINDS:
        found = (pair_of(i, e, texts) for i, e in enumerate(entries, 1) if e.kind == kind)
        kept = [pair for pair in found if pair is not None]
        yield from kept[:EACH]


def pair_of(number: int, entry: Any, texts: list[str]) -> Pair | None:
    """The pair of an entry, where two of its facts can be asked for by its name."""
    asked = []
    for fact in entry.facts:
        named = [question for question in fact.questions if entry.title in question]
        if named and askable(fact, entry, texts):
            asked.append((named[0], fact.value))
    if len(asked) < 2:
        return None
    (first, _), (second, answer) = asked[:2]
    pointing = second.replace(f"the {entry.title}", entry.title)
    pointing = pointing.replace(f"{entry.title}'s", "its").replace(entry.title, "it")
    return Pair(first, pointing, answer, f"invented-{number:03d}")


def measure(clara: Clara, top_k: int) -> dict[str, Any]:
    """Counts over the pairs, with the conversation and with each question by itself."""
    config = AskConfig(top_k=top_k, max_new_tokens=12)
    counts = {"first": {"alone": 0, "conversation": 0}, "exact": {"alone": 0, "conversation": 0}}
    asked = list(pairs())
    for pair in asked:
        for way in ("alone", "conversation"):
            session = ClaraSession(clara, config, NullReport())
            if way == "conversation":
                session.ask(pair.first)
            answer = session.ask(pair.second)
            hits = [hit.passage.document_id for hit in answer.sources]
            counts["first"][way] += hits[:1] == [pair.document]
            counts["exact"][way] += int(exact_match(answer.answer, [pair.answer]))
    others = [row["question"] for row in read_lines(HERE / "questions.jsonl")]
    wrongly = sum(map(refers_back, others))
    missed = sum(not refers_back(pair.second) for pair in asked)
    rule = {"missed": missed, "questions": len(others), "wrongly": wrongly}
    return {"pairs": len(asked), "top_k": top_k, **counts, "rule": rule}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--top-k", type=int, default=1)
    args = parser.parse_args()
    result = measure(Clara.open(args.corpus, device="cpu"), args.top_k)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
