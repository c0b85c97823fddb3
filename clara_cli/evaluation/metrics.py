"""Scores of answers and rankings, and how sure they are. Fractions 0-1, never rounded.

Answers are compared as SQuAD v2 does: lower case, no punctuation, no English articles, white space
joined. Knows text, ids and numbers; nothing of models or files.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

RESAMPLES, PERMUTATIONS = 2_000, 5_000
_DRAWN_AT_ONCE = 2_000_000  # values held in memory by a resampling
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
    normalised = normalise(prediction)
    return max((score(normalised, normalise(gold)) for gold in golds), default=0.0)


def _equal(words: list[str], gold: list[str]) -> float:
    return float(words == gold)


def _overlap(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = sum((Counter(words) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
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
    gain = sum(1 / math.log2(n + 1) for n, hit in enumerate(hits[:k], 1) if hit in wanted)
    best = sum(1 / math.log2(n + 1) for n in range(1, min(len(wanted), k) + 1))
    return gain / best


def mean(values: Sequence[float]) -> float:
    """The mean, exactly rounded, so that the order of the values does not matter."""
    return math.fsum(values) / len(values)


def interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, over questions; the same seed resamples the same
    questions whatever the values. Where all are 0, or all 1, there is nothing to resample and the
    exact binomial interval says how sure that is."""
    if set(values) in ({0.0}, {1.0}):
        right = stats.binomtest(round(sum(values)), len(values)).proportion_ci(level, "exact")
        return float(right.low), float(right.high)
    if len(set(values)) < 2:
        return values[0], values[0]
    bounds = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // len(values)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def permutation_p(first: Sequence[float], second: Sequence[float], seed: int) -> float:
    """Two-sided p of the paired difference in means under random exchange of the two systems,
    question by question; exact where few questions differ, else by seeded sampling. Questions on
    which they agree change nothing and are left out."""
    pairs = zip(first, second, strict=True)
    differences_N = np.array([a - b for a, b in pairs if a != b], dtype=np.float64)
    if len(differences_N) < 2:  # of one, both signs are as far from nothing
        return 1.0
    test = stats.permutation_test(
        (differences_N,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=max(1, _DRAWN_AT_ONCE // len(differences_N)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
