"""Tries kinds of backbones: a tiny one of each, random weights, through everything that is seen to
when a backbone is loaded; prints the table of README.md. No network, about a minute.

    python recipes/backbones/try_kinds.py
    python recipes/backbones/try_kinds.py --kinds llama,gemma3_text
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from clara_cli.core.backbone import check_head, quieten
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.loading import as_artefact_errors, new_config, new_model
from clara_cli.core.prompts import Prompter
from clara_cli.core.random_backbones import byte_tokenizer
from clara_cli.errors import ArtefactError

KINDS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "phi",
    "phi3",
    "phimoe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "codegen",
    "stablelm",
    "starcoder2",
    "olmo",
    "olmo2",
    "olmoe",
    "granite",
    "granitemoe",
    "cohere",
    "cohere2",
    "persimmon",
    "smollm3",
    "exaone4",
    "ernie4_5",
    "glm",
    "glm4",
    "helium",
    "nemotron",
    "deepseek_v3",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "jamba",
    "bamba",
    "zamba2",
    "recurrent_gemma",
    "rwkv",
    "minimax",
    "llama4_text",
    "gpt_oss",
    "lfm2",
    "apertus",
    "seed_oss",
    "hunyuan_v1_dense",
    "dbrx",
    "xglm",
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LEFT_OUT = object()
MLA = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16}
OTHERS: dict[str, dict[str, Any]] = {  # what a kind calls its sizes, where that is its own
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "falcon": {"head_dim": LEFT_OUT},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "deepseek_v3": {**MLA, "num_key_value_heads": 4},
    "dbrx": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
}


def backbone(kind: str, folder: Path) -> Path:
    """A tiny backbone of a kind, saved as any is."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    with as_artefact_errors(f"a tiny {kind}", ""):
        sizes = {"vocab_size": len(tokenizer) + 13, **SMALL, **OTHERS.get(kind, {})}
        given = {name: size for name, size in sizes.items() if size is not LEFT_OUT}
        config = new_config(kind, **given)
        model = new_model(config, torch.float32)
        if sum(p.numel() for p in model.parameters()) > 30_000_000:
            raise ValueError("cannot be made tiny by the usual settings")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def verdict(kind: str) -> str:
    """What holds for a kind, in a table's words."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = backbone(kind, Path(scratch) / kind)
        except ArtefactError as error:
            return f"not tried: {error.message.partition(': ')[2]}"
        try:
            base = LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
            Prompter(base.tokenizer, 64).check_template(kind)
        except ArtefactError as error:
            return f"refused: {error.message.replace(str(folder), kind)}"
        try:
            check_head(base.model)
        except ArtefactError as error:
            return f"passes, not for training: {error.message}"
    return "passes"


def row(kind: str) -> str:
    """A kind's row of the table."""
    return f"| `{kind}` | {' '.join(verdict(kind).split())[:160]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    quieten()
    print("| kind | verdict |\n|---|---|")
    for kind in args.kinds.split(","):
        print(row(kind), flush=True)


if __name__ == "__main__":
    main()
