"""Passages per second of `clara compress`'s encoder against the plain way, side by side.

The plain way pads every passage to the longest (L_max + 3 + M positions), runs the full causal
language model and keeps all hidden states. Both run on one random 33 M backbone, in one process,
in alternating rounds; the figure is the ratio of the medians.

    python tests/benchmarks/compress_speed.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import byte_tokenizer

from clara_cli.commands.compress import encode_rows
from clara_cli.core.backbone import load_backbone
from clara_cli.core.model import ClaraModel, LoraSettings, fresh_memory
from clara_cli.core.prompts import Prompter

PASSAGE_TOKENS, SLOTS = 256, 16


def backbone_folder(folder: Path) -> Path:
    """A random Mistral of 33 M parameters (512 wide, 8 layers)."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def build(folder: Path) -> ClaraModel:
    """A compressor with random LoRA weights."""
    base = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    seeded = torch.Generator().manual_seed(0)
    memory, markers = fresh_memory(SLOTS, base.model.get_input_embeddings().weight, seeded)
    prompter = Prompter(base.tokenizer, PASSAGE_TOKENS)
    model = ClaraModel(base, prompter, LoraSettings(), ("compressor",), memory, markers)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor").values():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.02)
    return model


@torch.no_grad()
def plain(model: ClaraModel, rows: list[list[int]], batch: int) -> torch.Tensor:
    """Left-padded to the full width, full causal LM, every hidden state kept."""
    width = PASSAGE_TOKENS + 3
    memory = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        placeholders = model.prompter.memory_ids * SLOTS
        ids = [[0] * (width - len(row)) + row + placeholders for row in part]
        mask = [[0] * (width - len(row)) + [1] * (len(row) + SLOTS) for row in part]
        embeds = model.embed(torch.tensor(ids), model.memory_MD.repeat(len(part), 1))
        with model.role("compressor"):
            out = model.causal_lm(
                inputs_embeds=embeds, attention_mask=torch.tensor(mask), output_hidden_states=True
            )
        memory.append(out.hidden_states[-1][:, -SLOTS:])
    return torch.cat(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--mean", type=int, default=96, help="mean passage length, tokens")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        reference = build(backbone_folder(Path(folder)))
        fast = build(Path(folder))
        fast.merge("compressor")
    begin = fast.prompter.encode_id
    rows = []
    for _ in range(args.passages):
        length = min(PASSAGE_TOKENS, max(8, round(rng.gauss(args.mean, args.mean / 3))))
        rows.append([begin, 1, *(rng.randrange(3, 256) for _ in range(length)), 2])
    ways = {
        "plain": lambda: plain(reference, rows, args.batch),
        "clara": lambda: encode_rows(fast, rows, SLOTS, 8192),
    }
    memories = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "passages": args.passages,
        "mean_tokens": sum(map(len, rows)) / len(rows) - 3,
        "rounds": args.rounds,
        "plain_per_second": round(args.passages / medians["plain"], 2),
        "clara_per_second": round(args.passages / medians["clara"], 2),
        "ratio": round(medians["plain"] / medians["clara"], 2),
        "largest_difference": (memories["plain"] - memories["clara"]).abs().max().item(),
        "parameters": sum(p.numel() for p in fast.causal_lm.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
