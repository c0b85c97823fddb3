"""Makes of a trained checkpoint the one that is bundled: its roles in bfloat16, all of it at most
32 MB.

    python recipes/nano/ship.py runs/nano-e2e/checkpoint runs/nano-shipped
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from clara_cli.core.checkpoint import LoadOptions, load, save

LIMIT = 32_000_000  # bytes


def ship(source: Path, out: Path) -> int:
    """Write the checkpoint; returns its bytes. Its fingerprint is a new one, since rounding moves
    the memory: corpora and a support.json of the unrounded one do not go with it."""
    loaded = load(LoadOptions(str(source), device="cpu", dtype="float32"))
    for role in loaded.model.roles:
        for parameter in loaded.model.role_parameters(role).values():
            parameter.data = parameter.data.to(torch.bfloat16)
    save(loaded.model, loaded.info, out, source / "backbone")
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="checkpoint/ of a run, its backbone inside")
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if args.out.exists():
        raise SystemExit(f"{args.out} exists; name a new folder")
    size = ship(args.source, args.out)
    print(f"{args.out}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{size:,} bytes are more than {LIMIT:,}: export with --dtype int8")


if __name__ == "__main__":
    main()
