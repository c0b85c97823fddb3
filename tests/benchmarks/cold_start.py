"""A cold `clara ask`, one question over the sample, and `clara compress` and `index` of one short
document, against an earlier checkout: fresh processes in turn, each tree with a cache and a corpus
of its own, opened once before anything is measured.

git worktree add BEFORE d6e941a
python tests/benchmarks/cold_start.py BEFORE --rounds 7
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
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
COMMANDS = ("ask", "compress", "index")


class Tree:
    """One checkout with a corpus that it made of some documents, of the sample by default."""

    def __init__(self, source: Path, folder: Path, model: str, documents: Path = SAMPLE) -> None:
        self.folder, self.model = folder, model
        folder.mkdir()
        (folder / "one.txt").write_text("The library opens at nine.\n", encoding="utf-8")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "CLARA_CACHE": str(folder / "cache"),
        }
        made = ["compress", str(documents), "--model", model, "--out", "sample.clara"]
        self.run([*made, "--store-dtype", "bf16", "--quiet"])  # the default before
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}

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

    def round(self) -> str:
        """Each command in a fresh process, its processor and wall seconds kept; the answer."""
        shutil.rmtree(self.folder / "one.clara", ignore_errors=True)
        words = {
            "ask": [QUESTION, "--corpus", "sample.clara", "--top-k", "1", "--json"],
            "compress": ["one.txt", "--model", self.model, "--out", "one.clara", "--json"],
            "index": ["one.clara", "--json"],
        }
        printed = {}
        for name in COMMANDS:
            printed[name], *seconds = self.timed([name, *words[name]])
            self.seconds[name].append((seconds[0], seconds[1]))
        answer: str = json.loads(printed["ask"].splitlines()[-1])["answer"]
        return answer

    def medians(self, command: str) -> tuple[float, float]:
        """Processor and wall seconds of every round but the first."""
        processor, wall = zip(*self.seconds[command][1:], strict=True)
        return statistics.median(processor), statistics.median(wall)


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
            answers = {name: tree.round() for name, tree in trees.items()}
        assert answers["before"] == answers["after"], answers
    for command in COMMANDS:
        medians = {name: tree.medians(command) for name, tree in trees.items()}
        result: dict[str, object] = {"command": command, "rounds": options.rounds}
        for place, kind in enumerate(("processor_s", "wall_s")):
            result |= {f"{name}_{kind}": round(m[place], 2) for name, m in medians.items()}
            result[f"ratio_{kind}"] = round(medians["after"][place] / medians["before"][place], 2)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
