"""The index key: what a passage's wide memory becomes in a graph index. One rule, one place.

Tensor letters: B passages or queries, M memory tokens, D hidden, P = M x D, F key width.
A rule may need a state (tensors), made once per index and kept beside it, so that queries meet
the very numbers the keys were made with. Knows nothing of graphs or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clara_cli.errors import ClaraError, UsageError, nearest

State = Mapping[str, Tensor]


def _mean(memory_BMD: Tensor, state: State) -> Tensor:
    return memory_BMD.mean(1)


def _projection(memory_BMD: Tensor, state: State) -> Tensor:
    return memory_BMD.flatten(1) @ state["projection_PF"]


_RULES: dict[str, Callable[[Tensor, State], Tensor]] = {"mean": _mean, "projection": _projection}
KEY_RULES = tuple(_RULES)


def make_state(
    name: str, memory_tokens: int, hidden: int, width: int = 512, seed: int = 0
) -> dict[str, Tensor]:
    """What rule `name` needs besides memory: nothing for `mean`; for `projection` a seeded
    Gaussian [P, F] (F = `width`), float32. Raises UsageError for an unknown rule."""
    _refuse_unknown(name)
    if name != "projection":
        return {}
    generator = torch.Generator().manual_seed(seed)
    shape = (memory_tokens * hidden, width)
    return {"projection_PF": torch.randn(shape, generator=generator) / width**0.5}


def make_key(name: str, memory_BMD: Tensor, state: State) -> Tensor:
    """Keys [B, F] of memories [B, M, D] by rule `name`: float32, unit length, on the CPU.

    `mean` is the mean of the memory tokens (F = D), `projection` the flattened memory times the
    state's matrix. A zero memory gets a zero key. Raises UsageError for an unknown rule and
    ClaraError where a memory is not finite.
    """
    _refuse_unknown(name)
    memory_BMD = memory_BMD.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(memory_BMD).all()):
        raise ClaraError("a memory has values that are not finite", "try --dtype float32")
    keys_BF = _RULES[name](memory_BMD, state)
    norms_B1: Tensor = torch.linalg.vector_norm(keys_BF, dim=-1, keepdim=True)
    return keys_BF / norms_B1.clamp_min(torch.finfo(torch.float32).tiny)


def _refuse_unknown(name: str) -> None:
    if name not in _RULES:
        raise UsageError(f"unknown index key {name!r}", nearest(name, _RULES))
