"""What checking a backbone's weights costs beside loading them: every byte (compress, train and
bench do), a sample of every tensor (ask), a digest computed before, the first values (version 1).

python tests/benchmarks/digest_cost.py --rounds 3                # random weights, 135 M parameters
python tests/benchmarks/digest_cost.py --backbone DIR --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clara_cli.core import digests
from clara_cli.core.backbone import quieten, stored_first_values_digest
from clara_cli.core.loading import load_model, new_config, new_model

SHAPE = {  # SmolLM2-135M's
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def write_random(folder: Path) -> Path:
    """A backbone folder of random weights in bfloat16."""
    torch.manual_seed(0)
    new_model(new_config("llama", **SHAPE), torch.bfloat16).save_pretrained(folder)
    return folder


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of some rounds, the first of them not counted: it reads the disk."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    quieten()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CLARA_CACHE"] = scratch
        folder = args.backbone or write_random(Path(scratch) / "backbone")
        files = digests.weight_files(folder)
        size = sum(file.stat().st_size for file in files)
        works: dict[str, Callable[[], object]] = {
            "load": lambda: load_model(folder, str(folder), torch.bfloat16),
            "full": lambda: digests.backbone_digest(folder, fresh=True),
            "known": lambda: digests.backbone_digest(folder),
            "sample": lambda: digests.backbone_sample(folder),
            "first_values": lambda: stored_first_values_digest(folder),
        }
        times = {name: round(seconds(work, args.rounds), 4) for name, work in works.items()}
    rate = round(size / times["full"] / 1e9, 2)
    print(json.dumps({"mb": round(size / 1e6), "seconds": times, "full_gb_per_second": rate}))


if __name__ == "__main__":
    main()
