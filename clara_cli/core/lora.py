"""LoRA's product with a frozen weight as one differentiable function.

PEFT computes y = x W' + s (x A') B' as separate operations in the adapter's own type: each keeps a
copy of x, in float32 where the adapter is. Here x is kept once, in the type it came in, and the
backward pass makes no gradient for the frozen weight. Used while training; reading goes through
PEFT, so that what is stored does not change.

N rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional as F


class LoraProduct(torch.autograd.Function):
    """x_NI -> x_NI W' + b + s dropout(x_NI) A' B', differentiable in x, A and B alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        """y (..., O) of x (..., I), in x's type."""
        x_NI = x.reshape(-1, x.shape[-1])
        kept_NI = draw_kept(x_NI, dropout)
        down_NR = dropped(x_NI, kept_NI, dropout) @ a_RI.to(x.dtype).T
        y = F.linear(x, weight_OI, bias_O)  # no view: some kinds add to it in place
        y.view(-1, y.shape[-1]).addmm_(down_NR, b_OR.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, down_NR, kept_NI)
        ctx.scaling, ctx.dropout = scaling, dropout
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B; the others have none."""
        x_NI, weight_OI, a_RI, b_OR, down_NR, kept_NI = ctx.saved_tensors
        (dy,) = upstream
        dy_NO = dy.reshape(-1, dy.shape[-1])
        up_NR = (dy_NO @ b_OR.to(dy.dtype)) * ctx.scaling
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_NI = dropped(up_NR @ a_RI.to(dy.dtype), kept_NI, ctx.dropout)
            grad_x = torch.addmm(grad_NI, dy_NO, weight_OI).view(*dy.shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            grad_a = (up_NR.T @ dropped(x_NI, kept_NI, ctx.dropout)).to(a_RI.dtype)
        if ctx.needs_input_grad[4]:
            grad_b = ((dy_NO.T @ down_NR) * ctx.scaling).to(b_OR.dtype)
        return grad_x, None, None, grad_a, grad_b, None, None


def draw_kept(x_NI: Tensor, dropout: float) -> Tensor | None:
    """Which inputs LoRA sees, drawn as `F.dropout` draws them in float32; None for all."""
    if dropout == 0:
        return None
    return torch.empty_like(x_NI, dtype=torch.float32).bernoulli_(1 - dropout).bool()


def dropped(x_NI: Tensor, kept_NI: Tensor | None, dropout: float) -> Tensor:
    """Dropout by a mask already drawn."""
    return x_NI if kept_NI is None else x_NI * kept_NI * (1 / (1 - dropout))


def is_plain(layer: Any, role: str) -> bool:
    """Whether a role's layer is LoRA on a whole, ordinary linear layer and nothing more (no DoRA,
    no bias of its own, nothing merged), so that `LoraProduct` is what it computes."""
    return (
        type(layer) is LoraLinear
        and type(layer.get_base_layer()) is nn.Linear
        and role in layer.lora_A
        and not layer.merged_adapters
        and not layer.lora_variant.get(role)
        and layer.lora_B[role].bias is None
        and not layer.lora_A[role].weight.is_meta
    )


def train_fast(layer: Any) -> None:
    """Have a PEFT layer compute by `LoraProduct` wherever gradients are wanted and it may."""
    by_peft = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role = None if layer.disable_adapters else layer.active_adapters[0]
        if role is None or not torch.is_grad_enabled() or not is_plain(layer, role):
            return by_peft(x, *args, **kwargs)
        base, drop = layer.get_base_layer(), layer.lora_dropout[role]
        rate = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
        weights = (layer.lora_A[role].weight, layer.lora_B[role].weight)
        return LoraProduct.apply(x, base.weight, base.bias, *weights, layer.scaling[role], rate)

    layer.forward = forward
