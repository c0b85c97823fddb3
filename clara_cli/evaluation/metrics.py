"""Scores of answers and rankings, and how sure they are. Fractions 0-1, never rounded.

Answers are compared as SQuAD v2 does: lower case, no punctuation, no English articles, white space
joined. Knows text, ids and numbers; nothing of models or files.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2_000
_PERMUTATIONS = 10_000
_EXACT_UP_TO = 12  # pairs that differ: all 2^n sign flips are tried up to here
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> list[str]:
    """The tokens of an answer that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 where the prediction equals a gold answer."""
    return _best(_equal, prediction, golds)


def f1(prediction: str, golds: Sequence[str]) -> float:
    """Token F1 with the gold answer it is highest for; two empty answers agree."""
    return _best(_overlap, prediction, golds)


def cover_em(prediction: str, golds: Sequence[str]) -> float:
    """1 where the tokens of a gold answer stand in the prediction, one after the other."""
    return _best(_covers, prediction, golds)


def _best(
    score: Callable[[list[str], list[str]], float], prediction: str, golds: Sequence[str]
) -> float:
    said = normalise(prediction)
    return max((score(said, normalise(gold)) for gold in golds), default=0.0)


def _equal(said: list[str], gold: list[str]) -> float:
    return float(said == gold)


def _overlap(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _covers(said: list[str], gold: list[str]) -> float:
    if not gold:
        return float(not said)
    width = len(gold)
    return float(any(said[i : i + width] == gold for i in range(len(said) - width + 1)))


def recall_at(hits: Sequence[str], gold: Sequence[str], k: int) -> float:
    """Share of the gold ids among the first k hits."""
    wanted = set(gold)
    return len(wanted & set(hits[:k])) / len(wanted)


def precision_at(hits: Sequence[str], gold: Sequence[str], k: int) -> float:
    """Share of k places that hold a gold id; places left empty count against it."""
    return len(set(gold) & set(hits[:k])) / k


def reciprocal_rank(hits: Sequence[str], gold: Sequence[str]) -> float:
    """1 / rank of the first gold id, 0 where there is none."""
    return next((1 / rank for rank, hit in enumerate(hits, 1) if hit in set(gold)), 0.0)


def ndcg(hits: Sequence[str], gold: Sequence[str], k: int) -> float:
    """nDCG@k with gain 1 for a gold id."""
    wanted = set(gold)
    found = sum(1 / math.log2(n + 1) for n, hit in enumerate(hits[:k], 1) if hit in wanted)
    best = sum(1 / math.log2(n + 1) for n in range(1, min(len(wanted), k) + 1))
    return found / best


def mean(values: Sequence[float]) -> float:
    """The mean, exactly rounded, so that the order of the values does not matter."""
    return math.fsum(values) / len(values)


def interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over questions; the same seed resamples the same
    questions whatever the values."""
    rng = np.random.default_rng(seed)
    data_N = np.asarray(values, dtype=np.float64)
    rows = max(1, 2_000_000 // len(data_N))  # drawn at a time: bounds memory
    means = [
        data_N[rng.integers(len(data_N), size=(min(rows, resamples - done), len(data_N)))].mean(1)
        for done in range(0, resamples, rows)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def permutation_p(first: Sequence[float], second: Sequence[float], seed: int) -> float:
    """Two-sided p of the paired difference in means under random exchange of the two systems,
    question by question; exact for few differing questions, else by seeded sampling."""
    pairs = zip(first, second, strict=True)
    differences_N = np.array([a - b for a, b in pairs if a != b], dtype=np.float64)
    count = len(differences_N)
    if count == 0:
        return 1.0
    found = abs(differences_N.sum()) - 1e-9
    if count <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1, 1), repeat=count)))
        return float((np.abs(signs @ differences_N) >= found).mean())
    rng, beyond = np.random.default_rng(seed), 0
    rows = max(1, 2_000_000 // count)
    for done in range(0, _PERMUTATIONS, rows):
        size = (min(rows, _PERMUTATIONS - done), count)
        signs = rng.integers(2, size=size, dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ differences_N) >= found).sum())
    return (beyond + 1) / (_PERMUTATIONS + 1)
