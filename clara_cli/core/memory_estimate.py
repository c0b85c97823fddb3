"""The memory a checkpoint needs, computed from configs alone: its backbone is built without weights
(torch's meta device) and its numbers are counted. Nothing is measured, nothing large is fetched.

Counted are weights by number format, adapters, memory tokens, the cache of an answer, and what
training keeps of each trained number. Activations and the libraries' own workspace are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import backbone_folder
from clara_cli.core.checkpoint import LoadOptions, resolve
from clara_cli.core.checkpoint_info import read_info
from clara_cli.core.loading import empty_model
from clara_cli.core.lora_targets import adapter_numbers, linear_layers, true_targets
from clara_cli.core.model import ROLES
from clara_cli.core.released import find_backbone, read_config
from clara_cli.records import MemoryNeed

FLOAT, BLOCK, NESTED = 4, 64, 256  # bytes of a float32; numbers of an NF4 block; blocks of a scale
TRAINED = 3 * FLOAT  # a gradient and AdamW's two moments of every trained number, float32


@dataclass(frozen=True)
class Plan:
    """What a checkpoint is, as far as its configs say: M memory tokens of passages of at most
    `passage_tokens`, LoRA for each of `roles`."""

    backbone: str
    revision: str | None
    roles: tuple[str, ...]
    lora: LoraSettings
    memory_tokens: int
    passage_tokens: int


def read_plan(options: LoadOptions) -> Plan:
    """The plan of a checkpoint; of one on the Hub, only its config is fetched.

    Raises:
        ArtefactError: as loading it would.
    """
    path = resolve(options.name, options.ratio, configs_only=True)
    backbone = options.backbone
    if (path / "clara.json").is_file():
        info = read_info(path)
        bundled = path / "backbone"
        source = backbone or (str(bundled) if bundled.is_dir() else info.backbone)
        revision = None if backbone else info.revision
        memory_tokens, tokens = info.memory_tokens_for(options.ratio), info.max_passage_tokens
        return Plan(source, revision, info.roles, info.lora, memory_tokens, tokens)
    config = read_config(path / "config.json")
    source = backbone or find_backbone(config, path)
    reasons = str(config.get("training_stage", "stage2")).startswith("stage2")
    roles = ROLES if reasons else ("compressor", "generator")
    tokens = config["doc_max_length"]
    lora = LoraSettings(config["lora_r"], 2 * config["lora_r"])
    return Plan(source, None, roles, lora, tokens // config["compr_rate"], tokens)


def plan_model(plan: Plan) -> Any:
    """The plan's backbone without weights.

    Raises:
        ArtefactError: when its config cannot be had.
    """
    folder = backbone_folder(plan.backbone, plan.revision, configs_only=True)
    return empty_model(folder, f"backbone {plan.backbone}")


def matrices(causal_lm: Any) -> dict[str, nn.Linear]:
    """The linear layers that are quantised, where anything is: all but the head."""
    return {n: m for n, m in linear_layers(causal_lm).items() if isinstance(m, nn.Linear)}


def weight_bytes(causal_lm: Any, dtype: torch.dtype, load_in: str | None) -> int:
    """Bytes of the backbone's weights. Quantised, a matrix takes in 8 bits a byte a number and a
    float32 a row; in 4 bits (NF4, double quantisation) half a byte a number, a byte a block of 64
    and a float32 every 256 blocks."""
    quantised = {m.weight for m in matrices(causal_lm).values()} if load_in else set()
    total = 0
    for parameter in causal_lm.parameters():
        count = parameter.numel()
        if parameter not in quantised:
            total += count * dtype.itemsize
        elif load_in == "8bit":
            total += count + FLOAT * parameter.shape[0]
        else:
            blocks = -(-count // BLOCK)
            total += -(-count // 2) + blocks + FLOAT * -(-blocks // NESTED)
    return total


def cache_bytes(config: Any, positions: int, dtype: torch.dtype) -> int:
    """Keys and values of every layer at so many positions."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * dtype.itemsize * positions


def need(
    causal_lm: Any,
    plan: Plan,
    dtype: torch.dtype,
    load_in: str | None = None,
    positions: int = 0,
    trained: Sequence[str] = (),
    trains_memory: bool = False,
) -> MemoryNeed:
    """Bytes a checkpoint needs to compute with `positions` in the cache, or to train roles."""
    adapter = adapter_numbers(causal_lm, true_targets(causal_lm, plan.lora))
    width = causal_lm.get_input_embeddings().weight.shape[1]
    tokens = (plan.memory_tokens + 2) * width  # and the two markers, which do not train
    learned = adapter * len(trained) + (tokens - 2 * width if trains_memory else 0)
    parts = {
        "weights": weight_bytes(causal_lm, dtype, load_in),
        "adapters": FLOAT * adapter * len(plan.roles),
        "memory_tokens": FLOAT * tokens,
        "cache": cache_bytes(causal_lm.config, positions, dtype),
        "training": TRAINED * learned,
    }
    return MemoryNeed(
        backbone=plan.backbone,
        parameters=sum(p.numel() for p in causal_lm.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        load_in=load_in,
        roles=tuple(plan.roles),
        bytes=sum(parts.values()),
        **parts,
    )


def fresh_plan(backbone: str, tokens: int, memory_tokens: int, lora: LoraSettings) -> Plan:
    """The plan of fresh roles on a backbone."""
    return Plan(backbone, None, ("compressor", "generator"), lora, memory_tokens, tokens)
