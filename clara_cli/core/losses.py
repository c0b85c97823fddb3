"""The losses of the method as pure functions of tensors.

B batch, N candidates, L passage tokens, M memory tokens, T decoder tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""The label of a position without a target."""


def alignment_mse(memory_BMD: Tensor, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """SCP's alignment loss (paper eq. 4): mean memory vector against mean text hidden state.

    `mask_BL` is true at the text positions that count (the compressor's whole input but the memory
    tokens). Mean over hidden and batch; both sides carry gradient.
    """
    weight_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
    text_BD = (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1)
    return F.mse_loss(memory_BMD.mean(dim=1).float(), text_BD.float())


def answer_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Next-token negative log-likelihood: logits at t against the label at t + 1, in float32.

    Mean over all labelled tokens of the batch, nats. `IGNORE` marks positions without a target.

    Raises:
        ValueError: when no position is labelled (the mean would be NaN).
    """
    targets_BT = labels_BT[:, 1:]
    wanted_BT = targets_BT != IGNORE
    if not wanted_BT.any():
        raise ValueError("no labelled token in the batch")
    return F.cross_entropy(logits_BTV[:, :-1][wanted_BT].float(), targets_BT[wanted_BT])


def infonce(scores_BN: Tensor, positives_BN: Tensor, temperature: float) -> Tensor:
    """Multi-positive InfoNCE: -(logsumexp over positives - logsumexp over all) of scores / T.

    Mean over the rows with at least one positive, nats; zero (with gradient) where no row has one.
    Candidates scored -inf do not exist.
    """
    logits_BN = scores_BN.float() / temperature
    positive_BN = positives_BN.bool()
    some_B = positive_BN.any(dim=-1)
    if not some_B.any():
        return logits_BN.masked_fill(logits_BN.isinf(), 0).sum() * 0.0
    logits_BN, positive_BN = logits_BN[some_B], positive_BN[some_B]
    chosen_B = torch.logsumexp(logits_BN.masked_fill(~positive_BN, -torch.inf), dim=-1)
    return (torch.logsumexp(logits_BN, dim=-1) - chosen_B).mean()
