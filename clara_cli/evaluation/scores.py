"""From answered lines to a scorecard a row: means over questions, intervals, what is best.

Knows lines and numbers; nothing of models, files or how timed_tasks are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from clara_cli.bench_records import Scorecard
from clara_cli.evaluation.metrics import (
    cover_em,
    exact_match,
    f1,
    interval,
    mean,
    ndcg,
    permutation_p,
    precision_at,
    recall_at,
    reciprocal_rank,
)
from clara_cli.evaluation.predictions import Line
from clara_cli.evaluation.systems import PHASES

ANSWER_SCORES = {"em": exact_match, "f1": f1, "cover_em": cover_em}
CUTOFFS = (1, 3, 5)
SIGNIFICANT = 0.05


Values = list[float | None]
"""A score question by question; None where nothing can be said."""


@dataclass(frozen=True)
class Scored:
    """A row's scorecard, its value per question (by metric, in order, for tests), and the figures
    that are not in the card."""

    card: Scorecard
    ids: tuple[str, ...]
    values: dict[str, Values]
    ranking: dict[str, float | None]
    phases: dict[str, float | None]


def score(
    name: str,
    ratio: int | None,
    predictions: Sequence[Line],
    measures: Sequence[Line],
    *,
    top_k: int,
    seed: int,
    bytes_per_passage: float | None,
) -> Scored:
    """One row's scores. Questions without a gold answer are left out of the answer scores, those
    without gold paragraphs out of the ranking's, and those without an answer out of everything; a
    score nothing can be said about is None."""
    values = per_answer(predictions)
    scored = {key: [x for x in values[key] if x is not None] for key in ANSWER_SCORES}
    answered = [m for m in measures if "seconds" in m]
    errors = [str(m["error"]) for m in measures if "error" in m]
    phases = {p: _mean([1000 * m["seconds"][p] for m in answered]) for p in PHASES}
    intervals = {key: interval(scores, seed) for key, scores in scored.items() if scores}
    lengths = [len(p["prediction"].split()) for p in predictions if p["prediction"] is not None]
    judged = [
        (p["hits"], p["gold"]) for p in predictions if p["gold"] and p["prediction"] is not None
    ]
    card = Scorecard(
        name=name,
        ratio=ratio,
        em=_mean(scored["em"]),
        f1=_mean(scored["f1"]),
        cover_em=_mean(scored["cover_em"]),
        answer_words=_mean(lengths),
        empty_share=_mean([float(not length) for length in lengths]),
        recall={
            str(k): _mean([recall_at(h, g, k) for h, g in judged]) if k <= top_k else None
            for k in CUTOFFS
        },
        ci95={key: list(pair) for key, pair in intervals.items()},
        truncated=sum(m["truncated"] for m in answered),
        ms_per_question=_rounded(_mean([_answering(m) for m in answered])),
        context_tokens=_rounded(_mean([m["context_tokens"] for m in answered])),
        bytes_per_passage=None if bytes_per_passage is None else round(bytes_per_passage, 1),
        effective_ratio=_rounded(_effective_ratio(answered)),
        out_of_memory=len(measures) - len(answered) - len(errors),
        unanswered=len(errors),
        error=errors[0] if errors else "",
    )
    ids = tuple(p["id"] for p in predictions)
    return Scored(card, ids, values, _ranking(judged, top_k), phases)


def per_answer(predictions: Sequence[Line]) -> dict[str, Values]:
    """Each answer score, question by question."""
    found: dict[str, Values] = {key: [] for key in ANSWER_SCORES}
    for line in predictions:
        said, gold = line["prediction"], line["golden_answers"]
        for key, compare in ANSWER_SCORES.items():
            found[key].append(compare(said, gold) if gold and said is not None else None)
    return found


def paired(first: Values, second: Values) -> tuple[list[float], list[float]]:
    """The values of the questions on which both rows say something."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def _answering(measure: Line) -> float:
    """Milliseconds of answering: memory was compressed before."""
    return 1000 * sum(measure["seconds"][phase] for phase in PHASES if phase != "compress")


def _effective_ratio(measures: Sequence[Line]) -> float | None:
    """Text tokens a memory token over all questions; None where no memory was read."""
    read = [m for m in measures if m.get("text_tokens") is not None]
    memory_tokens = sum(m["context_tokens"] for m in read)
    return sum(m["text_tokens"] for m in read) / memory_tokens if memory_tokens else None


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _ranking(judged: Sequence[tuple[list[str], list[str]]], top_k: int) -> dict[str, float | None]:
    cuts = [k for k in CUTOFFS if k <= top_k]
    figures = {f"precision@{k}": _mean([precision_at(h, g, k) for h, g in judged]) for k in cuts}
    figures["mrr"] = _mean([reciprocal_rank(h, g) for h, g in judged])
    figures[f"ndcg@{top_k}"] = _mean([ndcg(h, g, top_k) for h, g in judged])
    return figures


def mark_best(rows: Sequence[Scored], seed: int) -> list[Scored]:
    """Rows with `best` set: the metrics in which a plain row is the highest and the paired
    difference to the next one, on the questions both answered, is significant."""
    best: dict[int, list[str]] = {}
    plain = [i for i, row in enumerate(rows) if "/" not in row.card.name]
    for key in ANSWER_SCORES:
        means = {i: m for i in plain if (m := getattr(rows[i].card, key)) is not None}
        ranked = sorted(means, key=lambda i: -means[i])
        if len(ranked) < 2:
            continue
        first, second = paired(*(rows[i].values[key] for i in ranked[:2]))
        if first and mean(first) > mean(second):
            if permutation_p(first, second, seed) < SIGNIFICANT:
                best.setdefault(ranked[0], []).append(key)
    return [
        dataclasses.replace(row, card=dataclasses.replace(row.card, best=tuple(best.get(i, ()))))
        for i, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class Difference:
    """Two rows on the questions both answered: mean of `metric` in each, and the paired test's
    p."""

    first: str
    second: str
    metric: str
    n: int
    values: tuple[float, float]
    p: float


def differences(rows: Sequence[Scored], seed: int, metric: str = "f1") -> list[Difference]:
    """Every pair of plain rows by one metric."""
    plain = [row for row in rows if "/" not in row.card.name]
    differences_found = []
    for i, first in enumerate(plain):
        for second in plain[i + 1 :]:
            a, b = paired(first.values[metric], second.values[metric])
            if a:
                p = permutation_p(a, b, seed)
                names = (label(first.card), label(second.card))
                differences_found.append(Difference(*names, metric, len(a), (mean(a), mean(b)), p))
    return differences_found


def label(card: Scorecard) -> str:
    """A row's name with its ratio."""
    return card.name if card.ratio is None else f"{card.name} {card.ratio}x"
