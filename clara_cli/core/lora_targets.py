"""Which weights of a backbone LoRA adapts, where "all linear layers" would not be true.

PEFT's `all-linear` finds layers by their class. Some kinds keep linear weights otherwise: experts
of a mixture as one parameter of three dimensions, which PEFT adapts by name and without dropout;
routers; and Mamba's projections, whose weights fused kernels read past any adapter. Here each is
either a target or left out by name. Knows names and shapes, no values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from clara_cli.core.adapters import ALL_LINEAR, LoraSettings

# linear layers of a Mamba mixer whose weights are read past them, by the mixer's class
READ_DIRECTLY = {"JambaMambaMixer": ("dt_proj",), "ZambaMambaMixer": ()}
READ_DIRECTLY_ELSEWHERE = ("x_proj", "dt_proj", "out_proj")
MAMBAS_OWN = ("A_log", "D")  # parameters that every Mamba mixer has, and no other layer
PLAIN_LINEAR = ("FalconLinear",)  # kinds' own linear layers that return what any does
NO_MATRICES = (
    "A_log",
    "bias",
)  # how parameters end that are no linear weights, whatever their shape


def true_targets(causal_lm: Any, lora: LoraSettings) -> LoraSettings:
    """The same LoRA with everything named that it adapts and leaves out; unchanged where it adapts
    all linear layers but the head and there is nothing else to adapt."""
    if lora.targets != ALL_LINEAR:
        return lora
    linear = linear_layers(causal_lm)
    unfit = {name for name in linear if is_bypassed(causal_lm, name)}
    unfit |= {name for name, layer in linear.items() if is_own_kind(layer)}
    renamed = {name for name in linear.keys() - unfit if is_renamed(causal_lm, name)}
    stacked = stacked_weights(causal_lm, linear)
    experts = {name for name, shape in stacked.items() if len(shape) == 3}
    experts = {name for name in experts if is_of_experts(causal_lm, name)}
    if not (unfit or renamed or stacked):
        return lora
    return replace(
        lora,
        targets=in_layers(linear.keys() - unfit - renamed),
        parameters=in_layers([*experts, *(f"{name}.weight" for name in renamed)]),
        left_out=in_layers([*unfit, *(stacked.keys() - experts)]),
    )


def linear_layers(causal_lm: Any) -> dict[str, nn.Module]:
    """The linear layers by name, without the head."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's, a linear layer transposed

    head = causal_lm.get_output_embeddings()
    named = causal_lm.named_modules()
    return {n: m for n, m in named if isinstance(m, nn.Linear | Conv1D) and m is not head}


def is_own_kind(layer: nn.Module) -> bool:
    """Whether a kind made a linear layer its own, which may return something else than one tensor:
    the routers of Phi-MoE and Llama 4 return scores and choices."""
    kind = type(layer)
    return kind.__module__.startswith("transformers.models.") and kind.__name__ not in PLAIN_LINEAR


def is_bypassed(causal_lm: Any, name: str) -> bool:
    """Whether a mixer may read a linear layer's weight without calling the layer, so that what is
    added to its output has no effect."""
    parent, _, child = name.rpartition(".")
    mixer = causal_lm.get_submodule(parent)
    if not all(hasattr(mixer, own) for own in MAMBAS_OWN):
        return False
    return child in READ_DIRECTLY.get(type(mixer).__name__, READ_DIRECTLY_ELSEWHERE)


def is_renamed(causal_lm: Any, name: str) -> bool:
    """Whether PEFT takes a linear layer of that name for an expert: where a kind's experts were
    linear layers once, it turns their names into those of today's parameters, and with them the
    names of dense layers and shared experts. As parameters such layers keep their names."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, causal_lm, None)
    except ValueError:  # it wants the names of the other experts too
        return True
    return name not in (config.target_modules or ())


def stacked_weights(causal_lm: Any, linear: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of matrices, and of stacks of them, that are parameters outside linear layers,
    embeddings, convolutions and the head."""
    apart = (nn.Embedding, nn.Conv1d)
    named = causal_lm.named_modules()
    known = {name for name, module in named if isinstance(module, apart)} | set(linear)
    head = getattr(causal_lm.get_output_embeddings(), "weight", None)
    weights = {}
    for name, parameter in causal_lm.named_parameters():
        shape = tuple(parameter.shape)
        is_matrix = len(shape) in (2, 3) and min(shape[-2:]) > 1 and not name.endswith(NO_MATRICES)
        if is_matrix and name.rpartition(".")[0] not in known and parameter is not head:
            weights[name] = shape
    return weights


def adapter_numbers(causal_lm: Any, lora: LoraSettings) -> int:
    """Numbers of one role's LoRA."""
    layers = {f"{name}.weight" for name in linear_layers(causal_lm) if lora.adapts(name)}
    numbers = 0
    for name, parameter in causal_lm.named_parameters():
        if lora.adapts_parameter(name) or name in layers:
            *stacked, rows, columns = parameter.shape
            numbers += lora.rank * math.prod(stacked) * (rows + columns)
    return numbers


def adapted_sentence(lora: LoraSettings) -> str:
    """What LoRA adapts and leaves out, in words."""
    if lora.targets == ALL_LINEAR:
        return "every linear layer but the head"
    parts = [", ".join(lora.targets)]
    if lora.parameters:
        parts.append(f"without dropout {', '.join(lora.parameters)}")
    if lora.left_out:
        parts.append(f"left out: {', '.join(lora.left_out)}")
    return "; ".join(parts)


def is_of_experts(causal_lm: Any, name: str) -> bool:
    """Whether a parameter is one of a mixture's experts. PEFT wraps the module of a parameter,
    which only those bear: RecurrentGemma's recurrent unit has its state set from outside."""
    module = name.rpartition(".")[0]
    kind = type(causal_lm.get_submodule(module)).__name__
    return "expert" in f"{module} {kind}".lower()


def in_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they are within a layer: what follows the first number of each, every one once."""
    return tuple(sorted({re.split(r"\.\d+\.", name, maxsplit=1)[-1] for name in names}))
