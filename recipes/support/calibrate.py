"""Calibrates how `clara ask` judges support, on controls, and writes a checkpoint's `support.json`.

    python recipes/support/calibrate.py CORPUS QUESTIONS [CORPUS QUESTIONS ...] --out support.json

Every question (JSON lines: `question`, `answers`, `gold`: ids of the documents that hold them) is
answered twice: over what the first stage finds, and over what it finds for the question half way
round, none of it gold or holding an accepted answer (bench's control `wrong`). An answer counts as
supported where it was read from the question's own passages and is an accepted answer. Questions
are split in halves by a hash of their words: one fits a logistic regression over the signals and
picks the threshold of the best F1, the other is only measured, and so are the sets of `--measure`.
A calibration is of one way of reading; those of others that `--out` has already are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_cli.answering.answerer import Answerer, AskOptions, FoundPassages
from clara_cli.answering.calibration import Case, calibrated, first_half, fit_and_measure
from clara_cli.answering.engine import Clara
from clara_cli.answering.reading import generate
from clara_cli.answering.support import SIGNALS, lexical
from clara_cli.evaluation.metrics import exact_match, normalise

TOGETHER = 64


Control = tuple[dict[str, Any], FoundPassages, bool]  # a question, passages, whether wrong ones


def controls(questions: Sequence[dict[str, Any]], found: Sequence[FoundPassages]) -> list[Control]:
    """Every question over the passages found for it and over wrong ones, those with few first."""
    pairs = [(q, one, False) for q, one in zip(questions, found, strict=True)]
    pairs += [
        (q, dataclasses.replace(one, hits=other.hits, memory_KMD=other.memory_KMD), True)
        for number, (q, one) in enumerate(zip(questions, found, strict=True))
        if (other := partner(number, q, found)) is not None
    ]
    return sorted(pairs, key=lambda pair: len(pair[1].hits))


def cases(clara: Clara, questions: Sequence[dict[str, Any]], how: AskOptions) -> list[Case]:
    """The answers to controls, those without a word left out."""
    chosen = controls(questions, clara.find([q["question"] for q in questions], how))
    return [
        case
        for first in range(0, len(chosen), TOGETHER)
        for case in judged(clara.answerer, chosen[first : first + TOGETHER], how)
    ]


def partner(
    number: int, question: dict[str, Any], found: Sequence[FoundPassages]
) -> FoundPassages | None:
    """The passages of the first question from half way round that cannot help."""
    gold = set(question["gold"])
    answers = [" ".join(normalise(answer)) for answer in question["answers"]]
    for step in range(len(found)):
        other = found[(number + len(found) // 2 + step) % len(found)]
        passages = [hit.passage for hit in other.hits]
        text = " ".join(normalise(" ".join(f"{p.title} {p.text}" for p in passages)))
        helps = any(f" {answer} " in f" {text} " for answer in answers if answer)
        if passages and not helps and not gold & {p.document_id for p in passages}:
            return other
    return None


def judged(answerer: Answerer, chosen: Sequence[Control], how: AskOptions) -> list[Case]:
    """Answers and their signals."""
    found = [one for _, one, _ in chosen]
    prompts = [answerer.prompt(one, how) for one in found]
    answers = generate(answerer.model, prompts, how.max_new_tokens)
    texts = [answer.text for answer in answers]
    signals = answerer.signals(found, answers, how.read)
    return [
        Case(
            q["question"],
            wrong,
            not wrong and exact_match(text, q["answers"]) == 1.0,
            s,
            lexical(text, [hit.passage for hit in one.hits]),
        )
        for (q, one, wrong), text, s in zip(chosen, texts, signals, strict=True)
        if s
    ]


def read_sets(args: argparse.Namespace, files: Sequence[str]) -> dict[str, list[Case]]:
    """The judged answers of corpora and questions given in turn, by the questions' name."""
    options = AskOptions(top_k=args.top_k, max_new_tokens=16, read=args.read)
    by_set: dict[str, list[Case]] = {}
    for corpus, file in zip(files[::2], files[1::2], strict=True):
        clara = Clara.open(corpus, model=args.model, device="cpu", dtype="float32")
        lines = Path(file).read_text(encoding="utf-8").splitlines()[: args.limit]
        by_set[Path(file).stem] = cases(clara, [json.loads(line) for line in lines], options)
    return by_set


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", help="corpus and questions, in turn")
    parser.add_argument("--measure", nargs="*", default=[], help="the same, only measured")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--read", choices=list(SIGNALS), default="memory")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--limit", type=int, help="questions of each file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    by_set, unseen = read_sets(args, args.sets), read_sets(args, args.measure)
    everything = [case for rows in by_set.values() for case in rows]
    halves = {
        name: [case for case in rows if not first_half(case.question)]
        for name, rows in by_set.items()
    }
    seen = SIGNALS[args.read]
    fits, summary = fit_and_measure(everything, seen, {**halves, **unseen}, args.seed)
    summary["top_k"] = args.top_k
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    fingerprint = Clara.open(args.sets[0], model=args.model).loaded.info.fingerprint
    calibration = calibrated(fingerprint, args.read, fits, summary, before)
    args.out.write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    json.dump(summary, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
