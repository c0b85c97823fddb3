"""The losses of the method as pure functions of tensors.

B batch, N candidates, L passage tokens, M memory tokens, T decoder tokens, P labelled positions,
D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""The label of a position without a target."""
CHUNK_VALUES = 2**23
"""Logits held at once: 32 MiB of float32, and one tensor more of that size."""


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


def labelled_positions(hidden_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden_PD, targets_P): the hidden states whose next token is labelled, and that token."""
    targets_BT = labels_BT[:, 1:]
    wanted_BT = targets_BT != IGNORE
    return hidden_BTD[:, :-1][wanted_BT], targets_BT[wanted_BT]


def hidden_nll(hidden_PD: Tensor, targets_P: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean cross-entropy of `head(hidden_PD)` against `targets_P`, in nats and float32, without
    ever holding all logits: `answer_nll` of what `labelled` gives.

    Logits are made a chunk of positions at a time. Their gradient is taken at once, in the forward
    pass, so that none is kept and none is made twice; the head itself is frozen.

    Raises:
        ValueError: when there is no target.
    """
    if not len(targets_P):
        raise ValueError("no labelled token in the batch")

    def chunk(own_PV: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        target_P1 = targets_P[part, None]
        loss = -own_PV.gather(1, target_P1).sum()
        if not wanted:
            return loss, None
        slope_PV = own_PV.exp_()  # probabilities, less one at the target
        less = torch.full_like(target_P1, -1, dtype=slope_PV.dtype)
        return loss, slope_PV.scatter_add_(1, target_P1, less)

    total: Tensor = _ChunkedSum.apply(hidden_PD, head, chunk)
    return total / len(targets_P)


def hidden_kl(student_PD: Tensor, teacher_PD: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean KL divergence, in nats a position, of what `head` predicts from the teacher's hidden
    states to what it predicts from the student's (Hinton et al., arXiv 1503.02531, temperature 1),
    chunk by chunk as `hidden_nll`. The teacher gets no gradient.

    Raises:
        ValueError: where there is no position.
    """
    if not len(student_PD):
        raise ValueError("no labelled token in the batch")
    teacher_PD = teacher_PD.detach()

    def chunk(own_PV: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
        taught_PV = head(teacher_PD[part]).log_softmax(-1, dtype=torch.float32)
        loss = (taught_PV.exp() * (taught_PV - own_PV)).sum()
        # the student's probabilities less the teacher's
        return loss, own_PV.exp_() - taught_PV.exp_() if wanted else None

    total: Tensor = _ChunkedSum.apply(student_PD, head, chunk)
    return total / len(student_PD)


def chunk_size(vocabulary: int) -> int:
    """Positions whose logits are held at once."""
    return CHUNK_VALUES // vocabulary or 1


class _ChunkedSum(torch.autograd.Function):
    """A loss of the predictions head(hidden_PD), summed over positions a chunk at a time.

    `chunk` is given a chunk's log-probabilities in float32, which it may overwrite, its place among
    the positions, and whether the slope is wanted; it returns the chunk's loss and its slope by the
    logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        head: Callable[[Tensor], Tensor],
        chunk: Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]],
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), device=hidden_PD.device)
        gradients: list[Tensor] = []
        size = chunk_size(head(hidden_PD[:1]).shape[-1])
        for start in range(0, len(hidden_PD), size):
            part = slice(start, start + size)
            with torch.set_grad_enabled(wanted):
                leaf_PD = hidden_PD[part].detach().requires_grad_(wanted)
                logits_PV = head(leaf_PD)
            loss, slope_PV = chunk(logits_PV.detach().log_softmax(-1, torch.float32), part, wanted)
            total += loss
            if slope_PV is not None:
                gradients += torch.autograd.grad(logits_PV, leaf_PD, slope_PV.to(logits_PV.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_PD,) = ctx.saved_tensors
        return gradient_PD * upstream[0].to(gradient_PD.dtype), None, None


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
