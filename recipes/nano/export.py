"""Turns the state of `backbone.py` into a native checkpoint with its backbone inside.

    python recipes/nano/export.py runs/nano-backbone runs/nano-init

The roles it gets are untouched LoRA: they compute what the backbone computes, until `clara
pretrain` and `clara train` teach them apart.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import backbone as nano
import torch
from transformers import PreTrainedTokenizerFast

from clara_cli.core.backbone import load_backbone, weights_digest
from clara_cli.core.checkpoint import CheckpointInfo, save
from clara_cli.core.model import ClaraModel, LoraSettings
from clara_cli.core.prompts import Prompter

ROLES = ("compressor", "generator")  # the query reasoner begins as the trained compressor
PASSAGE_TOKENS, RATIO, RATIOS = 256, 16, (4, 8, 16, 32)
DATA = (
    "invented facts (recipes/nano/world.py); SQuAD v1.1 train passages and questions "
    "(CC BY-SA 4.0), one batch in twenty"
)


def export(run: Path, out: Path, dtype: torch.dtype) -> CheckpointInfo:
    """Write `out/checkpoint` from a training state; weights are stored in `dtype`."""
    state = torch.load(run / "last.pt", weights_only=True, map_location="cpu")
    tok = PreTrainedTokenizerFast.from_pretrained(run)
    hidden = state["memory"]["slots_MD"].shape[1]
    layers = 1 + max(int(k.split(".")[2]) for k in state["model"] if k.startswith("model.layers."))
    model = nano.build_model(len(tok), hidden, layers)
    model.load_state_dict(state["model"])
    work = out / "backbone"
    shutil.rmtree(out, ignore_errors=True)
    model.to(dtype).save_pretrained(work)
    tok.save_pretrained(work)
    base = load_backbone(str(work), torch.device("cpu"), torch.float32)
    digest = weights_digest(base.model)
    separator, encode = state["memory"]["markers_2D"]
    settings = LoraSettings()
    clara = ClaraModel(
        base,
        Prompter(base.tokenizer, PASSAGE_TOKENS),
        settings,
        ROLES,
        state["memory"]["slots_MD"],
        torch.stack([encode, separator]),
    )
    progress = state["progress"]
    entry = {
        "stage": "backbone",
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60, 1),
        "data": DATA,
    }
    info = CheckpointInfo(
        backbone="nano-backbone",
        revision=None,
        backbone_digest=digest,
        max_passage_tokens=PASSAGE_TOKENS,
        memory_tokens=clara.slots,
        ratio=RATIO,
        ratios=RATIOS,
        lora=settings,
        roles=ROLES,
        stage="backbone",
        provenance=(entry,),
        licence="Apache-2.0; trained in part on CC BY-SA 4.0 text",
    )
    info = save(clara, info, out / "checkpoint")
    shutil.move(work, out / "checkpoint" / "backbone")
    return info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--float32", action="store_true", help="keep full precision (default bfloat16)"
    )
    args = parser.parse_args()
    info = export(args.run, args.out, torch.float32 if args.float32 else torch.bfloat16)
    print(f"{args.out / 'checkpoint'}: {info.fingerprint}")


if __name__ == "__main__":
    main()
