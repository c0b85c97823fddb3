"""The exact scan: the cosine by hand, ties, filters, chunks, and nothing but finite numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clara_cli.errors import ClaraError
from clara_cli.search.exact import reciprocal_rank_fusion, rescore, scan


def chunked(memory_NMD: Tensor, size: int):
    for first in range(0, len(memory_NMD), size):
        yield first, memory_NMD[first : first + size]


def random_memory(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(seed))


def test_rescore_is_the_cosine_of_flattened_memory() -> None:
    query_MD = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    across_MD = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    part_MD = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    memory_NMD = torch.stack([query_MD, -query_MD, across_MD, part_MD, torch.zeros(2, 2)])
    assert rescore(query_MD, memory_NMD).tolist() == pytest.approx([1.0, -1.0, 0.0, 0.6, 0.0])


def test_scan_agrees_with_torch() -> None:
    memory_NMD, queries_BMD = random_memory(200), random_memory(5, seed=1)
    scores_BK, rows_BK = scan(queries_BMD, chunked(memory_NMD, 32), 7)
    wanted = torch.nn.functional.cosine_similarity(
        queries_BMD.flatten(1)[:, None], memory_NMD.flatten(1)[None], dim=-1
    ).topk(7)
    assert torch.equal(rows_BK, wanted.indices)
    torch.testing.assert_close(scores_BK, wanted.values, rtol=0, atol=1e-6)
    assert scores_BK.dtype == torch.float32 and rows_BK.dtype == torch.int64


@pytest.mark.parametrize("size", [1, 3, 64, 500])
def test_chunks_and_batches_change_no_bit(size: int) -> None:
    memory_NMD, queries_BMD = random_memory(300), random_memory(4, seed=1)
    scores_BK, rows_BK = scan(queries_BMD, chunked(memory_NMD, 100), 20)
    again_BK, rows_again_BK = scan(queries_BMD, chunked(memory_NMD, size), 20)
    assert torch.equal(scores_BK, again_BK) and torch.equal(rows_BK, rows_again_BK)
    single_K, rows_K = scan(queries_BMD[2], chunked(memory_NMD, size), 20)
    assert torch.equal(single_K, scores_BK[2]) and torch.equal(rows_K, rows_BK[2])
    assert torch.equal(rescore(queries_BMD[2], memory_NMD[rows_K]), single_K)


def test_ties_go_to_the_lower_row_across_chunks() -> None:
    one = random_memory(1)
    memory_NMD = torch.cat([random_memory(5, seed=3), one.expand(50, -1, -1), random_memory(5, 4)])
    scores_K, rows_K = scan(one[0], chunked(memory_NMD, 7), 12)
    assert rows_K.tolist() == list(range(5, 17))
    assert len(set(scores_K.tolist())) == 1


def test_k_is_clamped_and_some_rows_can_be_scanned() -> None:
    memory_NMD = random_memory(6)
    assert sorted(scan(memory_NMD[0], chunked(memory_NMD, 4), 99)[1].tolist()) == list(range(6))
    some = [([5], memory_NMD[5:]), ([], memory_NMD[:0]), ([0, 2], memory_NMD[[0, 2]])]
    scores_K, rows_K = scan(memory_NMD[0], some, 3)
    assert sorted(rows_K.tolist()) == [0, 2, 5] and rows_K[0] == 0
    assert torch.equal(scores_K, rescore(memory_NMD[0], memory_NMD[rows_K]))
    scores_BK, rows_BK = scan(memory_NMD[:2], iter(()), 3)
    assert scores_BK.shape == rows_BK.shape == (2, 0)


def test_zero_and_extreme_vectors() -> None:
    memory_NMD = torch.stack(
        [torch.zeros(3, 8), torch.full((3, 8), 1e30), torch.full((3, 8), 1e-30)]
    )
    scores_K, rows_K = scan(torch.ones(3, 8), chunked(memory_NMD, 2), 3)
    assert scores_K.tolist() == pytest.approx([1, 1, 0]) and rows_K.tolist() == [1, 2, 0]
    zero_K, rows_K = scan(torch.zeros(3, 8), chunked(memory_NMD, 2), 3)
    assert zero_K.tolist() == [0, 0, 0] and rows_K.tolist() == [0, 1, 2]


def test_what_is_not_finite_is_refused() -> None:
    memory_NMD = random_memory(4)
    bad_NMD = memory_NMD.clone()
    bad_NMD[2, 0, 0] = float("nan")
    with pytest.raises(ClaraError, match="passage's memory"):
        scan(memory_NMD[0], chunked(bad_NMD, 4), 2)
    with pytest.raises(ClaraError, match="query's memory"):
        scan(bad_NMD[2], chunked(memory_NMD, 4), 2)
    with pytest.raises(ClaraError, match="candidate's memory"):
        rescore(memory_NMD[0], bad_NMD)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-2, 2), min_size=4, max_size=40),
    k=st.integers(1, 12),
    size=st.integers(1, 9),
)
def test_scan_equals_a_sorted_list(values: list[int], k: int, size: int) -> None:
    count = len(values) // 2
    memory_NMD = torch.tensor(values[: 2 * count], dtype=torch.float32).reshape(count, 1, 2)
    query_MD = torch.tensor([[2.0, 1.0]])
    scores_N = rescore(query_MD, memory_NMD).tolist()
    wanted = sorted(range(count), key=lambda row: (-scores_N[row], row))[:k]
    assert scan(query_MD, chunked(memory_NMD, size), k)[1].tolist() == wanted


def test_reciprocal_rank_fusion_by_hand() -> None:
    assert reciprocal_rank_fusion([[1, 2, 3], [3, 1, 4]]) == [1, 3, 2, 4]
    assert reciprocal_rank_fusion([[9, 8], [8, 9]]) == [8, 9]
    assert reciprocal_rank_fusion([[5, 5, 6], [6]]) == [6, 5]
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []
    # 1/(0+2) + 1/(0+2) = 1/(0+1): equal at k0 = 0, not at 60
    assert reciprocal_rank_fusion([[7, 3], [8, 3]], k0=0) == [3, 7, 8]
