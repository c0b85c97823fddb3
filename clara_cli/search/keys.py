"""The index key: what a passage's wide memory becomes in a graph index. One rule, one place.

Tensor letters: B passages or queries, M memory tokens, D hidden, P = M x D, F key width, N rows
of a sample. A rule may need a state (tensors), made once per index and kept beside it, so that
queries meet the very numbers the keys were made with. Knows nothing of graphs or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clara_cli.errors import ArtefactError, ClaraError, UsageError, nearest

State = Mapping[str, Tensor]

GROUPS = 4  # neighbouring memory tokens averaged together by `means`
_LARGE = 1e15  # values whose products could overflow float32
SAMPLE_ROWS, SAMPLE_NUMBERS = 2048, 2**26  # of a sample to fit on: rows, and 256 MiB of float32


def sample_size(memory_tokens: int, hidden: int) -> int:
    """How many passages a state is fitted on."""
    return max(1, min(SAMPLE_ROWS, SAMPLE_NUMBERS // (memory_tokens * hidden)))


def _mean(memory_BMD: Tensor, state: State) -> Tensor:
    return memory_BMD.mean(1)


def _means(memory_BMD: Tensor, state: State) -> Tensor:
    groups = memory_BMD.tensor_split(min(GROUPS, memory_BMD.shape[1]), dim=1)
    return torch.cat([group_BMD.mean(1) for group_BMD in groups], dim=1)


def _projection(memory_BMD: Tensor, state: State) -> Tensor:
    return memory_BMD.flatten(1) @ state["projection_PF"]


_RULES: dict[str, Callable[[Tensor, State], Tensor]] = {
    "mean": _mean,
    "means": _means,
    "projection": _projection,
    "pca": _projection,
}
KEY_RULES = tuple(_RULES)


def make_state(name: str, sample_NMD: Tensor, width: int = 128, seed: int = 0) -> dict[str, Tensor]:
    """What rule `name` needs besides memory: nothing for the means; else a float32 matrix [P, F].

    `projection` draws it from a Gaussian by `seed`, F = `width`. `pca` takes the first `width`
    principal directions of the sample's flattened memories at unit length, at most N of them, about
    the origin: cosines are about the origin too. Raises UsageError for an unknown rule and
    ClaraError where the sample is empty or not finite.
    """
    _refuse_unknown(name)
    if name == "projection":
        generator = torch.Generator().manual_seed(seed)
        shape = (sample_NMD.shape[1] * sample_NMD.shape[2], width)
        return {"projection_PF": torch.randn(shape, generator=generator) / width**0.5}
    if name == "pca":
        return {"projection_PF": _principal(_finite(sample_NMD), width)}
    return {}


def wrong_state(name: str, state: State, width: int) -> str:
    """What keeps a state read from a file from making keys of `width` numbers by rule `name`, in
    words; empty where nothing does. Whether it fits a memory is seen when there is one."""
    if _RULES[name] is not _projection:
        return f"rule {name} needs no tensor {min(state)!r}" if state else ""
    matrix = state.get("projection_PF")
    if matrix is None or len(state) > 1:
        return f"rule {name} needs one tensor 'projection_PF', there are {sorted(state)}"
    if matrix.dtype != torch.float32 or matrix.ndim != 2 or matrix.shape[1] != width:
        kind = f"{str(matrix.dtype).removeprefix('torch.')} {list(matrix.shape)}"
        return f"tensor 'projection_PF' is {kind}, not float32 [P, {width}]"
    return "" if bool(torch.isfinite(matrix).all()) else "'projection_PF' has no finite numbers"


def make_key(name: str, memory_BMD: Tensor, state: State) -> Tensor:
    """Keys [B, F] of memories [B, M, D] by rule `name`: float32, unit length, on the CPU.

    `mean` is the mean of the memory tokens (F = D), `means` those of four runs of neighbours side
    by side (F = 4 D), `projection` and `pca` the flattened memory times the state's matrix. A zero
    memory gets a zero key. Raises UsageError for an unknown rule and ClaraError where a memory is
    not finite, ArtefactError where the matrix is for memories of another size.
    """
    _refuse_unknown(name)
    matrix, numbers = state.get("projection_PF"), memory_BMD.shape[1] * memory_BMD.shape[2]
    if matrix is not None and matrix.shape[0] != numbers:
        message = f"the index's keys are made of {matrix.shape[0]} numbers, a memory has {numbers}"
        raise ArtefactError(message, "build it again with clara index")
    return _unit(_RULES[name](_finite(memory_BMD), state))


def _principal(sample_NMD: Tensor, width: int) -> Tensor:
    """Principal directions [P, F] by way of the sample's [N, N] products: no [P, P] is formed."""
    if not len(sample_NMD):
        raise ClaraError("no passages to fit the index key on", "use --engine exact")
    sample_NP = _unit(sample_NMD.flatten(1))
    values_N, vectors_NN = torch.linalg.eigh((sample_NP @ sample_NP.T).double())
    kept = max(1, min(width, int((values_N > 1e-6 * values_N[-1]).sum())))
    values_F, vectors_NF = values_N.flip(0)[:kept], vectors_NN.flip(1)[:, :kept]
    scaled_NF = (vectors_NF / values_F.clamp_min(1e-12).sqrt()).float()
    return (sample_NP.T @ scaled_NF).contiguous()


def _finite(memory_BMD: Tensor) -> Tensor:
    """Memories as float32; those so large that their sums would overflow are made smaller, which
    changes no key: its length is one."""
    memory_BMD = memory_BMD.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(memory_BMD).all()):
        raise ClaraError("a memory has values that are not finite", "try --dtype float32")
    peak_B11 = memory_BMD.abs().amax((1, 2), keepdim=True) if len(memory_BMD) else memory_BMD
    if not bool((peak_B11 > _LARGE).any()):
        return memory_BMD
    return torch.where(peak_B11 > _LARGE, memory_BMD / peak_B11, memory_BMD)


def _unit(rows_BF: Tensor) -> Tensor:
    norms_B1: Tensor = torch.linalg.vector_norm(rows_BF, dim=-1, keepdim=True)
    return rows_BF / norms_B1.clamp_min(torch.finfo(torch.float32).tiny)


def _refuse_unknown(name: str) -> None:
    if name not in _RULES:
        raise UsageError(f"unknown index key {name!r}", nearest(name, _RULES))
