"""Eight-bit memory: what is lost, what is stored, and what cannot be."""

from __future__ import annotations

import pytest
import torch

from clara_cli.corpus.quantize import BYTES, DTYPES, groups, pack, passage_bytes, unpack


def memory(n: int = 64, memory_tokens: int = 4, hidden: int = 320) -> torch.Tensor:
    """Like hidden states: most values near one, a few channels thirty times as large."""
    memory_NMD = torch.randn(n, memory_tokens, hidden, generator=torch.Generator().manual_seed(0))
    memory_NMD[..., :3] *= 30
    return memory_NMD


@pytest.mark.parametrize(
    ("dtype", "relative", "cosine"),
    [("float32", 0, 1), ("bf16", 2e-3, 0.99999), ("fp8", 3e-2, 0.9995), ("int8", 2.5e-2, 0.9997)],
)
def test_what_each_format_loses(dtype: str, relative: float, cosine: float) -> None:
    exact_NMD = memory()
    stored = pack(exact_NMD, dtype)
    found_NMD = unpack(stored["memory"], stored.get("scales"), dtype)
    assert found_NMD.dtype == torch.float32 and found_NMD.shape == exact_NMD.shape
    error = (found_NMD - exact_NMD).norm() / exact_NMD.norm()
    assert error <= relative
    flat = torch.nn.functional.cosine_similarity(found_NMD.flatten(1), exact_NMD.flatten(1))
    assert flat.min() >= cosine - 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [4, 128, 130])
def test_what_is_stored_is_what_is_counted(dtype: str, hidden: int) -> None:
    stored = pack(memory(3, 2, hidden), dtype)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 3 * passage_bytes(
        dtype, 2, hidden
    )
    assert stored["memory"].element_size() == BYTES[DTYPES[dtype]]
    assert stored.get("scales", torch.empty(3, 2, 0)).shape == (3, 2, groups(dtype, hidden))


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_zeros_stay_zeros_and_no_number_shows_in_the_scales(dtype: str) -> None:
    memory_NMD = torch.zeros(3, 2, 8)
    memory_NMD[1, 0, 0] = float("nan")
    memory_NMD[2, 1, 7] = float("inf")
    stored = pack(memory_NMD, dtype)
    assert not unpack(stored["memory"], stored["scales"], dtype)[0].any()
    assert torch.isfinite(stored["scales"]).flatten(1).all(1).tolist() == [True, False, False]
