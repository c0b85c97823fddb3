"""Makes of a trained checkpoint the bundled smol: roles in bfloat16, the backbone by its name.

    python recipes/smol/ship.py runs/smol-reader/checkpoint clara_cli/models/smol

The backbone, 98 MB, is not copied: `clara.json` names its file; a package or the Hub has it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from clara_cli.bundled import SMOLLM2
from clara_cli.core.checkpoint import LoadOptions, load, save
from clara_cli.core.checkpoint_info import ReadingDefaults

LICENCE = (
    "Apache-2.0 (SmolLM2-135M-Instruct, and what is ours). Roles trained on: SQuAD v1.1 train "
    "(CC BY-SA 4.0), SQuADShifts Reddit and Amazon (CC BY 4.0), FairytaleQA train (Apache-2.0), "
    "QED, of Natural Questions train (CC BY-SA 3.0), PolicyQA dev and test (MIT)"
)


def ship(source: Path, out: Path, passages: int, ratio: int | None = None) -> int:
    """Write the checkpoint, which reads the text of `passages` passages, or the memory of one, and
    compresses at `ratio` by default; returns its bytes."""
    loaded = load(LoadOptions(str(source), SMOLLM2.backbone, "cpu", "float32"))
    for role in loaded.model.roles:
        for parameter in loaded.model.role_parameters(role).values():
            parameter.data = parameter.data.to(torch.bfloat16)
    info = replace(
        loaded.info,
        backbone=SMOLLM2.backbone,
        revision=SMOLLM2.revision,
        licence=LICENCE,
        ratio=ratio or loaded.info.ratio,
        reading=ReadingDefaults("text", passages, generator_reads_text=True, memory_passages=1),
    )
    save(loaded.model, info, out)
    for file in out.glob("*/README.md"):  # PEFT's own, a form without content
        file.unlink()
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def main(argv: Sequence[str] | None = None) -> None:
    """Ship, keeping the card that lies there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="checkpoint/ of a run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--passages", type=int, default=5, help="passages read by default")
    parser.add_argument("--ratio", type=int, help="of compressing by default")
    args = parser.parse_args(argv)
    card = args.out / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    shutil.rmtree(args.out, ignore_errors=True)
    size = ship(args.source, args.out, args.passages, args.ratio)
    if text is not None:
        card.write_text(text, encoding="utf-8")
    print(f"{args.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
