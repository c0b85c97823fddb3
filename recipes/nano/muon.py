"""The optimizers: Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict

import torch
from network import Network
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps, in float32 (torch's own works in
    bfloat16, which a CPU without AMX emulates: three times slower there). Keller Jordan, 2024."""

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = orthogonal(torch.stack([self.momentum(p, group) for p in params]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * 0.01).add_(update, alpha=-size)

    def momentum(self, p: Tensor, group: dict) -> Tensor:
        """The parameter's Nesterov momentum after this step's gradient."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(state["momentum"], group["momentum"])


def orthogonal(grad: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices of a stack (N, rows, columns), approximately."""
    tall = grad.shape[-2] > grad.shape[-1]
    x = grad.mT if tall else grad
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x,
                          beta=3.4445)  # fmt: skip
    return x.mT if tall else x


def optimizers(network: Network, lr: float) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over all parameters, each one once."""
    matrices = [p for p in network.model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in taken]
    fused = rest[0].is_cuda
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused),
    ]
