"""Turns what `train.py` wrote into a native checkpoint with its backbone inside.

    python recipes/nano/export.py runs/nano-backbone/weights runs/nano-packed runs/nano-init

The packed folder gives the tokenizer and tells what the data was.

The roles it gets are untouched LoRA: they compute what the backbone computes, until `clara
pretrain` and `clara train` teach them apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import network as nano
import torch
import weights
from transformers import PreTrainedTokenizerFast

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import CheckpointInfo, save
from clara_cli.core.int8 import save_backbone
from clara_cli.core.model import ClaraModel
from clara_cli.core.prompts import Prompter

ROLES = ("compressor", "generator")  # the query reasoner begins as the trained compressor
PASSAGE_TOKENS, RATIO, RATIOS = 256, 16, (4, 8, 16, 32, 64)
LICENCE = "Apache-2.0; trained on CC BY-SA 4.0 and CC BY 4.0 text"


def described(run: Path, data: Path) -> dict:
    """The provenance entry of a backbone."""
    about = json.loads((run / "about.json").read_text())
    counts = json.loads((data / "manifest.json").read_text())["passages"]
    return {
        "stage": "backbone",
        "steps": about["steps"],
        "tokens": about["tokens"],
        "minutes": round(about["seconds"] / 60, 1),
        "data": "passages: " + ", ".join(f"{name} {n:,}" for name, n in counts.items() if n),
    }


def export(run: Path, data: Path, out: Path, dtype: torch.dtype) -> CheckpointInfo:
    """Write `out/checkpoint` from a run's weights; the backbone is stored in `dtype`, int8 too."""
    shape, state = weights.read(run)
    tok = PreTrainedTokenizerFast.from_pretrained(data)
    trained = nano.Network(nano.build_model(**shape), nano.Memory(nano.SLOTS, shape["hidden"]))
    trained.load_state_dict(state)
    work = out / "backbone"
    shutil.rmtree(out, ignore_errors=True)
    if dtype == torch.int8:
        save_backbone(trained.model, work)
    else:
        trained.model.to(dtype).save_pretrained(work)
    tok.save_pretrained(work)
    base = load_backbone(str(work), torch.device("cpu"), torch.float32)
    separator, encode = trained.memory.markers_2D.detach()
    settings = LoraSettings()
    prompter = Prompter(base.tokenizer, PASSAGE_TOKENS)
    markers = torch.stack([encode, separator])
    slots = trained.memory.slots_MD.detach()
    clara = ClaraModel(base, prompter, settings, ROLES, slots, markers)
    info = CheckpointInfo(
        backbone="nano-backbone",
        revision=None,
        backbone_digest=base.digest,
        max_passage_tokens=PASSAGE_TOKENS,
        memory_tokens=clara.memory_tokens,
        ratio=RATIO,
        ratios=RATIOS,
        lora=settings,
        roles=ROLES,
        stage="backbone",
        provenance=(described(run, data),),
        licence=LICENCE,
    )
    info = save(clara, info, out / "checkpoint", work)
    shutil.rmtree(work)
    return info


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="weights/ of a run")
    parser.add_argument("data", type=Path, help="the packed folder it was trained on")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "int8"))
    args = parser.parse_args()
    info = export(args.run, args.data, args.out, getattr(torch, args.dtype))
    print(f"{args.out / 'checkpoint'}: {info.fingerprint}")


if __name__ == "__main__":
    main()
