"""Scores by hand, against another implementation, and intervals that cover as often as they say."""

from __future__ import annotations

import math
import random
import re
import string
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.evaluation.metrics import (
    cover_em,
    exact_match,
    f1,
    interval,
    mean,
    ndcg,
    normalise,
    permutation_p,
    precision_at,
    recall_at,
    reciprocal_rank,
)

# --- another implementation, written from the description of SQuAD v2's script ---


def reference_tokens(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def reference_f1(said: str, gold: str) -> float:
    a, b = reference_tokens(said), reference_tokens(gold)
    if len(a) == 0 or len(b) == 0:
        return float(a == b)
    same = sum(min(a.count(token), b.count(token)) for token in set(a))
    return 2 * same / (len(a) + len(b))


PIECES = [
    *["the", "The", "a", "an", "An", "A.", "a-b", "U.S.", "10", "1,000", "Paris", "paris", "PARIS"],
    *["don't", "dont", "é", "É", "東京", "then", "theatre", "\u00a0", "\t", "-", "…", "“the”", ""],
    *["no", "yes", "(a)", "b", "İ", "ß", "the the", "3.14", "$5"],
]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
    st.text(max_size=12),
)


@settings(max_examples=1000, deadline=None)
@given(TEXT, TEXT)
def test_em_and_f1_agree_with_another_implementation(said: str, gold: str) -> None:
    same = float(reference_tokens(said) == reference_tokens(gold))
    assert exact_match(said, [gold]) == same
    assert f1(said, [gold]) == pytest.approx(reference_f1(said, gold), abs=1e-12)
    assert exact_match(said, [gold]) <= cover_em(said, [gold])


@settings(max_examples=200, deadline=None)
@given(TEXT, st.lists(TEXT, min_size=1, max_size=4))
def test_the_best_gold_answer_counts(said: str, golds: list[str]) -> None:
    for score in (exact_match, f1, cover_em):
        assert score(said, golds) == max(score(said, [gold]) for gold in golds)


@pytest.mark.parametrize(
    ("said", "golds", "expected"),
    [  # EM, F1, Cover-EM
        ("The Eiffel Tower!", ["eiffel tower"], (1, 1, 1)),
        ("in the Eiffel Tower", ["Eiffel Tower"], (0, 0.8, 1)),
        ("concatenate", ["cat"], (0, 0, 0)),
        ("in 2010", ["10"], (0, 0, 0)),
        ("a b b", ["b"], (0, 2 / 3, 1)),
        ("Tower Eiffel", ["Eiffel Tower"], (0, 1, 0)),
        ("", ["Paris"], (0, 0, 0)),
        ("", ["the"], (1, 1, 1)),
        ("Paris", ["the"], (0, 0, 0)),
        ("U.S.", ["US", "America"], (1, 1, 1)),
        ("Paris", [], (0, 0, 0)),
    ],
)
def test_scores_by_hand(said: str, golds: list[str], expected: tuple[float, float, float]) -> None:
    found = (exact_match(said, golds), f1(said, golds), cover_em(said, golds))
    assert found == pytest.approx(expected)


def test_articles_are_words_not_letters() -> None:
    assert normalise("The theatre, a-an AN area") == ["theatre", "aan", "area"]


def test_ranking_by_hand() -> None:
    hits, gold = ["x", "g1", "y", "g2"], ["g1", "g2", "g3"]
    assert [recall_at(hits, gold, k) for k in (1, 3, 5)] == [0, 1 / 3, 2 / 3]
    assert [precision_at(hits, gold, k) for k in (1, 3, 5)] == [0, 1 / 3, 2 / 5]
    assert reciprocal_rank(hits, gold) == 0.5
    assert reciprocal_rank(hits, ["z"]) == 0
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg(hits, gold, 5) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ndcg(["g1"], gold, 1) == 1


def test_rankings_agree_with_ir_measures() -> None:
    """200 random rankings of 1 to 8 hits among 12 ids, 1 to 6 of them gold."""
    from ir_measures import RR, P, Qrel, R, ScoredDoc, iter_calc, nDCG

    rng = random.Random(11)
    ids = [f"d{n}" for n in range(12)]
    asked = {f"q{n}": (rng.sample(ids, rng.randint(1, 8)), rng.sample(ids, rng.randint(1, 6)))
             for n in range(200)}  # fmt: skip
    qrels = [Qrel(q, d, 1) for q, (_, gold) in asked.items() for d in gold]
    run = [ScoredDoc(q, d, -rank) for q, (hits, _) in asked.items() for rank, d in enumerate(hits)]
    cuts = (1, 3, 5)
    measures = [RR, *(m @ k for m in (P, R, nDCG) for k in cuts)]
    seen = 0
    for found in iter_calc(measures, qrels, run):
        hits, gold = asked[found.query_id]
        k = found.measure.params.get("cutoff", 0)
        ours = {
            "RR": lambda h, g, _: reciprocal_rank(h, g),
            "P": precision_at,
            "R": recall_at,
            "nDCG": ndcg,
        }[found.measure.NAME]
        assert ours(hits, gold, k) == pytest.approx(found.value, abs=1e-6), found
        seen += 1
    assert seen == 200 * 10


def test_ndcg_is_one_for_the_best_order_only() -> None:
    for order in product("gx", repeat=4):
        hits = [f"{mark}{i}" for i, mark in enumerate(order)]
        gold = [hit for hit in hits if hit[0] == "g"]
        if gold:
            sorted_first = list(order) == sorted(order)
            assert (ndcg(hits, gold, 4) == pytest.approx(1)) == sorted_first


def test_the_mean_does_not_depend_on_order() -> None:
    values = [0.1] * 7 + [1e16, 1.0, -1e16]
    assert mean(values) == mean(values[::-1])


def test_intervals_repeat_and_hold_the_mean() -> None:
    rng = random.Random(3)
    values = [rng.random() for _ in range(50)]
    low, high = interval(values, seed=1)
    assert (low, high) == interval(values, seed=1) != interval(values, seed=2)
    assert low < mean(values) < high
    assert interval([0.4], seed=0) == (0.4, 0.4)


def test_nothing_right_is_not_sure_to_be_nothing() -> None:
    """40 wrong answers: the exact binomial interval, whose upper end is 1 - 0.025 ** (1 / 40)."""
    low, high = interval([0.0] * 40, seed=0)
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 40)))
    assert interval([1.0] * 40, seed=0) == (pytest.approx(1 - high), 1)


def test_intervals_cover_at_their_rate() -> None:
    """400 samples of 80 answers each right with 0.35: about 95 % of the intervals hold 0.35
    (the percentile bootstrap is a little narrow; binomial noise is 1.1 %)."""
    rng = random.Random(5)
    covered = 0
    for trial in range(400):
        low, high = interval([float(rng.random() < 0.35) for _ in range(80)], trial, resamples=500)
        covered += low <= 0.35 <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_permutation_p_by_hand() -> None:
    assert permutation_p([1, 1, 1, 0.5], [0, 0, 0, 0.5], 0) == 2 / 8
    assert permutation_p([1, 0], [0, 1], 0) == 1
    assert permutation_p([0.3] * 5, [0.3] * 5, 0) == 1
    assert permutation_p([1, 0, 0], [0, 0, 0], 0) == 1  # one differs: both signs are as far


def test_permutation_p_sampled_agrees_with_the_sign_test() -> None:
    """15 wins, 3 losses of equal size: the exact two-sided sign test."""
    first = [1.0] * 15 + [0.0] * 3
    tails = sum(math.comb(18, k) for k in range(4)) * 2 / 2**18
    assert permutation_p(first, [1 - x for x in first], 0) == pytest.approx(tails, abs=5e-3)


def test_permutation_p_is_uniform_under_no_difference() -> None:
    rng = random.Random(9)
    below = 0
    for trial in range(200):
        first = [rng.random() for _ in range(20)]
        second = [rng.random() for _ in range(20)]
        below += permutation_p(first, second, trial) < 0.1
    assert 0.04 <= below / 200 <= 0.17


def test_repeated_words_count_as_often_as_both_have_them() -> None:
    assert f1("b b c", ["b c c"]) == pytest.approx(2 / 3)
