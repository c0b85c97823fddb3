"""Where a cold start goes: processor seconds of what answering imports, each in a fresh process.

python tests/benchmarks/imports.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys

LLAMA = "from transformers.models.llama.modeling_llama import LlamaForCausalLM"
STEPS = {
    "python": "pass",
    "torch": "import torch",
    "transformers' Llama": LLAMA,
    "with peft": f"{LLAMA}; import peft",
    "clara's engine": "import clara_cli.answering.engine",
}


def seconds_of(statement: str) -> float:
    """Processor seconds, the user's own, of a process that runs one statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", statement], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds + 1):  # the first fills the disk's cache
        for name, statement in STEPS.items():
            seconds[name].append(seconds_of(statement))
    medians = {name: round(statistics.median(times[1:]), 2) for name, times in seconds.items()}
    sys.stdout.write(json.dumps(medians) + "\n")


if __name__ == "__main__":
    main()
