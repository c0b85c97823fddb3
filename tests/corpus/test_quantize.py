"""Memory in eight and four bits: what is lost, what is stored, and what cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.corpus.quantize import BYTES, FORMATS, pack, passage_bytes, unpack


def memory(n: int = 64, memory_tokens: int = 4, hidden: int = 320) -> torch.Tensor:
    """Like hidden states: most values near one, a few channels thirty times as large."""
    memory_NMD = torch.randn(n, memory_tokens, hidden, generator=torch.Generator().manual_seed(0))
    memory_NMD[..., :3] *= 30
    return memory_NMD


@pytest.mark.parametrize(
    ("dtype", "relative", "cosine"),
    [
        ("float32", 0, 1),
        ("bf16", 2e-3, 0.99999),
        ("fp8", 3e-2, 0.9995),
        ("int8", 2.5e-2, 0.9997),
        ("nf4", 0.11, 0.993),
    ],
)
def test_what_each_format_loses(dtype: str, relative: float, cosine: float) -> None:
    exact_NMD = memory()
    stored = pack(exact_NMD, dtype)
    read_NMD = unpack(stored["memory"], stored.get("scales"), dtype, 320)
    assert read_NMD.dtype == torch.float32 and read_NMD.shape == exact_NMD.shape
    error = (read_NMD - exact_NMD).norm() / exact_NMD.norm()
    assert error <= relative
    flat = torch.nn.functional.cosine_similarity(read_NMD.flatten(1), exact_NMD.flatten(1))
    assert flat.min() >= cosine - 1e-6


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("hidden", [1, 4, 33, 128, 130])
def test_what_is_stored_is_what_is_counted(dtype: str, hidden: int) -> None:
    stored = pack(memory(3, 2, hidden), dtype)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 3 * passage_bytes(
        dtype, 2, hidden
    )
    shapes = FORMATS[dtype].shapes(2, hidden)
    assert {name: [3, *shape] for name, (_, shape) in shapes.items()} == {
        name: list(tensor.shape) for name, tensor in stored.items()
    }
    assert {name: BYTES[kind] for name, (kind, _) in shapes.items()} == {
        name: tensor.element_size() for name, tensor in stored.items()
    }


def test_four_bits_take_a_seventh_of_float32_with_their_scales() -> None:
    assert passage_bytes("nf4", 64, 576) == 64 * (576 // 2 + 2 * 576 // 32) == 20_736
    assert passage_bytes("float32", 64, 576) == 147_456


@given(
    dtype=st.sampled_from(["fp8", "int8", "nf4"]),
    hidden=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(-6, 9),
)
def test_a_value_is_off_by_half_a_step_of_its_group_at_most(
    dtype: str, hidden: int, seed: int, spread: int
) -> None:
    drawn_NMD = torch.randn(2, 3, hidden, generator=torch.Generator().manual_seed(seed))
    memory_NMD = drawn_NMD * 2.0**spread
    stored = pack(memory_NMD, dtype)
    read_NMD = unpack(stored["memory"], stored["scales"], dtype, hidden)
    assert read_NMD.shape == memory_NMD.shape
    width = FORMATS[dtype].group or hidden
    # the widest step, of the group's largest value
    step = {"fp8": 2**-3, "int8": 1 / 127, "nf4": 1 - 0.69619}[dtype]
    for start in range(0, hidden, width):
        group_NME = memory_NMD[..., start : start + width]
        largest_NM = group_NME.abs().amax(-1, keepdim=True)
        error_NME = (read_NMD[..., start : start + width] - group_NME).abs()
        assert bool((error_NME <= largest_NM * (step / 2 + 2**-10)).all())
    again = pack(read_NMD, dtype)
    assert all(torch.equal(again[name].float(), stored[name].float()) for name in stored)


def test_four_bits_are_the_nearest_level_and_two_share_a_byte() -> None:
    memory_NMD = torch.tensor([[[2.0, -2.0, 0.0, 0.9, -0.2]]])
    stored = pack(memory_NMD, "nf4")
    assert stored["memory"].tolist() == [[[0x0F, 0xC7, 0x76]]]  # the first in the low bits
    assert stored["scales"].tolist() == [[[2.0]]]
    read_NMD = unpack(stored["memory"], stored["scales"], "nf4", 5)
    assert read_NMD[0, 0].tolist() == pytest.approx([2, -2, 0, 2 * 0.44070983, -2 * 0.09105004])


@pytest.mark.parametrize("hidden", [2, 8])
def test_every_byte_of_fp8_is_read_as_torch_reads_it(hidden: int) -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(-1, 1, hidden)
    read_NMD = unpack(stored, torch.ones(len(stored), 1, 1), "fp8", hidden)
    torch.testing.assert_close(read_NMD, stored.float(), rtol=0, atol=0, equal_nan=True)
    assert int(read_NMD.isnan().sum()) == 2  # e4m3 has no infinity


@pytest.mark.parametrize("dtype", ["fp8", "int8", "nf4"])
def test_zeros_stay_zeros_and_no_number_shows_in_the_scales(dtype: str) -> None:
    memory_NMD = torch.zeros(3, 2, 8)
    memory_NMD[1, 0, 0] = float("nan")
    memory_NMD[2, 1, 7] = float("inf")
    stored = pack(memory_NMD, dtype)
    assert not unpack(stored["memory"], stored["scales"], dtype, 8)[0].any()
    assert torch.isfinite(stored["scales"]).flatten(1).all(1).tolist() == [True, False, False]
