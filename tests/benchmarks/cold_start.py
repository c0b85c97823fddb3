"""A cold `clara ask`, one question over the sample, against an earlier checkout: fresh processes in
turn, each tree with a cache and a corpus of its own, opened once before anything is measured.

git worktree add BEFORE d6e941a
python tests/benchmarks/cold_start.py BEFORE --rounds 7
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[2]
SAMPLE = HERE / "recipes" / "sample" / "corpus.jsonl"
QUESTION = "Who commanded the Eastern Walrus 58?"


class Tree:
    """One checkout with a corpus that it made of some documents, of the sample by default."""

    def __init__(self, source: Path, folder: Path, model: str, documents: Path = SAMPLE) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "CLARA_CACHE": str(folder / "cache"),
        }
        made = ["compress", str(documents), "--model", model, "--out", "sample.clara"]
        self.run([*made, "--store-dtype", "bf16", "--quiet"])  # the default before
        self.seconds: list[tuple[float, float]] = []

    def run(self, words: Sequence[str]) -> str:
        """Run clara; what it printed."""
        command = [sys.executable, "-m", "clara_cli", *words]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def timed(self, words: Sequence[str]) -> tuple[str, float, float]:
        """(what clara printed in a fresh process, its processor and wall seconds)."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        printed = self.run(words)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return printed, processor, wall

    def ask(self) -> str:
        """The answer of a fresh process; its processor and wall seconds are kept."""
        words = ["ask", QUESTION, "--corpus", "sample.clara", "--top-k", "1", "--json"]
        printed, *seconds = self.timed(words)
        self.seconds.append((seconds[0], seconds[1]))
        answer: str = json.loads(printed.splitlines()[-1])["answer"]
        return answer

    def medians(self) -> dict[str, float]:
        """Of every round but the first."""
        processor, wall = zip(*self.seconds[1:], strict=True)
        return {
            "processor_s": round(statistics.median(processor), 2),
            "wall_s": round(statistics.median(wall), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--more", default="smol", help="another model of this tree, or none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        trees = {
            "before": Tree(options.before.resolve(), Path(work) / "before", "nano"),
            "after": Tree(HERE, Path(work) / "after", "nano"),
        }
        if options.more != "none":
            trees[options.more] = Tree(HERE, Path(work) / options.more, options.more)
        for _ in range(options.rounds + 1):  # the first opens the models and is left out
            answers = {name: tree.ask() for name, tree in trees.items()}
        assert answers["before"] == answers["after"], answers
    result: dict[str, object] = {name: tree.medians() for name, tree in trees.items()}
    for kind in ("processor_s", "wall_s"):
        ratio = trees["after"].medians()[kind] / trees["before"].medians()[kind]
        result[f"ratio_{kind}"] = round(ratio, 2)
    sys.stdout.write(json.dumps({**result, "rounds": options.rounds}) + "\n")


if __name__ == "__main__":
    main()
