"""Time and memory of one SCP step against the plain way, side by side on the same batches.

The plain way is the released code's: every passage padded to L_max + 3 + M positions, full causal
language model on both sides with all hidden states, loss over all positions' logits. Both train the
same roles of one random 33 M backbone with 32,000 tokens on batches of `clara_example`, in
alternating steps; time is the median of the ratios of a round, memory the peak of a process of its
own, above the loaded model. Losses are checked to be equal.

    CLARA_SHARED=... python tests/benchmarks/train_speed.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.core.backbone import load_backbone
from clara_cli.core.batch import Batch, pair_length, scp_batch
from clara_cli.core.losses import IGNORE
from clara_cli.core.model import ClaraModel, LoraSettings, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.core.stages import Losses, read_memory_loss
from clara_cli.records import Pair

PASSAGE_TOKENS, SLOTS, VOCABULARY, WEIGHT = 256, 16, 32_000, 0.1
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{{ eos_token }}{% else %}[{{ m['role'] }}] {{ m['content'] }} [/]{% endif %}{% endfor %}"
)
# Two shapes of 33 M parameters: most of them in the tables, or half of them in the layers.
SHAPES = {
    "wide": {"hidden_size": 384, "num_hidden_layers": 5, "num_attention_heads": 6},
    "deep": {"hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4},
}
Step = Callable[[ClaraModel, list[Pair]], Losses]


def examples() -> list[Pair]:
    """The documents of `clara_example` with their question-answer pairs."""
    file = Path(os.environ["CLARA_SHARED"]) / "data" / "clara_example" / "pretrain_data.jsonl.xz"
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        records = map(json.loads, lines)
        return [
            Pair(r["data_type"], tuple(r["question"]), tuple(r["answers"]), tuple(r["docs"]))
            for r in records
        ]


def backbone_folder(folder: Path, pairs: list[Pair], shape: str) -> Path:
    """A random Mistral and a BPE tokenizer of the examples' own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 100, special_tokens=specials, show_progress=False
    )
    texts = (text for p in pairs for text in (*p.texts, *p.questions, *p.answers))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    heads = SHAPES[shape]["num_attention_heads"]
    config = MistralConfig(
        vocab_size=VOCABULARY, intermediate_size=1024, num_key_value_heads=heads, **SHAPES[shape]
    )
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


def build(folder: Path) -> ClaraModel:
    """Compressor and generator with random LoRA weights, ready to train."""
    base = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    seeded = torch.Generator().manual_seed(0)
    memory, markers = fresh_memory(SLOTS, base.model.get_input_embeddings().weight, seeded)
    prompter = Prompter(base.tokenizer, PASSAGE_TOKENS)
    roles = ("compressor", "generator")
    model = ClaraModel(base, prompter, LoraSettings(dropout=0.0), roles, memory, markers)
    with torch.no_grad():
        for role in roles:
            for parameter in model.role_parameters(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.02)
    model.train_only(roles, memory=True)
    return model.train()


def batch_of(model: ClaraModel, pairs: list[Pair]) -> Batch:
    return scp_batch(model.prompter, pairs, [0] * len(pairs), SLOTS, 2048)


def left(rows: list[list[int]], width: int, value: int) -> Tensor:
    """Rows as one tensor, padded on the left to a width."""
    return torch.tensor([[value] * (width - len(row)) + row for row in rows])


def plain(model: ClaraModel, pairs: list[Pair]) -> Losses:
    """The released step: both sides padded and masked, all logits, all hidden states."""
    batch = batch_of(model, pairs)
    width = PASSAGE_TOKENS + 3 + SLOTS
    rows = [row + model.prompter.memory_ids * SLOTS for row in batch.passages]
    mask = left([[1] * len(row) for row in rows], width, 0)
    embeds = model.embed(left(rows, width, 0), model.memory_MD.repeat(len(rows), 1))
    with model.role("compressor"):
        out = model.causal_lm(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
    hidden, memory = out.hidden_states[-1], out.hidden_states[-1][:, -SLOTS:]
    text = mask.clone()
    text[:, -SLOTS:] = 0
    means = (hidden * text[..., None]).sum(1) / text.sum(1, keepdim=True)
    mse = torch.nn.functional.mse_loss(memory.mean(1), means)
    width = max(map(len, batch.rows))
    mask = left([[1] * len(row) for row in batch.rows], width, 0)
    embeds = model.embed(left(batch.rows, width, 0), memory.flatten(0, 1))
    with model.role("generator"):
        out = model.causal_lm(
            inputs_embeds=embeds,
            attention_mask=mask,
            labels=left(batch.labels, width, IGNORE),
            output_hidden_states=True,
        )
    return Losses(out.loss + WEIGHT * mse, out.loss.item(), mse.item())


def ours(model: ClaraModel, pairs: list[Pair]) -> Losses:
    """The step of `clara pretrain`."""
    return read_memory_loss(model, batch_of(model, pairs), WEIGHT)


WAYS: dict[str, Step] = {"plain": plain, "clara": ours}


def train(
    model: ClaraModel, pairs: list[Pair], step: Step, micro: int, optimizer: torch.optim.Optimizer
) -> float:
    """One optimiser step in forward passes of `micro` examples, those of `clara pretrain` sorted
    by length; returns the mean loss per forward pass."""
    if step is ours:
        pairs = sorted(pairs, key=pair_length)
    parts = [pairs[i : i + micro] for i in range(0, len(pairs), micro)]
    total = 0.0
    for part in parts:
        result = step(model, part)
        (result.loss / len(parts)).backward()
        total += result.loss.item() / len(parts)
    torch.nn.utils.clip_grad_norm_(list(model.trained_parameters().values()), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def peak(args: argparse.Namespace) -> None:
    """In a process of its own: the most memory two steps take above the loaded model, MB."""
    model, pairs = build(Path(args.folder)), examples()
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=0.0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is forgotten
    before = status("VmRSS")
    for number in range(2):
        part = pairs[number * args.batch : (number + 1) * args.batch]
        train(model, part, WAYS[args.peak], args.micro or args.batch, optimizer)
    sys.stdout.write(f"{(status('VmHWM') - before) / 1024:.0f}\n")


def status(key: str) -> int:
    """A figure of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def compare(args: argparse.Namespace, folder: Path, pairs: list[Pair]) -> dict[str, object]:
    """Alternating steps of both ways on the same batches; one warm-up each."""
    models = {name: build(folder) for name in WAYS}
    optimizers = {
        name: torch.optim.AdamW(model.trained_parameters().values(), lr=0.0)
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    difference, micro = 0.0, args.micro or args.batch
    for number in range(args.rounds + 1):
        part = pairs[number * args.batch : (number + 1) * args.batch]
        losses = {}
        for name, way in WAYS.items():
            began = time.perf_counter()
            losses[name] = train(models[name], part, way, micro, optimizers[name])
            seconds[name].append(time.perf_counter() - began)
        if micro == args.batch:
            difference = max(difference, abs(losses["plain"] - losses["clara"]))
    ratios = [a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
    medians = {f"{n}_seconds": round(statistics.median(t[1:]), 2) for n, t in seconds.items()}
    return {
        **medians,
        "times_faster": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
        "largest_loss_difference": difference,
    }


def shares(model: ClaraModel, pairs: list[Pair]) -> dict[str, float]:
    """How full the plain way's rows are."""
    batch = batch_of(model, pairs)
    read = sum(map(len, batch.passages)) + SLOTS * len(pairs)
    written = sum(map(len, batch.rows))
    return {
        "encoder_filled": round(read / len(pairs) / (PASSAGE_TOKENS + 3 + SLOTS), 2),
        "decoder_filled": round(written / len(pairs) / max(map(len, batch.rows)), 2),
        "labelled": round(batch.labelled / written, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, help="examples per forward pass; default: the batch")
    parser.add_argument("--shape", choices=SHAPES, default="deep")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args)
        return
    pairs = examples()
    with tempfile.TemporaryDirectory() as name:
        folder = backbone_folder(Path(name), pairs, args.shape)
        model = build(folder)
        result = {
            "shape": args.shape,
            "batch": args.batch,
            "micro": args.micro or args.batch,
            "rounds": args.rounds,
            **shares(model, pairs[: args.batch * args.rounds]),
            "parameters": sum(
                p.numel() for n, p in model.causal_lm.named_parameters() if "lora_" not in n
            ),
            **compare(args, folder, pairs),
        }
        for way in WAYS:
            again = [sys.executable, __file__, "--peak", way, "--folder", name]
            again += ["--batch", str(args.batch), "--micro", str(args.micro or args.batch)]
            shown = subprocess.run(again, capture_output=True, text=True, check=True).stdout
            result[f"{way}_peak_mb"] = int(shown)
    result |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
