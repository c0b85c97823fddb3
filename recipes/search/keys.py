"""Measures search on a compressed corpus: keys, engines and first stages, side by side.

    python recipes/search/keys.py search.clara runs/search/questions.jsonl --questions 300

The corpus is what `clara compress` made of `passages.py`'s documents. Prints two Markdown tables:
for each key, recall against the exact scan over the number of candidates; then for each engine, key
and first stage the recall against the exact scan and against gold, time, and size. Questions are
taken evenly from the file; systems answer each question in turn, so that all meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from torch import Tensor

from clara_cli import Clara
from clara_cli.answering.retriever import CANDIDATES_PER_K, FirstStage, Retriever, passage_text
from clara_cli.corpus.store import Corpus
from clara_cli.search.bm25 import BM25
from clara_cli.search.evaluated_queries import EvaluatedQueries
from clara_cli.search.graph_index import GraphIndex
from clara_cli.search.hnsw import HnswGraph, HnswSettings
from clara_cli.search.key_selection import (
    COUNTS,
    GOOD_RECALL,
    MOST_CANDIDATES,
    Key,
    MeasuredKey,
    cheapest,
    cost,
    measure_keys,
    recall,
    widen,
)

K = 5


@dataclass
class System:
    """One row of the table."""

    engine: str
    key: str
    stage: FirstStage
    retriever: Retriever
    candidates: int | None
    build_seconds: float
    bytes: int
    found: list[list[int]]
    seconds: list[float]


def say(what: str) -> None:
    """Progress, on stderr."""
    print(what, file=sys.stderr, flush=True)  # noqa: T201


def read_questions(path: Path, limit: int) -> list[dict]:
    """So many questions, evenly from the whole file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rows[:: max(1, len(rows) // limit)][:limit]


def graph_of(corpus: Corpus, key: Key, candidates: int, seed: int) -> tuple[GraphIndex, float, int]:
    """A key's graph, the seconds it took and its bytes on disk."""
    began = time.monotonic()
    index = GraphIndex.build(
        (key.of(memory_NMD) for _, memory_NMD in corpus.memory_chunks()),
        lambda width, most: HnswGraph.new(width, most, HnswSettings(seed=seed)),
        rows=len(corpus),
        rule=key.rule,
        state=key.state,
        corpus_sha256=corpus.manifest.fingerprint,
        candidates_per_k=-(-candidates // K),
    )
    seconds = time.monotonic() - began
    say(f"{key.name}: graph built in {seconds:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        return index, seconds, index.save(Path(folder))


def systems(
    corpus: Corpus, keys: Sequence[Key], ranks: Sequence[Tensor], asked: EvaluatedQueries, seed: int
) -> Iterator[System]:
    """The exact scan and every key's graph, with each first stage; a graph gets the candidates it
    needs, as `clara index` gives it."""
    began = time.monotonic()
    words = BM25.build(map(passage_text, corpus.passages()))
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        size = words.save(Path(folder))

    def system(engine: str, key: str, stage: FirstStage, index: GraphIndex | None, *rest) -> System:
        retriever = Retriever(corpus, index, words)
        return System(engine, key, stage, retriever, *rest, [], [])

    yield system("exact", "-", "latent", None, None, 0.0, 0)
    yield system("exact", "-", "bm25", None, None, seconds, size)
    yield system("exact", "-", "hybrid", None, CANDIDATES_PER_K * K, seconds, size)
    most = int(len(corpus) * MOST_CANDIDATES)
    for key, rank_BK in zip(keys, ranks, strict=True):
        good = [c for c in COUNTS if K <= c <= most and recall(rank_BK, c) >= GOOD_RECALL]
        count = good[0] if good else max(K, most)
        index, spent, bytes_ = graph_of(corpus, key, count, seed)
        pair = MeasuredKey(key, count, recall(rank_BK, count))
        count = widen(pair, len(corpus), partial(asked.recall, index)).candidates
        yield system("hnsw", key.name, "latent", index, count, spent, bytes_)
        yield system("hnsw", key.name, "hybrid", index, count, spent + seconds, bytes_ + size)


def answer(rows: Sequence[System], questions: Sequence[dict], queries_BMD: Tensor) -> None:
    """Every system finds passages for every question, in turn."""
    for number, (question, query_MD) in enumerate(zip(questions, queries_BMD, strict=True), 1):
        say(f"question {number} of {len(questions)}")
        for system in rows:
            began = time.perf_counter()
            ranked = system.retriever.search(
                question["question"], query_MD, K, system.stage, system.candidates
            )
            system.seconds.append(time.perf_counter() - began)
            system.found.append([row for _, row in ranked])


def curve_table(keys: Sequence[Key], ranks: Sequence[Tensor], passages: int) -> Iterator[str]:
    """Recall over the number of candidates, a key a line."""
    counts = [c for c in COUNTS if K <= c <= passages]
    yield "| key | " + " | ".join(f"{count:,}" for count in counts) + " |"
    yield "|---" * (len(counts) + 1) + "|"
    for key, rank_BK in zip(keys, ranks, strict=True):
        figures = " | ".join(f"{recall(rank_BK, count):.3f}" for count in counts)
        yield f"| {key.name} | {figures} |"


def system_table(rows: Sequence[System], best: Sequence[set[int]], gold: Sequence[set[int]]):
    """Everything measured of each system, a system a line."""
    names = ("engine", "key", "first stage", "candidates", "recall@5 exact", "recall@5 gold", "ms")
    yield "| " + " | ".join((*names, "build s", "MB")) + " |"
    yield "|---" * 9 + "|"
    for row in rows:
        pairs = zip(row.found, best, strict=True)
        exact = sum(len(set(found) & top) / len(top) for found, top in pairs) / len(best)
        right = sum(bool(set(f) & g) for f, g in zip(row.found, gold, strict=True)) / len(gold)
        count = "-" if row.candidates is None else f"{row.candidates:,}"
        yield (
            f"| {row.engine} | {row.key} | {row.stage} | {count} | {exact:.3f} | {right:.3f} "
            f"| {1e3 * median(row.seconds):.2f} | {row.build_seconds:.1f} | {row.bytes / 1e6:.1f} |"
        )


def verdict(keys: Sequence[Key], ranks: Sequence[Tensor], corpus: Corpus) -> str:
    """What `clara index --engine auto` takes from these figures."""
    identity = corpus.manifest.identity
    numbers, ef = identity.memory_tokens * identity.hidden, HnswSettings().ef
    pair = cheapest(keys, ranks, len(corpus), numbers, ef)
    if pair is None:
        return f"No key reaches {GOOD_RECALL} within {MOST_CANDIDATES:.0%}: the exact scan stays."
    read = cost(pair.key.width, pair.candidates, numbers, ef)
    return (
        f"Cheapest at {GOOD_RECALL}: {pair.key.name} with {pair.candidates:,} candidates "
        f"({pair.candidates / len(corpus):.2%} of the corpus), recall {pair.recall:.3f}; it reads "
        f"{read:,} numbers a question, the exact scan {len(corpus) * numbers:,}."
    )


def run(folder: Path, file: Path, limit: int, seed: int) -> str:
    """Measure, and say it in Markdown."""
    clara = Clara.open(folder, device="cpu")
    corpus = clara.corpus
    questions = read_questions(file, limit)
    identity = corpus.manifest.identity
    encode = partial(clara.query, memory_tokens=identity.memory_tokens)
    shape = (identity.memory_tokens, identity.hidden)
    asked = EvaluatedQueries.read([q["question"] for q in questions], encode, corpus, shape, K)
    if len(asked) < len(questions):
        raise SystemExit("a question is longer than the checkpoint reads")
    keys, ranks = measure_keys(corpus, asked, seed)
    say("recall of every key over the number of candidates:")
    say("\n".join(curve_table(keys, ranks, len(corpus))))
    rows = list(systems(corpus, keys, ranks, asked, seed))
    answer(rows, questions, asked.queries_BMD)
    passages_of: dict[str, set[int]] = {}
    for row, passage in enumerate(corpus.passages()):
        passages_of.setdefault(passage.document_id, set()).add(row)
    gold = [passages_of[question["gold"]] for question in questions]
    best = [set(rows_K) for rows_K in asked.best_BK.tolist()]
    heading = f"{len(corpus):,} passages, {len(questions)} questions, seed {seed}"
    curves, table = curve_table(keys, ranks, len(corpus)), system_table(rows, best, gold)
    parts = [heading, "\n".join(curves), verdict(keys, ranks, corpus), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("questions_file", type=Path, metavar="QUESTIONS")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(run(args.corpus, args.questions_file, args.questions, args.seed))  # noqa: T201


if __name__ == "__main__":
    main()
