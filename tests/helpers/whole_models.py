"""Tiny models that read images too, as their kinds are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from clara_cli.core.random_backbones import byte_tokenizer
from helpers.tiny_kinds import kinds, try_kinds

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
DEEP_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
PIXEL = {"image_token_index": 260}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # class, text, vision, more
    "gemma3": ("Gemma3", "gemma3_text", VISION, {"mm_tokens_per_image": 4, **PIXEL}),
    "llava": (
        "Llava",
        "llama",
        {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        PIXEL,
    ),
    "mistral3": ("Mistral3", "mistral", {**VISION, "model_type": "pixtral", "head_dim": 8}, PIXEL),
    "idefics3": ("Idefics3", "llama", VISION, {}),
    "qwen3_5": ("Qwen3_5", "qwen3_5_text", {**DEEP_VISION, "out_hidden_size": 32}, {}),
    "llama4": (
        "Llama4",
        "llama4_text",
        {
            **VISION,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
        {},
    ),
    "qwen2_5_vl": ("Qwen2_5_VL", "qwen2", {**DEEP_VISION, "out_hidden_size": 32}, {}),
}


def saved(name: str, folder: Path) -> tuple[Any, Path]:
    """A tiny model that reads images too, and the folder where it is saved."""
    family, text, vision, more = MODELS[name]
    sizes = {**kinds.sizes(text, 272), "model_type": text}
    if name == "qwen2_5_vl":
        sizes = {k: v for k, v in sizes.items() if k != "model_type"}
        sizes["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config_class = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    config = config_class(text_config=sizes, vision_config=vision, **more)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    try_kinds.fill_zeros(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model, folder
