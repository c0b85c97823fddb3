"""The choice of key, candidates and engine: the ranks by hand, the rule at its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clara_cli.search.exact import scan
from clara_cli.search.key_selection import (
    Key,
    MeasuredKey,
    cheapest,
    cost,
    keys_to_try,
    ranks_of_best,
    recall,
    scan_is_cheaper,
    widen,
)

NUMBERS, EF = 4096, 64


def memories(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, 16, generator=torch.Generator().manual_seed(seed))


def key(width: int) -> Key:
    return Key("mean", width, {})


@pytest.mark.parametrize("size", [1, 37, 300])
def test_ranks_are_places_in_the_keys_own_ranking(size: int) -> None:
    memory_NMD, queries_BMD = memories(300), memories(6, seed=1)
    chunks = [(n, memory_NMD[n : n + size]) for n in range(0, 300, size)]
    best_BK = scan(queries_BMD, chunks, 4)[1]
    keys = keys_to_try(memory_NMD, seed=0)
    ranks = ranks_of_best(keys, queries_BMD, best_BK, memory_NMD.__getitem__, chunks)
    for each, rank_BK in zip(keys, ranks, strict=True):
        order = (each.of(queries_BMD) @ each.of(memory_NMD).T).argsort(dim=1, descending=True)
        places = [[order[b].tolist().index(r) for r in best_BK[b].tolist()] for b in range(6)]
        assert rank_BK.tolist() == places


def test_equal_memories_rank_together_and_pca_of_full_rank_ranks_as_the_scan() -> None:
    memory_NMD = torch.cat([memories(1).expand(5, -1, -1), memories(20, 3)])
    chunks = [(0, memory_NMD)]
    best_BK = scan(memory_NMD[:1], chunks, 5)[1]
    keys = keys_to_try(memory_NMD, seed=0)
    (ranks,) = ranks_of_best(keys[-1:], memory_NMD[:1], best_BK, memory_NMD.__getitem__, chunks)
    assert keys[-1].rule == "pca" and ranks.tolist() == [[0] * 5]


def test_every_width_of_pca_is_tried_once() -> None:
    names = [each.name for each in keys_to_try(memories(300), seed=0)]
    assert names == ["mean-16", "means-32", "projection-512", "pca-32"]  # rank 32 of 2 x 16
    wide = [each.name for each in keys_to_try(torch.randn(300, 4, 128), seed=0)]
    assert wide[3:] == ["pca-64", "pca-128", "pca-256"]


def test_recall_by_hand() -> None:
    rank_BK = torch.tensor([[0, 9], [10, 50]])
    assert [recall(rank_BK, count) for count in (1, 10, 11, 51)] == [0.25, 0.5, 0.75, 1.0]


def test_the_cheapest_pair_is_the_one_that_reads_least() -> None:
    """Of 98 in 100 within 50 candidates of 16, and 100 in 100 within 10 of 256."""
    narrow = torch.tensor([[49]] * 98 + [[10_000]] * 2)
    wide = torch.zeros(100, 1, dtype=torch.long)
    chosen = cheapest([key(16), key(256)], [narrow, wide], 20_000, NUMBERS, EF)
    assert chosen == MeasuredKey(key(16), 50, pytest.approx(0.98))
    assert cost(16, 50, NUMBERS, EF) == 64 * 32 * 16 + 50 * NUMBERS
    assert cost(16, 50, NUMBERS, EF) < cost(256, 10, NUMBERS, EF)
    chosen = cheapest([key(16), key(256)], [narrow + 1, wide], 20_000, NUMBERS, EF)
    assert chosen is not None and (chosen.key.width, chosen.candidates) == (16, 100)


def test_no_pair_beyond_five_percent_or_below_k() -> None:
    ranks = torch.full((10, 1), 49)
    assert cheapest([key(16)], [ranks], 1000, NUMBERS, EF) is not None  # 50 of 1,000
    assert cheapest([key(16)], [ranks], 999, NUMBERS, EF) is None
    many = torch.zeros(10, 30, dtype=torch.long)
    chosen = cheapest([key(16)], [many], 20_000, NUMBERS, EF)
    assert chosen is not None and chosen.candidates == 50  # 10 and 20 are fewer than k = 30


def test_a_small_corpus_is_scanned_a_large_one_is_not() -> None:
    pair = MeasuredKey(key(64), 50, 1.0)
    assert scan_is_cheaper(pair, 200, NUMBERS, EF)
    assert not scan_is_cheaper(pair, 20_000, NUMBERS, EF)


def test_an_approximate_graph_gets_the_candidates_it_needs():
    """The key finds enough within 50; the graph, here, within 200, or never."""
    pair = MeasuredKey(Key("pca", 64, {}), 50, 0.99)
    wide = widen(pair, 20_000, {50: 0.97, 100: 0.979, 200: 0.98}.get)
    assert (wide.key, wide.candidates) == (pair.key, 200)
    assert widen(pair, 20_000, lambda count: 0.9) == pair
    assert widen(pair, 3_000, {50: 0.97, 100: 0.97, 200: 0.99}.get) == pair  # 200 are over 5 %
    assert widen(pair, 20_000, lambda count: None) == pair
    assert widen(replace(pair, recall=0.9), 20_000, lambda count: 1.0).candidates == 50
