"""Support calibrated on the records that a run keeps aside: each question is answered over its own
passages and over those of another question, and a logistic fit learns from the signals which
answers are supported (`answering.calibration`).

K passages, M memory tokens, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.answering.calibration import Case, calibrated, first_half, fit_and_measure
from clara_cli.answering.reading import Prompt, generate
from clara_cli.answering.support import (
    FILE,
    SIGNALS,
    ModelAnswer,
    lexical_share,
    likelihood_signals,
    prompts_without,
    word_signals,
)
from clara_cli.core.batch import AnswerExample
from clara_cli.core.checkpoint_info import ReadMode, read_info
from clara_cli.core.losses import IGNORE
from clara_cli.core.model import ClaraModel
from clara_cli.evaluation.metrics import exact_match, normalise
from clara_cli.records import Report
from clara_cli.storage.files import write_atomic
from clara_cli.training.validation import Example, HeldOutSet

LEAST = 10  # answers of each kind, supported and not, in each half of the questions


@dataclass(frozen=True)
class Control:
    """A question over passages: its own, or another question's (`wrong`); `beside` is a text of
    neither."""

    example: AnswerExample
    answers: tuple[str, ...]
    wrong: bool
    beside: str


def controls(examples: Sequence[Example]) -> list[Control]:
    """Every answered question over its own passages and over the first others, from half way round,
    that hold no accepted answer."""
    answered = [one for one in examples if one.answers and one.given.texts]
    pairs = []
    for number, one in enumerate(answered):
        answers = [" ".join(normalise(answer)) for answer in one.answers]
        others = [
            other
            for step in range(len(answered) - 1)
            if (other := answered[(number + len(answered) // 2 + step) % len(answered)]) is not one
            and not holds(other.given.texts, answers)
        ]
        if len(others) < 2:
            continue
        own: AnswerExample = one.given
        elsewhere = replace(own, texts=others[0].given.texts, golds=(), rows=())
        beside = others[1].given.texts[0]
        pairs += [Control(own, one.answers, False, beside)]
        pairs += [Control(elsewhere, one.answers, True, beside)]
    return pairs


def holds(texts: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether a text has one of these answers, both in lower-case words."""
    words = f" {' '.join(normalise(' '.join(texts)))} "
    return any(f" {answer} " in words for answer in answers if answer)


def read_prompt(held_out: HeldOutSet, example: AnswerExample) -> Prompt | None:
    """What the generator is given for a question; None where that does not fit."""
    batch = held_out.build([example])
    if not batch.rows:
        return None
    memory_ND, _ = held_out.read(batch)
    (row,), (labels,) = batch.rows, batch.labels
    end = next(position for position, label in enumerate(labels) if label != IGNORE)
    return Prompt(row[:end], memory_ND, "generator")


def memory_of(model: ClaraModel, text: str, memory_tokens: int, read: ReadMode) -> Tensor:
    """memory_1MD of a passage; of none where text is read."""
    if read == "text":
        return torch.empty(0, memory_tokens, model.hidden, device=model.device)
    row = model.prompter.passage(text)
    return model.encode_frozen([row], "compressor", memory_tokens).memory_BMD


@torch.no_grad()
def judged_cases(
    model: ClaraModel,
    held_out: HeldOutSet,
    chosen: Sequence[Control],
    read: ReadMode,
    memory_tokens: int,
) -> list[Case]:
    """The answers to controls with their signals; empty answers are left out."""
    prompts = {n: p for n, one in enumerate(chosen) if (p := read_prompt(held_out, one.example))}
    texts = generate(model, list(prompts.values()), held_out.answer_tokens)
    answers = {n: one for n, one in zip(prompts, texts, strict=True) if one.ids and one.text}
    compared = []
    for number, answer in answers.items():
        one = chosen[number]
        other_1MD = memory_of(model, one.beside, memory_tokens, read)
        question = one.example.question
        without = prompts_without(model, question, read, "generator", other_1MD)
        compared.append(ModelAnswer(answer, without))
    cases = []
    for (number, answer), signals in zip(
        answers.items(), likelihood_signals(model, compared), strict=True
    ):
        one = chosen[number]
        question, passages = one.example.question, one.example.texts
        right = not one.wrong and exact_match(answer.text, one.answers) == 1.0
        words = word_signals(question, answer.text, passages)
        share = lexical_share(answer.text, passages)
        cases.append(Case(question, one.wrong, right, signals | words, share))
    return cases


def too_few(cases: Sequence[Case]) -> str | None:
    """Why nothing can be fitted to these answers, None where it can."""
    for half in (True, False):
        kinds = [case.right for case in cases if first_half(case.question) == half]
        for right, name in ((True, "right"), (False, "wrong")):
            if (count := kinds.count(right)) < LEAST:
                return f"{count} of {len(kinds)} answers in a half of them are {name}"
    return None


def calibrate(
    model: ClaraModel,
    held_out: HeldOutSet,
    read: ReadMode,
    memory_tokens: int,
    run: Path,
    report: Report,
) -> None:
    """Write `support.json` into a run's checkpoint, and its figures with the curve over thresholds
    into the run's folder; where too few answers tell, say so."""
    chosen = controls(held_out.examples)
    if not chosen or read not in SIGNALS:
        return
    cases = judged_cases(model, held_out, chosen, read, memory_tokens)
    if reason := too_few(cases):
        report.note(
            f"support stays unjudged: {reason}, {LEAST} are needed; keep more records aside"
        )
        return
    fits, summary = fit_and_measure(cases, SIGNALS[read])
    fingerprint = read_info(run / "checkpoint").fingerprint
    written = calibrated(fingerprint, read, fits, summary)
    write_atomic(run / "checkpoint", FILE, json.dumps(written, indent=2).encode() + b"\n")
    write_atomic(run, FILE, json.dumps({read: summary}, indent=2).encode() + b"\n")
    auroc = summary["figures"]["text"]["auroc"]
    report.note(f"support is calibrated on {len(cases)} answers, AUROC {auroc[0]} of the others")
