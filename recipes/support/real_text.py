"""Calibrates and measures support on real text; only passages that are found are compressed.

    python recipes/support/real_text.py --model smol --fit held_out.jsonl --out support.json \\
        --measure dev.jsonl.xz reddit.jsonl.xz amazon_reviews.jsonl.xz --trained-on train.jsonl

A file is one that `clara bench --dataset` reads; its passages are a corpus, searched by BM25. Of
each `--questions` are drawn and answered as `calibrate.py` does: over what is found, and over what
is found for another question. With `--fit`, half of that file's questions is fitted and `--out` is
the `support.json`; without, the calibration that the checkpoint has is measured. What `--measure`
names is never fitted, and questions of passages in `--trained-on` are left out. Prints a table: all
answers, and those over what was found alone, as a user meets them. `--keep FOLDER` keeps the judged
answers: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from calibrate import TOGETHER, Control, controls, judged
from torch import Tensor

from clara_cli.answering.answerer import Answerer, AskOptions, FoundPassages
from clara_cli.answering.calibration import Case, calibrated, fit_and_measure, measure
from clara_cli.answering.support import SIGNALS, read_calibrations
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.core.load_options import LoadOptions
from clara_cli.evaluation.data import datasets
from clara_cli.evaluation.paragraphs import Library, Piece
from clara_cli.evaluation.passage_memories import ComputedMemories
from clara_cli.evaluation.pool_settings import Cases
from clara_cli.records import Hit, Passage, Question

FIGURES = ("auroc", "ece", "precision", "recall")
ALONE = ", found alone"


class RealText:
    """A file's questions, drawn, and its passages as a corpus that BM25 searches."""

    def __init__(self, loaded: Loaded, file: str, args: argparse.Namespace) -> None:
        dataset = datasets.load(file)
        chosen = drawn(dataset.questions, args.questions, trained_on(args.trained_on), args.seed)
        others = sorted(set(range(len(dataset.questions))) - set(chosen))
        order = tuple(dataset.questions[number] for number in (*chosen, *others))
        dataset = dataclasses.replace(dataset, questions=order)
        library = Library(loaded.info.max_passage_tokens, loaded.model.prompter.offsets)
        self.cases = Cases(dataset, "corpus", len(chosen), library)
        self.pieces = self.cases.case(0).pool.pieces
        self.memories = ComputedMemories(loaded.model, library.texts, "fp8", batch=1)
        self.memory_tokens = loaded.info.memory_tokens_for(None)

    def questions(self) -> list[dict[str, Any]]:
        """As `calibrate.py` has them."""
        return [
            {
                "question": q.question,
                "answers": list(q.answers),
                "gold": list(self.cases.case(n).gold),
            }
            for n, q in enumerate(self.cases.questions)
        ]

    def find(self, how: AskOptions) -> list[FoundPassages]:
        """What BM25 finds for each question."""
        found = []
        for number, question in enumerate(self.cases.questions):
            pieces = self.cases.case(number).pool.bm25(question.question, how.top_k)
            hits = tuple(hit(rank, piece) for rank, piece in enumerate(pieces, 1))
            memory_KMD = self.memory([piece.row for piece in pieces], how)
            found.append(
                FoundPassages(question.question, hits, memory_KMD, None, {}, question.question)
            )
        return found

    def memory(self, rows: Sequence[int], how: AskOptions) -> Tensor:
        """memory_KMD of passages; of none where text alone is read."""
        return self.memories.rows(() if how.read == "text" else rows, self.memory_tokens)

    def other(self, found: FoundPassages) -> Tensor:
        """The memory of a passage that was not found, the same one each time."""
        taken = {hit.row for hit in found.hits}
        rows = [piece.row for piece in self.pieces if piece.row not in taken]
        row = random.Random(found.question).choice(rows)
        return self.memories.rows([row], self.memory_tokens)


def hit(rank: int, piece: Piece) -> Hit:
    """A passage as answers are judged over it: the title stands in its text."""
    passage = Passage(piece.given, piece.given, "", piece.text, 0, len(piece.text), piece.tokens)
    return Hit(rank, piece.row, 0.0, passage)


def trained_on(files: Sequence[Path]) -> set[str]:
    """The text of every passage in files of passages, or of pools, a line."""
    records = (json.loads(line) for file in files for line in file.open(encoding="utf-8"))
    return {p["text"].strip() for record in records for p in record.get("paragraphs", [record])}


def drawn(questions: Sequence[Question], count: int, known: set[str], seed: int) -> list[int]:
    """The numbers of so many questions with an answer and no gold passage that is `known`."""
    free = [
        number
        for number, question in enumerate(questions)
        if question.answers and not any(p.gold and p.text.strip() in known for p in question.pool)
    ]
    return sorted(random.Random(seed).sample(free, min(count, len(free))))


@dataclass(frozen=True)
class KeptCases:
    """Judged answers in a file: its settings, then a line for each part that is done."""

    file: Path | None
    settings: dict[str, Any]

    def read(self) -> list[list[Case]]:
        """The parts that are done; exits where they are of other settings."""
        if self.file is None or not self.file.is_file():
            return []
        first, *parts = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        if first != self.settings:
            sys.exit(f"{self.file} is of other settings: {first}, not {self.settings}")
        return [[Case(**case) for case in part] for part in parts]

    def add(self, part: Sequence[Case]) -> None:
        """Write a part that is done."""
        if self.file is None:
            return
        if not self.file.is_file():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.settings) + "\n", encoding="utf-8")
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([dataclasses.asdict(case) for case in part]) + "\n")


def judged_parts(
    answerer: Answerer, chosen: Sequence[Control], how: AskOptions, kept: KeptCases, name: str
) -> Iterator[Case]:
    """The answers to controls, a part after the other, those that are done as they were kept."""
    done = kept.read()
    yield from (case for part in done for case in part)
    began, first = time.monotonic(), len(done) * TOGETHER
    for start in range(first, len(chosen), TOGETHER):
        part = judged(answerer, chosen[start : start + TOGETHER], how)
        kept.add(part)
        answers = min(start + TOGETHER, len(chosen))
        pace = (time.monotonic() - began) / (answers - first)
        print(f"{name}: {answers:,} of {len(chosen):,} answers, {pace:.2f} s each", file=sys.stderr)
        yield from part


def judged_file(loaded: Loaded, file: str, how: AskOptions, args: argparse.Namespace) -> list[Case]:
    """The judged answers to a file's questions."""
    settings = {
        "file": file,
        "weights": {name: digests["digest"] for name, digests in loaded.info.weights.items()},
        "read": how.read,
        "top_k": how.top_k,
        "trained_on": [str(file) for file in args.trained_on],
        "questions": args.questions,
        "seed": args.seed,
    }
    kept = KeptCases(args.keep / f"{stem(file)}.jsonl" if args.keep else None, settings)
    text = RealText(loaded, file, args)
    chosen = controls(text.questions(), text.find(how))
    answerer = Answerer(loaded, True, text.other)
    return list(judged_parts(answerer, chosen, how, kept, stem(file)))


def stem(file: str) -> str:
    """A file's name without its suffixes, as the table has it."""
    return Path(file).name.partition(".")[0]


def measured_sets(cases: Sequence[Case], name: str) -> dict[str, list[Case]]:
    """All answers of a file, and those over what was found."""
    return {name: list(cases), name + ALONE: [case for case in cases if not case.wrong]}


def own_figures(
    loaded: Loaded, read: ReadMode, sets: dict[str, list[Case]], seed: int
) -> dict[str, Any]:
    """What a checkpoint's own calibration makes of answers; exits where it has none."""
    fingerprints = (loaded.info.fingerprint, loaded.info.older_fingerprint)
    calibration = read_calibrations(loaded.path, *fingerprints).get(read)
    if calibration is None:
        sys.exit(f"{loaded.name} has no calibration of answers read from {read}: give --fit")
    fit, figures = calibration.with_text, {}
    for name, rows in sets.items():
        p_N = torch.tensor([fit.probability(case.signals) for case in rows]).double()
        figures[name] = measure(p_N, rows, fit.threshold, seed)
    return figures


def row(name: str, figures: dict[str, Any]) -> str:
    """A table's row, with 95 % intervals."""
    shown = [
        "-" if figures[key] is None else "{:.3f} ({:.3f}-{:.3f})".format(*figures[key])
        for key in FIGURES
    ]
    return f"| {name} | {figures['n']} ({figures['supported']}) | {' | '.join(shown)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--read", choices=list(SIGNALS), help="default: as the checkpoint does")
    parser.add_argument("--top-k", type=int, help="default: as many as the checkpoint reads")
    parser.add_argument("--fit", help="a file of questions to calibrate on")
    parser.add_argument("--measure", nargs="*", default=[], help="files that are only measured")
    parser.add_argument("--trained-on", nargs="*", type=Path, default=[], help="passages known")
    parser.add_argument("--questions", type=int, default=500, help="drawn from each file")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the judged answers")
    parser.add_argument("--out", type=Path, help="the support.json, with --fit")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.fit is None) != (args.out is None):
        parser.error("--fit and --out go together")
    files = [*([args.fit] if args.fit else []), *args.measure]
    if len(set(map(stem, files))) < len(files):
        parser.error("two files have one name")
    loaded = load(LoadOptions(args.model, device="cpu", dtype="float32", only_reads=True))
    read = args.read or loaded.info.reading.mode
    top_k = args.top_k or loaded.info.reading.passages_of(read)
    how = AskOptions(top_k=top_k, max_new_tokens=16, read=read)
    cases = {stem(file): judged_file(loaded, file, how, args) for file in files}
    unseen = {
        name: rows
        for file in args.measure
        for name, rows in measured_sets(cases[stem(file)], stem(file)).items()
    }
    if args.fit is None:
        figures = own_figures(loaded, read, unseen, args.seed)
    else:
        fits, summary = fit_and_measure(cases[stem(args.fit)], SIGNALS[read], unseen, args.seed)
        summary["top_k"], figures = top_k, summary["figures"]
        before = json.loads(args.out.read_text()) if args.out.is_file() else {}
        written = calibrated(loaded.info.fingerprint, read, fits, summary, before)
        args.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(
        "| answers | n (supported) | AUROC | ECE | precision | recall |", "|---" * 6 + "|", sep="\n"
    )
    for name, values in figures.items():
        print(row(name, values))


if __name__ == "__main__":
    main()
