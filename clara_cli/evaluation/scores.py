"""From answered lines to a scorecard a row: means over questions, intervals, what is best.

Knows lines and numbers; nothing of models, files or how things are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

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
from clara_cli.evaluation.runs import Line
from clara_cli.evaluation.systems import PHASES
from clara_cli.records import Scorecard

ANSWER_SCORES = {"em": exact_match, "f1": f1, "cover_em": cover_em}
CUTOFFS = (1, 3, 5)
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Scored:
    """A row's scorecard, its value per question (by metric, in order, for tests), the figures that
    are not in the card, and how many questions it answered."""

    card: Scorecard
    ids: tuple[str, ...]
    values: dict[str, list[float]]
    ranking: dict[str, float | None]
    phases: dict[str, float]


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
    without gold paragraphs out of the ranking's; a score nothing can be said about is None."""
    values = per_answer(predictions)
    phases = {phase: 1000 * mean([m["seconds"][phase] for m in measures]) for phase in PHASES}
    intervals = {key: interval(values[key], seed) for key in ANSWER_SCORES if values[key]}
    means = {key: mean(values[key]) if values[key] else None for key in ANSWER_SCORES}
    judged = [(p["hits"], p["gold"]) for p in predictions if p["gold"]]
    card = Scorecard(
        name=name,
        ratio=ratio,
        em=means["em"],
        f1=means["f1"],
        cover_em=means["cover_em"],
        recall={
            str(k): mean([recall_at(h, g, k) for h, g in judged]) if judged and k <= top_k else None
            for k in CUTOFFS
        },
        ci95={key: list(pair) for key, pair in intervals.items()},
        truncated=sum(m["truncated"] for m in measures),
        ms_per_question=round(sum(phases[p] for p in PHASES if p != "compress"), 3),
        context_tokens=round(mean([m["context_tokens"] for m in measures]), 3),
        bytes_per_passage=None if bytes_per_passage is None else round(bytes_per_passage, 1),
    )
    ids = tuple(p["id"] for p in predictions)
    return Scored(card, ids, values, _ranking(judged, top_k), phases)


def per_answer(predictions: Sequence[Line]) -> dict[str, list[float]]:
    """Each answer score, question by question."""
    answered = [(p["prediction"], p["golden_answers"]) for p in predictions if p["golden_answers"]]
    return {key: [s(said, gold) for said, gold in answered] for key, s in ANSWER_SCORES.items()}


def _ranking(judged: Sequence[tuple[list[str], list[str]]], top_k: int) -> dict[str, float | None]:
    def over(values: list[float]) -> float | None:
        return mean(values) if values else None

    found = {
        f"precision@{k}": over([precision_at(h, g, k) for h, g in judged])
        for k in CUTOFFS
        if k <= top_k
    }
    found["mrr"] = over([reciprocal_rank(h, g) for h, g in judged])
    found[f"ndcg@{top_k}"] = over([ndcg(h, g, top_k) for h, g in judged])
    return found


def mark_best(rows: Sequence[Scored], seed: int) -> list[Scored]:
    """Rows with `best` set: the metrics in which a row is the highest of those that answered the
    same questions and the paired difference to the next one is significant."""
    best: dict[int, list[str]] = {}
    plain = [i for i, row in enumerate(rows) if "/" not in row.card.name]
    for key in ANSWER_SCORES:
        means = {i: mean(rows[i].values[key]) for i in plain if rows[i].values[key]}
        ranked = sorted(means, key=lambda i: -means[i])
        if len(ranked) < 2:
            continue
        first, second = (rows[i].values[key] for i in ranked[:2])
        if mean(first) > mean(second) and permutation_p(first, second, seed) < SIGNIFICANT:
            best.setdefault(ranked[0], []).append(key)
    return [
        dataclasses.replace(row, card=dataclasses.replace(row.card, best=tuple(best.get(i, ()))))
        for i, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class Difference:
    """Two rows on the same questions: mean of `metric` in each, and the paired test's p."""

    first: str
    second: str
    metric: str
    n: int
    values: tuple[float, float]
    p: float


def differences(rows: Sequence[Scored], seed: int, metric: str = "f1") -> list[Difference]:
    """Every pair of plain rows by one metric."""
    plain = [row for row in rows if "/" not in row.card.name and row.values[metric]]
    found = []
    for i, first in enumerate(plain):
        for second in plain[i + 1 :]:
            a, b = first.values[metric], second.values[metric]
            p = permutation_p(a, b, seed)
            names = (label(first.card), label(second.card))
            found.append(Difference(*names, metric, len(a), (mean(a), mean(b)), p))
    return found


def label(card: Scorecard) -> str:
    """A row's name with its ratio."""
    return card.name if card.ratio is None else f"{card.name} {card.ratio}x"
