"""Backbones of the published shapes with random weights, made on the spot: what speed is measured
on where no weights are at hand. Speed does not depend on what the weights say.
"""

from __future__ import annotations

from typing import Any

import torch

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import Backbone, quieten
from clara_cli.core.loading import new_config, new_model
from clara_cli.core.model import ROLES, ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter

PASSAGE_TOKENS, MEMORY_TOKENS = 256, 64

# architecture and sizes from each model's published config.json; constants of position encodings
# and the like, which cost nothing, stay at the library's defaults
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-7b": (
        "mistral",
        {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "sliding_window": None,
        },
    ),
    "phi-4-mini": (
        "phi3",
        {
            "vocab_size": 200_064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "tie_word_embeddings": True,
        },
    ),
    "nano": (
        "llama",
        {
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
}


def random_model(shape: str, device: torch.device, dtype: torch.dtype, seed: int) -> ClaraModel:
    """A shape's backbone with random weights and three fresh roles, 256 tokens a passage."""
    quieten()
    kind, settings = SHAPES[shape]
    tokenizer = byte_tokenizer()
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    with device:
        causal_lm = new_model(new_config(kind, **settings, **ends), dtype)
    causal_lm.eval().requires_grad_(False)
    seeded = torch.Generator().manual_seed(seed)
    backbone = Backbone(causal_lm, tokenizer, shape, None)
    memory, markers = fresh_memory(MEMORY_TOKENS, backbone.table_VD, seeded)
    prompter = Prompter(tokenizer, PASSAGE_TOKENS)
    return ClaraModel(backbone, prompter, LoraSettings(), ROLES, memory, markers)


def byte_tokenizer() -> Any:
    """A tokenizer of 256 bytes and three specials, needing no file; it reads any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
