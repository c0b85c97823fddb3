"""Questions of a file, `clara ask -f`, against an earlier checkout: fresh processes in turn, each
tree with a corpus of its own of the same documents. What starting and the first question take is
measured apart and left out.

git worktree add BEFORE d6e941a
python tests/benchmarks/ask_file.py BEFORE DOCUMENTS QUESTIONS --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from cold_start import HERE, Tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("documents", type=Path)
    parser.add_argument("questions", type=Path, help="JSON lines with `question`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="questions")
    options = parser.parse_args()
    lines = options.questions.read_text(encoding="utf-8").splitlines()[: options.limit]
    with tempfile.TemporaryDirectory() as work:
        trees = {
            name: Tree(source, Path(work) / name, "nano", options.documents.resolve())
            for name, source in (("before", options.before.resolve()), ("after", HERE))
        }
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        answers: dict[str, list[str]] = {}
        for part, name in ((lines, "all.jsonl"), (lines[:1], "one.jsonl")):
            (Path(work) / name).write_text("\n".join(part) + "\n", encoding="utf-8")
        for _ in range(options.rounds):
            for name, tree in trees.items():
                words = ["ask", "--corpus", "sample.clara", "--dtype", "float32", "--json", "-f"]
                start = tree.timed([*words, f"{work}/one.jsonl"])[1]
                printed, processor, _ = tree.timed([*words, f"{work}/all.jsonl"])
                seconds[name].append(processor - start)
                answers[name] = [json.loads(line)["answer"] for line in printed.splitlines()]
    pairs = zip(answers["before"], answers["after"], strict=True)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    result = {
        "questions": len(lines),
        "rounds": options.rounds,
        **{f"{name}_s": round(value, 2) for name, value in medians.items()},
        "faster": round(medians["before"] / medians["after"], 2),
        "equal_answers": round(sum(a == b for a, b in pairs) / len(lines), 4),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
