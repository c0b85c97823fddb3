"""A training step of `clara train` against that of an earlier checkout: the same questions over the
same passages on the same backbone, whole commands in turn.

    git worktree add BEFORE d6e941a
    python tests/benchmarks/train_commits.py BEFORE BACKBONE SQUAD --rounds 2

BACKBONE is a folder of a small Llama (smol's lies in the cache of backbones), SQUAD JSON lines (or
.xz) of {"text", "qas"}. Both trees train the generator to read one passage's memory, from fresh
roles that the earlier tree made; a step is all questions, so that both take the same ones. Printed:
examples a second of the steps after the first, peak memory, and how far losses are apart.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
STAGED = """
import sys
from pathlib import Path
from clara_cli.app import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text(), file=sys.stderr)
"""
STEPS = 3


def records(squad: Path) -> Iterator[dict[str, Any]]:
    """The passages of a file of questions."""
    with (lzma.open if squad.suffix == ".xz" else open)(squad, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write_questions(squad: Path, passages: int, each: int, file: Path) -> int:
    """A line a question, with its passage as its pool; how many."""
    lines = []
    for record in islice(records(squad), 40, 40 + passages):
        pool = [{"title": record["title"], "text": record["text"], "gold": True}]
        for question in record["qas"][:each]:
            answers = question["answers"][:1]
            lines.append({"question": question["question"], "answers": answers, "paragraphs": pool})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def clara(tree: Path, folder: Path, words: list[str]) -> float:
    """Run a tree's command; its peak memory in megabytes."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CLARA_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", STAGED, *words]
    ended = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", ended.stderr, re.M)
    return int(peak) * 1024 / 1e6


def steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "ce" in line and "seconds" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("squad", type=Path)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--questions", type=int, default=5, help="a passage")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": HERE}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        count = write_questions(
            options.squad, options.passages, options.questions, folder / "questions.jsonl"
        )
        pair = {"data_type": "paraphrase", "answers": ["It rains."], "docs": ["Rain falls."]}
        (folder / "pair.jsonl").write_text(json.dumps(pair) + "\n")
        fresh = ["pretrain", "pair.jsonl", "--backbone", str(options.backbone.resolve())]
        fresh += ["--steps", "0", "--set", "passage_tokens=256", "--out", "fresh"]
        clara(trees["before"], folder, fresh)
        common = ["train", "questions.jsonl", "--init", "fresh", "--stage", "instruct"]
        common += ["--steps", str(STEPS), "--dtype", options.dtype, "--quiet"]
        settings = [f"batch_size={count}", "micro_batch=5", "dropout=0", "learning_rate=1e-4"]
        common += [word for setting in settings for word in ("--set", setting)]
        own = {"before": [], "after": ["--set", "group_by_pool=true"]}
        rates: dict[str, list[float]] = {name: [] for name in trees}
        peaks, losses = dict.fromkeys(trees, 0.0), {}
        for number in range(options.rounds):
            for name, tree in trees.items():
                out = f"{name}-{number}"
                peak = clara(tree, folder, [*common, *own[name], "--out", out])
                lines = steps(folder / out)
                rates[name] += [count / line["seconds"] for line in lines[1:]]
                peaks[name] = max(peaks[name], peak)
                losses[name] = [line["ce"] for line in lines]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    apart = max(abs(a - b) for a, b in zip(losses["before"], losses["after"], strict=True))
    result = {
        "examples_per_s": {name: round(value, 3) for name, value in medians.items()},
        "times": round(medians["after"] / medians["before"], 2),
        "peak_mb": {name: round(value) for name, value in peaks.items()},
        "share": round(peaks["after"] / peaks["before"], 2),
        "losses": losses,
        "apart": apart,
        "examples": count,
        "dtype": options.dtype,
        "rounds": options.rounds,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
