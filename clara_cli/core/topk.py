"""The straight-through top-k (paper Algorithm 1): a hard choice whose gradient is a softmax's.

Pure functions of tensors. B batch, N candidates, K selected.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mask = Literal["exact", "released"]


def straight_through_topk(
    scores_BN: Tensor, k: int, temperature: float, mask: Mask = "exact"
) -> tuple[Tensor, Tensor]:
    """Choose k candidates so that the choice can be trained.

    Args:
        scores_BN: one score per candidate; -inf marks a candidate that does not exist.
        k: how many to take, 1 to N.
        temperature: divides the scores (0.02 in the released code; at least 1e-6 is used).
        mask: "exact" gives candidates taken by earlier slots zero soft weight; "released" lowers
            their logit by 18.42, which leaves them nearly all of it once they lead by 0.37 in
            cosine at temperature 0.02, and so starves later slots of gradient.

    Returns:
        weights_BKN: slot j is the one-hot of the j-th best candidate in the forward pass; its
            gradient is that of softmax(scores / temperature) over the candidates not yet taken.
        indices_BK: the candidates taken, best first.

    Raises:
        ValueError: when k is not in 1..N or the mask is unknown.
    """
    count = scores_BN.shape[-1]
    if not 1 <= k <= count:
        raise ValueError(f"k is {k}, with {count} candidates it can be 1 to {count}")
    if mask not in ("exact", "released"):
        raise ValueError(f"mask is {mask!r}, known: exact, released")
    logits_BN = scores_BN.float() / max(temperature, 1e-6)
    indices_BK = logits_BN.topk(k, dim=-1).indices
    hard_BKN = torch.nn.functional.one_hot(indices_BK, count).to(logits_BN.dtype)
    taken_BKN = hard_BKN.cumsum(dim=1) - hard_BKN
    if mask == "exact":
        masked_BKN = logits_BN.unsqueeze(1).masked_fill(taken_BKN > 0, -torch.inf)
    else:
        masked_BKN = logits_BN.unsqueeze(1) + torch.log(1.0 - taken_BKN + 1e-8)
    soft_BKN = masked_BKN.softmax(dim=-1)
    return hard_BKN + soft_BKN - soft_BKN.detach(), indices_BK


def cosines(query_BMD: Tensor, memory_NMD: Tensor) -> Tensor:
    """scores_BN of every query with the same memories: cosine of the flattened M x D memories, in
    float32 (paper section 3.2)."""
    query_BE = torch.nn.functional.normalize(query_BMD.flatten(1).float(), dim=-1)
    memory_NE = torch.nn.functional.normalize(memory_NMD.flatten(1).float(), dim=-1)
    return query_BE @ memory_NE.T


def select(weights_BKN: Tensor, memory_BNMD: Tensor) -> Tensor:
    """selected_BKMD: the memories the weights pick; differentiable in both."""
    return torch.einsum("bkn,bnmd->bkmd", weights_BKN.to(memory_BNMD.dtype), memory_BNMD)
