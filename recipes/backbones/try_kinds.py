"""Tries kinds of backbones: a tiny one of each, random weights, through everything that is seen to
when a backbone is loaded; prints the table of README.md. No network, about a minute.

    python recipes/backbones/try_kinds.py
    python recipes/backbones/try_kinds.py --kinds llama,gemma3_text
    python recipes/backbones/try_kinds.py --together

With --together it prints instead which share of prompts gets the same answer together as alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS, SMALL, sizes

from clara_cli.answering.reading import Prompt, generate
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import Backbone, check_head, quieten
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.loading import as_artefact_errors, new_config, new_model
from clara_cli.core.lora_targets import true_targets
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.core.random_backbones import byte_tokenizer
from clara_cli.errors import ArtefactError

MOST_NUMBERS = 30_000_000
FORMATS = ("float32", "bfloat16")
PROMPTS, LONGEST, ANSWER = 16, 48, 12  # prompts answered together, tokens of each, new ones
COLUMNS = ("kind", "verdict", "LoRA adapts without dropout", "LoRA leaves out")


def backbone(kind: str, folder: Path) -> Path:
    """A tiny backbone of a kind, saved as any is."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    with as_artefact_errors(f"a tiny {kind}", ""):
        model = new_model(new_config(kind, **sizes(kind, len(tokenizer) + 13)), torch.float32)
        if sum(p.numel() for p in model.parameters()) > MOST_NUMBERS:
            raise ValueError("cannot be made tiny by the usual settings")
        fill_zeros(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def fill_zeros(model: Any) -> None:
    """Give weights that begin as zeros random values: they would hide what is read through them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=SMALL["initializer_range"])


@dataclass(frozen=True)
class Trial:
    """What holds for a kind, in a table's words, and its LoRA where it can be read."""

    verdict: str
    lora: LoraSettings | None = None


def trial(kind: str) -> Trial:
    """Try a kind."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = backbone(kind, Path(scratch) / kind)
        except ArtefactError as error:
            return Trial(f"not tried: {error.message.partition(': ')[2]}")
        try:
            base = LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
            Prompter(base.tokenizer, 64).check_template(kind)
        except ArtefactError as error:
            return Trial(f"refused: {error.message.replace(str(folder), kind)}")
        return Trial(passed(base), true_targets(base.model, LoraSettings()))


def passed(base: Backbone) -> str:
    """The verdict on a backbone that can be read."""
    notes = [] if base.pads else ["answered one by one"]
    try:
        check_head(base.model)
    except ArtefactError as error:
        notes.append(f"not for training: {error.message}")
    return ", ".join(["passes", *notes])


def row(kind: str) -> str:
    """A kind's row of the table."""
    tried = trial(kind)
    lora = tried.lora or LoraSettings()
    cells = [f"`{kind}`", " ".join(tried.verdict.split())[:160]]
    cells += [", ".join(lora.parameters), ", ".join(lora.left_out)]
    return "| " + " | ".join(cells) + " |"


def equal_share(kind: str, dtype: str) -> float | None:
    """The share of prompts of random tokens whose greedy answer is the same when they are answered
    together as when each is alone; None for a kind that cannot be read."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = backbone(kind, Path(scratch) / kind)
            base = LoadOptions("", device="cpu", dtype=dtype).open_backbone(str(folder))
        except ArtefactError:
            return None
    seeded = torch.Generator().manual_seed(0)
    memory = fresh_memory(1, base.table_VD, seeded)
    lora = true_targets(base.model, LoraSettings(rank=1))
    model = ClaraModel(base, Prompter(base.tokenizer, 64), lora, ("generator",), *memory)
    lengths = torch.randint(2, LONGEST, (PROMPTS,), generator=seeded).tolist()
    rows = [torch.randint(3, len(base.tokenizer), (n,), generator=seeded).tolist() for n in lengths]
    prompts = [Prompt(row, None, None) for row in rows]
    together = generate(model, prompts, ANSWER)
    alone = [generate(model, [prompt], ANSWER)[0] for prompt in prompts]
    same = [a.ids == b.ids for a, b in zip(together, alone, strict=True)]
    return sum(same) / len(same)


def share_row(kind: str) -> str:
    """A kind's row of shares, by number format."""
    shares = [equal_share(kind, dtype) for dtype in FORMATS]
    return " | ".join([f"| `{kind}`", *("" if s is None else f"{s:.2f}" for s in shares)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--together", action="store_true", help="shares of equal answers")
    args = parser.parse_args()
    quieten()
    columns, line = (("kind", *FORMATS), share_row) if args.together else (COLUMNS, row)
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for kind in args.kinds.split(","):
        print(line(kind), flush=True)


if __name__ == "__main__":
    main()
