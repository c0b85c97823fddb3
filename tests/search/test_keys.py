"""Index keys: their numbers by hand, their freezing, their refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clara_cli.errors import ClaraError, UsageError
from clara_cli.search.keys import KEY_RULES, make_key, make_state, sample_size


def sample(rows: int = 40, tokens: int = 4, hidden: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, tokens, hidden, generator=torch.Generator().manual_seed(seed))


def test_means_by_hand() -> None:
    memory_BMD = torch.tensor([[[4.0, 0.0], [2.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    keys_BF = make_key("mean", memory_BMD, make_state("mean", memory_BMD))
    assert keys_BF[0].tolist() == pytest.approx([0.6, 0.8])
    assert keys_BF[1].tolist() == [0, 0]
    six_BMD = torch.tensor([[[1.0], [3.0], [0.0], [4.0], [5.0], [6.0]]])  # runs of 2, 2, 1, 1
    keys_BF = make_key("means", six_BMD, {})
    assert (keys_BF[0] / keys_BF[0, 0] * 2).tolist() == pytest.approx([2, 2, 5, 6])
    assert make_key("means", six_BMD[:, :2], {}).shape == (1, 2)


def test_projection_keeps_cosines_and_is_frozen_by_its_seed() -> None:
    memory_BMD = sample(20)
    state = make_state("projection", memory_BMD, width=1024, seed=3)
    assert state["projection_PF"].shape == (256, 1024)
    memory_BMD[10:] += memory_BMD[:10]
    keys_BF = make_key("projection", memory_BMD, state)
    flat_BP = torch.nn.functional.normalize(memory_BMD.flatten(1))
    error = (keys_BF @ keys_BF.T - flat_BP @ flat_BP.T).abs().max()
    assert error < 0.15 and keys_BF.dtype == torch.float32
    again = make_state("projection", memory_BMD, width=1024, seed=3)
    assert torch.equal(again["projection_PF"], state["projection_PF"])
    other = make_state("projection", memory_BMD, width=1024, seed=4)
    assert not torch.equal(other["projection_PF"], state["projection_PF"])


def test_pca_spans_what_an_svd_of_the_unit_sample_spans() -> None:
    sample_NMD = sample()
    basis_PF = make_state("pca", sample_NMD, width=8)["projection_PF"]
    torch.testing.assert_close(basis_PF.T @ basis_PF, torch.eye(8), rtol=0, atol=1e-4)
    unit_NP = torch.nn.functional.normalize(sample_NMD.flatten(1))
    wanted_FP = torch.linalg.svd(unit_NP, full_matrices=False).Vh[:8]
    torch.testing.assert_close(
        basis_PF @ basis_PF.T, wanted_FP.T @ wanted_FP, rtol=0, atol=1e-4
    )  # the same projector, whatever the signs


def test_pca_of_low_rank_memory_keeps_cosines_and_no_more_directions_than_there_are() -> None:
    low_NMD = (sample(30, 1, 3) @ torch.randn(3, 128)).reshape(30, 2, 64)
    state = make_state("pca", low_NMD, width=16)
    assert state["projection_PF"].shape == (128, 3)
    keys_NF = make_key("pca", low_NMD, state)
    flat_NP = torch.nn.functional.normalize(low_NMD.flatten(1))
    torch.testing.assert_close(keys_NF @ keys_NF.T, flat_NP @ flat_NP.T, rtol=0, atol=1e-4)
    assert make_state("pca", torch.zeros(4, 2, 8), width=3)["projection_PF"].shape == (16, 1)


def test_pca_needs_a_sound_sample() -> None:
    with pytest.raises(ClaraError, match="no passages"):
        make_state("pca", torch.empty(0, 2, 8))
    with pytest.raises(ClaraError, match="not finite"):
        make_state("pca", torch.full((2, 2, 8), float("nan")))


def test_a_sample_is_bounded_in_rows_and_bytes() -> None:
    assert sample_size(16, 256) == 2048
    assert sample_size(16, 4096) * 16 * 4096 * 4 <= 2**28
    assert sample_size(10**6, 10**6) == 1


@pytest.mark.parametrize("rule", KEY_RULES)
def test_keys_have_unit_length(rule: str) -> None:
    memory_BMD = sample(5, 3, 8).bfloat16()
    state = make_state(rule, memory_BMD, width=16)
    assert make_key(rule, memory_BMD, state).norm(dim=-1).tolist() == pytest.approx([1] * 5)
    with pytest.raises(ClaraError, match="not finite"):
        make_key(rule, torch.full((1, 3, 8), float("inf")), state)


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'projektion'") as caught:
        make_state("projektion", sample())
    assert "'projection'" in caught.value.hint


@pytest.mark.parametrize("rule", KEY_RULES)
def test_a_memory_so_large_that_its_sums_overflow_has_the_key_of_a_smaller_one(rule: str) -> None:
    memory_BMD = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    state = make_state(rule, memory_BMD, width=6)
    expected = make_key(rule, memory_BMD, state)
    factors_B11 = torch.tensor([1.0, 1e30, 1.0, 8e37, 1e16, 1.0])[:, None, None]
    keys = make_key(rule, memory_BMD * factors_B11, state)
    assert torch.isfinite(keys).all()
    assert (keys - expected).abs().max() < 1e-5
    assert torch.equal(keys[[0, 2, 5]], expected[[0, 2, 5]])
    if rule == "pca":
        large = make_state(rule, memory_BMD * factors_B11, width=6)["projection_PF"]
        assert torch.isfinite(large).all()
        assert torch.allclose(large.abs(), state["projection_PF"].abs(), atol=1e-4)
