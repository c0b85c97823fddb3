"""Arithmetic counted from a backbone's shape, and what known devices can do at most: the two sides
of model FLOPs utilisation. Adapters (a percent or two) are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clara_cli.core.backbone import inner_model

PEAKS: dict[str, float] = {  # FLOP/s in bfloat16 or float16, dense, from NVIDIA's data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
}
HALF = (torch.bfloat16, torch.float16)


def peak(name: str, dtype: torch.dtype) -> float | None:
    """A device's peak in FLOP/s by its name; None where neither the device nor the format is in
    the table."""
    if dtype not in HALF:
        return None
    names = (key for key in PEAKS if re.search(rf"\b{re.escape(key)}\b", name))
    return next((PEAKS[key] for key in names), None)


def forward_flops(causal_lm: Any, lengths: Sequence[int]) -> float:
    """Multiplications and additions of reading rows of these lengths, without the head: 2 for every
    weight and position, and causal attention's 4 T^2 / 2 for every channel."""
    inner = inner_model(causal_lm)
    layers = ((name, m) for name, m in inner.named_modules() if isinstance(m, nn.Linear))
    weights = sum(layer.weight.numel() for name, layer in layers if "lora_" not in name)
    config = causal_lm.config
    heads = config.num_attention_heads
    channels = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 2 * config.num_hidden_layers * channels * sum(t * t for t in lengths)
    return 2.0 * weights * sum(lengths) + attention


def head_flops(causal_lm: Any, positions: int) -> float:
    """Of the language-model head at some positions."""
    config = causal_lm.config
    return 2.0 * config.vocab_size * config.hidden_size * positions
