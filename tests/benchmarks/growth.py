"""What grows with a corpus: asking, the first filter, building the index, and compressing short
passages, against an earlier checkout. Processor time of fresh processes, each tree in turn.

    git worktree add BEFORE d6e941a
    python tests/benchmarks/growth.py BEFORE --passages 2000 200000 --rounds 2

Corpora are drawn: 12 random words a passage, a year and a language to filter by, and the memory of
one of 2,000 such passages, which nano made, plus half the difference of two others. The earlier
tree writes them and both read them; each builds its own index.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from cold_start import HERE

QUESTIONS, WORDS, SHORT = 15, 20_000, 3000
DRAW = """
import sys, random
from pathlib import Path
import torch
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import open_writer
from clara_cli.records import Passage
pattern, out, count, words = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
real = Corpus.open(Path(pattern))
identity = real.manifest.identity
real_NMD = torch.cat([memory for _, memory in real.memory_chunks()])
drawn, numbers = random.Random(0), torch.Generator().manual_seed(0)
def passage(i):
    text = " ".join(f"word{int(words * drawn.random() ** 2)}" for _ in range(12))
    fields = {"year": 1900 + drawn.randrange(120), "language": drawn.choice("abcdefgh")}
    return Passage(f"d{i}#0", f"d{i}", "", text, 0, len(text), 12, fields, f"drawn.jsonl:{i + 1}")
with open_writer(Path(out), identity) as writer:
    for shard, first in enumerate(range(0, count, 1024)):
        passages = [passage(i) for i in range(first, min(first + 1024, count))]
        a, b, c = torch.randint(len(real_NMD), (3, len(passages)), generator=numbers)
        writer.write(shard, passages, real_NMD[a] + 0.5 * (real_NMD[b] - real_NMD[c]))
    names = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
    counts = dict.fromkeys(names, 0) | {"documents": count, "passages": count}
    writer.finish({**counts, "text_tokens": 12 * count}, "0" * 64, "d0", [])
"""
ASK = """
import json, statistics, sys, time
from pathlib import Path
try:
    from clara_cli.answering.engine import Clara
except ImportError:
    from clara_cli.engine import Clara
corpus, questions = sys.argv[1], json.loads(sys.argv[2])
clara, milliseconds = Clara.open(Path(corpus), device="cpu"), {}
def spent(question, **how):
    began = time.process_time()
    clara.ask(question, max_new_tokens=1, **how)
    return 1000 * (time.process_time() - began)
for stage in ("bm25", "latent", "hybrid"):
    spent(questions[0], first_stage=stage)  # the first reads the index
    milliseconds[stage] = statistics.median(spent(q, first_stage=stage) for q in questions[1:])
where = "year >= 1950 and language = 'c'"
milliseconds["first where"] = spent(questions[0], first_stage="latent", where=where)
milliseconds["next where"] = spent(questions[1], first_stage="latent", where=where)
print(json.dumps(milliseconds))
"""


class Tree:
    """One checkout at work in a folder of its own."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "CLARA_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def python(self, *words: str) -> tuple[str, float, int]:
        """Run Python; what it printed, its processor seconds and its peak memory in bytes."""
        command = [sys.executable, *words]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=self.folder, env=self.environment
        ) as process:
            assert process.stdout is not None
            printed = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return printed, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss

    def clara(self, *words: str) -> tuple[str, float, int]:
        """Run a command of clara."""
        return self.python("-m", "clara_cli", *words, "--quiet")


def draw(tree: Tree, passages: int, corpus: Path) -> None:
    """A corpus of that many drawn passages, written by a tree."""
    pattern = tree.folder / "pattern.clara"
    if not pattern.exists():
        write_lines(tree.folder / "pattern.jsonl", 2000)
        tree.clara("compress", "pattern.jsonl", "--model", "nano", "--out", str(pattern))
    tree.python("-c", DRAW, str(pattern), str(corpus), str(passages), str(WORDS))


def questions() -> list[str]:
    """Questions of drawn words."""
    drawn = random.Random(1)
    words = (f"word{int(WORDS * drawn.random() ** 2)}" for _ in iter(int, 1))
    return [" ".join(islice(words, 6)) + "?" for _ in range(QUESTIONS + 1)]


def ask_and_index(tree: Tree, corpus: Path) -> dict[str, float]:
    """Milliseconds of a question by stage, seconds of building the index, peaks in MB."""
    own = tree.folder / corpus.name
    if not own.exists():
        shutil.copytree(corpus, own, copy_function=os.link)
    shutil.rmtree(own / "index", ignore_errors=True)
    _, built, index_peak = tree.clara("index", str(own))
    printed, _, ask_peak = tree.python("-c", ASK, str(own), json.dumps(questions()))
    peaks = {"index MB": index_peak / 1e6, "ask MB": ask_peak / 1e6}
    return {**json.loads(printed), "index s": built, **peaks}


def write_lines(file: Path, count: int) -> None:
    """So many documents of twelve tokens, six syllables each."""
    drawn = random.Random(2)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    texts = (" ".join(drawn.choice(syllables) for _ in range(6)) for _ in range(count))
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")


def compress_short(tree: Tree) -> dict[str, float]:
    """Passages of twelve tokens a processor second, starting left out."""
    seconds = []
    for count in (1, SHORT):
        write_lines(tree.folder / "short.jsonl", count)
        out = tree.folder / "short.clara"
        shutil.rmtree(out, ignore_errors=True)
        words = ["compress", "short.jsonl", "--model", "nano", "--out", str(out)]
        seconds.append(tree.clara(*words)[1])
    return {"short passages a second": (SHORT - 1) / (seconds[1] - seconds[0])}


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians of both trees over rounds, and the later one's share of the earlier one's."""
    names = rounds[0]["before"]
    rows = {}
    for name in names:
        before, after = (
            statistics.median(each[tree][name] for each in rounds) for tree in ("before", "after")
        )
        shares = {"before": before, "after": after, "share": after / before}
        rows[name] = {key: round(value, 3) for key, value in shares.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--passages", type=int, nargs="+", default=[2000, 200_000])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        sources = {"before": options.before.resolve(), "after": HERE}
        trees = {name: Tree(source, Path(work) / name) for name, source in sources.items()}
        for passages in options.passages:
            corpus = Path(work) / f"{passages}.clara"
            draw(trees["before"], passages, corpus)
            rounds = [
                {name: ask_and_index(tree, corpus) for name, tree in trees.items()}
                for _ in range(options.rounds)
            ]
            print(json.dumps({"passages": passages, **compared(rounds)}), flush=True)
        rounds = [
            {name: compress_short(tree) for name, tree in trees.items()}
            for _ in range(options.rounds)
        ]
        print(json.dumps(compared(rounds)), flush=True)


if __name__ == "__main__":
    main()
