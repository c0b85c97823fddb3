"""Fresh adapters on a backbone, written in the released format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTERS = ("encoder_adapter", "decoder_adapter", "query_reasoner_adapter")
CONFIG = {"doc_max_length": 64, "compr_rate": 16, "lora_r": 4, "training_stage": "stage2"}


def write(backbone: Path, out: Path) -> Path:
    """A released checkpoint folder of random weights: 4 memory tokens, rank 4, three adapters."""
    out.mkdir(parents=True)
    named = {"decoder_model_name": f"/mnt/somewhere/{backbone.name}"}
    (out / "config.json").write_text(json.dumps({**CONFIG, **named}))
    base = AutoModelForCausalLM.from_pretrained(backbone)
    rows = len(AutoTokenizer.from_pretrained(backbone)) + 4 + 3  # memory tokens, AE, ENC, SEP
    hidden = base.config.hidden_size
    seeded = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return 0.1 * torch.randn(*size, generator=seeded)

    tables = {"model.embed_tokens.weight": 10 * draw(rows, hidden)}
    if not base.config.tie_word_embeddings:
        tables["lm_head.weight"] = draw(rows, hidden)
    torch.save(tables, out / "decoder_first_last_layers.pth")
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    adapters = {}
    for adapter in ADAPTERS:
        adapters[adapter] = {}
        for name, layer in layers.items():
            adapters[adapter][f"{name}.lora_A.weight"] = draw(4, layer.in_features)
            adapters[adapter][f"{name}.lora_B.weight"] = draw(layer.out_features, 4)
    torch.save(adapters, out / "adapters.pth")
    return out
