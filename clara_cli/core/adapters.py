"""The LoRA of several roles inside one backbone, and which of them is in force.

Two ways: `PeftAdapters` puts PEFT's layers into any backbone transformers loads, to train and to
read; `ReadingAdapters` fills those that `core.llama` has of its own, to read without either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from clara_cli.core.llama import Llama, RoleLinear

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head
PREFIX = "base_model.model."  # before the names in PEFT's files


@dataclass(frozen=True)
class LoraSettings:
    """LoRA of every role (paper Table 10); targets all linear layers but the head. Where that is
    not all (`core.lora_targets`), `targets` names them, `parameters` are weights outside linear
    layers that are adapted too, without dropout, and `left_out` linear weights that are not."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.1
    targets: str | tuple[str, ...] = ALL_LINEAR
    parameters: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def adapts(self, layer: str) -> bool:
        """Whether a linear layer of that name, not the head, is a target."""
        if isinstance(self.targets, str):
            return self.targets == ALL_LINEAR
        return any(f".{layer}".endswith(f".{target}") for target in self.targets)

    def adapts_parameter(self, name: str) -> bool:
        """Whether a weight of that name is adapted as a parameter."""
        return any(f".{name}".endswith(f".{target}") for target in self.parameters)


class Adapters(Protocol):
    """What a model asks of them. `module` is the backbone with what was put into it."""

    module: Any

    @property
    def causal_lm(self) -> Any:
        """The backbone with its head, adapters inside its layers."""

    def add(self, role: str) -> None:
        """Add a role, its weights not set."""

    def switch(self, role: str | None) -> None:
        """Put one role in force; None: the bare backbone."""

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's weights by name: PEFT's, with the role in it."""

    def merge(self, role: str) -> None:
        """Fold a role into the backbone's weights."""

    def keep_still(self, roles: Sequence[str]) -> None:
        """No dropout in these roles."""


@runtime_checkable
class TrainedAdapters(Adapters, Protocol):
    """Those that can be trained too."""

    def renew(self, role: str) -> None:
        """Give a role fresh weights, which change nothing yet."""


class ReadingAdapters:
    """Roles in the linear layers of a `Llama`, for reading alone."""

    def __init__(self, causal_lm: Llama, lora: LoraSettings, roles: Sequence[str]) -> None:
        self.module, self.causal_lm, self.lora = causal_lm, causal_lm, lora
        self._layers = {
            name: module
            for name, module in causal_lm.named_modules()
            if isinstance(module, RoleLinear) and lora.adapts(name)
        }
        for role in roles:
            self.add(role)

    def add(self, role: str) -> None:
        """Add a role, its weights not set."""
        for layer in self._layers.values():
            layer.add_role(role, self.lora.rank, self.lora.alpha / self.lora.rank)

    def switch(self, role: str | None) -> None:
        """Put one role in force; None: the bare backbone."""
        for layer in self._layers.values():
            layer.role = role

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's weights by PEFT's names."""
        return {
            f"{PREFIX}{name}.lora_{side}.{role}.weight": getattr(layer, f"lora_{side}")[role]
            for name, layer in self._layers.items()
            for side in ("A", "B")
        }

    @torch.no_grad()
    def merge(self, role: str) -> None:
        """Fold a role into the backbone's weights."""
        for layer in self._layers.values():
            folded = layer.lora_B[role] @ layer.lora_A[role] * layer.scaling
            layer.weight = nn.Parameter(layer.weight + folded.to(layer.weight.dtype), False)
            layer.role = None

    def keep_still(self, roles: Sequence[str]) -> None:
        """There is no dropout here."""


def peft_adapters(causal_lm: Any, lora: LoraSettings, roles: Sequence[str]) -> Adapters:
    """PEFT's, imported only where they are needed: that takes a second."""
    from clara_cli.core.peft_adapters import PeftAdapters

    return PeftAdapters(causal_lm, lora, roles)
