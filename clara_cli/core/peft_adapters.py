"""PEFT's LoRA layers for several roles in one backbone of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from clara_cli.core.adapters import Adapters, LoraSettings
from clara_cli.core.backbone import is_whole
from clara_cli.core.lora import train_fast
from clara_cli.core.writing import forget_settings
from clara_cli.errors import UsageError


def peft_config(lora: LoraSettings) -> LoraConfig:
    """LoRA's settings as PEFT wants them: beside `target_parameters` it takes no dropout."""
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0 if lora.parameters else lora.dropout,
        target_modules=targets,
        target_parameters=list(lora.parameters) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def refuse_packed(causal_lm: Any, lora: LoraSettings) -> None:
    """Refuse to adapt as parameters what is quantised: nothing can be added to packed numbers.

    Raises:
        UsageError: naming the first.
    """
    for name, parameter in causal_lm.named_parameters():
        if lora.adapts_parameter(name) and not parameter.is_floating_point():
            message = f"--load-in: {name} is quantised, and LoRA adapts it as a parameter"
            raise UsageError(message, "omit --load-in with this backbone")


class PeftAdapters:
    """Roles to train and to read. PEFT's own switch walks all modules and flips `requires_grad`, so
    the one here tells the adapted layers alone which role is theirs."""

    def __init__(self, causal_lm: Any, lora: LoraSettings, roles: Sequence[str]) -> None:
        self.lora = lora
        refuse_packed(causal_lm, lora)
        forget_settings(causal_lm)
        self.module: Any = get_peft_model(causal_lm, peft_config(lora), adapter_name=roles[0])
        for role in roles[1:]:
            self.module.add_adapter(role, peft_config(lora))
        self._layers: tuple[Any, ...] = tuple(
            module for module in self.module.modules() if isinstance(module, BaseTunerLayer)
        )
        for layer in self._layers:
            train_fast(layer)
        self._set_dropout(roles)

    def _set_dropout(self, roles: Sequence[str]) -> None:
        """Give linear layers the dropout that PEFT does not take beside `target_parameters`."""
        if not self.lora.parameters:
            return
        for layer in self._layers:
            if isinstance(layer, LoraLinear):
                layer.lora_dropout.update({role: nn.Dropout(self.lora.dropout) for role in roles})

    @property
    def causal_lm(self) -> Any:
        """The backbone with its head, adapters inside its layers."""
        return self.module.get_base_model()

    def add(self, role: str) -> None:
        """Add a role with fresh weights, on the backbone's device."""
        self.module.add_adapter(role, peft_config(self.lora))
        self._set_dropout([role])
        if is_whole(self.causal_lm):
            self.module.to(self.causal_lm.get_input_embeddings().weight.device)

    def renew(self, role: str) -> None:
        """Give a role fresh weights, which change nothing yet."""
        for layer in self._layers:
            layer.reset_lora_parameters(role, init_lora_weights=True)

    def switch(self, role: str | None) -> None:
        """Put one role in force; None: the bare backbone."""
        for layer in self._layers:
            layer._disable_adapters = role is None
            if role is not None:
                layer._active_adapter = [role]

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's weights by name: PEFT's, with the role in it."""
        return {name: p for name, p in self.module.named_parameters() if f".{role}." in name}

    def merge(self, role: str) -> None:
        """Fold a role into the backbone's weights where they are whole."""
        if is_whole(self.causal_lm):
            self.module.merge_adapter([role])

    def keep_still(self, roles: Sequence[str]) -> None:
        """No dropout in these roles."""
        for layer in self._layers:
            for role in roles:
                layer.lora_dropout[role].eval()


def save_config(adapters: Adapters, role: str, folder: Path, backbone: str) -> None:
    """Write a role's `adapter_config.json`, so that PEFT itself loads the folder.

    Raises:
        TypeError: for a model that was opened to be read alone.
    """
    if not isinstance(adapters, PeftAdapters):
        raise TypeError("a model opened for reading alone cannot be saved")
    config = peft_config(adapters.lora)
    config.base_model_name_or_path = backbone
    config.inference_mode = True
    own: Any = adapters.module.peft_config[role]
    config.target_modules = sorted(own.target_modules or [])
    config.save_pretrained(str(folder))
