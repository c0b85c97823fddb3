"""Calibrates how `clara ask` judges support, on controls, and writes a checkpoint's `support.json`.

    python recipes/nano/support.py CORPUS QUESTIONS [CORPUS QUESTIONS ...] --out support.json

Every question (JSON lines: `question`, `answers`, `gold`: ids of the documents that hold them) is
answered twice: over what the first stage finds, and over what it finds for the question half way
round, none of it gold or holding an accepted answer (bench's control `wrong`). An answer counts as
supported where it was read from the question's own passages and is an accepted answer. Questions
are split in halves by a hash of their words: one fits a logistic regression over the signals and
picks the threshold of the best F1, the other is only measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from clara_cli.answering.answerer import AskOptions, FoundPassages
from clara_cli.answering.engine import Clara
from clara_cli.answering.reading import generate
from clara_cli.answering.support import FORMAT, MEMORY_SIGNALS, TEXT_SIGNALS, VERSION, lexical
from clara_cli.evaluation.metrics import exact_match, normalise

BINS, RESAMPLES, PENALTY = 10, 1000, 1e-2
TOGETHER = 64


@dataclass(frozen=True)
class Case:
    """An answer with its signals, and whether it is supported."""

    question: str
    wrong: bool
    right: bool
    signals: dict[str, float]
    words: float


def cases(clara: Clara, questions: Sequence[dict[str, Any]], how: AskOptions) -> list[Case]:
    """Every question over right and over wrong documents, answers without a word left out."""
    found = clara.find([q["question"] for q in questions], how)
    made = [(q, one, False) for q, one in zip(questions, found, strict=True)]
    made += [
        (q, dataclasses.replace(one, hits=other.hits, memory_KMD=other.memory_KMD), True)
        for number, (q, one) in enumerate(zip(questions, found, strict=True))
        if (other := partner(number, q, found)) is not None
    ]
    made.sort(key=lambda item: len(item[1].hits))
    return [
        case
        for first in range(0, len(made), TOGETHER)
        for case in judged(clara, made[first : first + TOGETHER], how)
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


def judged(
    clara: Clara, made: Sequence[tuple[dict[str, Any], FoundPassages, bool]], how: AskOptions
) -> list[Case]:
    """Answers and their signals."""
    found = [one for _, one, _ in made]
    prompts = [clara.answerer.prompt(one, how) for one in found]
    answers = generate(clara.model, prompts, how.max_new_tokens)
    texts = [answer.text for answer in answers]
    signals = clara.answerer.signals(found, answers)
    return [
        Case(
            q["question"],
            wrong,
            not wrong and exact_match(text, q["answers"]) == 1.0,
            s,
            lexical(text, [hit.passage for hit in one.hits]),
        )
        for (q, one, wrong), text, s in zip(made, texts, signals, strict=True)
        if s
    ]


def fit(rows: Sequence[Case], names: Sequence[str]) -> dict[str, Any]:
    """Logistic regression with a small ridge on standardised signals, by Newton's method; and the
    threshold of the best F1 on the same answers."""
    x_NS = torch.tensor([[row.signals[name] for name in names] for row in rows]).double()
    y_N = torch.tensor([float(row.right) for row in rows]).double()
    mean_S, spread_S = x_NS.mean(0), x_NS.std(0).clamp_min(1e-6)
    z_NS = torch.cat([(x_NS - mean_S) / spread_S, torch.ones(len(rows), 1).double()], dim=1)
    w_S = torch.zeros(z_NS.shape[1]).double()
    ridge_SS = PENALTY * len(rows) * torch.eye(len(w_S)).double()
    ridge_SS[-1, -1] = 0
    for _ in range(50):
        p_N = torch.sigmoid(z_NS @ w_S)
        gradient_S = z_NS.T @ (p_N - y_N) + ridge_SS @ w_S
        hessian_SS = (z_NS * (p_N * (1 - p_N)).unsqueeze(1)).T @ z_NS + ridge_SS
        w_S = w_S - torch.linalg.solve(hessian_SS, gradient_S)
    weights_S = w_S[:-1] / spread_S
    bias = w_S[-1] - (weights_S * mean_S).sum()
    p_N = torch.sigmoid(x_NS @ weights_S + bias)
    threshold = max(p_N.unique().tolist(), key=lambda t: f1(p_N >= t, y_N))
    return {
        "weights": {n: round(w, 6) for n, w in zip(names, weights_S.tolist(), strict=True)},
        "bias": round(float(bias), 6),
        "threshold": round(threshold, 4),
    }


def f1(said_N: Tensor, y_N: Tensor) -> float:
    """Of the verdict `supported`."""
    hit = float((said_N * y_N).sum())
    return 2 * hit / max(float(said_N.sum() + y_N.sum()), 1e-9)


def scores(fitted: dict[str, Any], rows: Sequence[Case]) -> Tensor:
    """What the fit makes of answers."""
    weights = fitted["weights"]
    z = [fitted["bias"] + sum(w * row.signals[n] for n, w in weights.items()) for row in rows]
    return torch.sigmoid(torch.tensor(z).double())


def auroc(p_N: Tensor, y_N: Tensor) -> float:
    """How often a supported answer scores above an unsupported one, ties half."""
    up, down = p_N[y_N == 1], p_N[y_N == 0]
    if not len(up) or not len(down):
        return float("nan")
    above = (up[:, None] > down).double() + 0.5 * (up[:, None] == down).double()
    return float(above.mean())


def ece(p_N: Tensor, y_N: Tensor) -> float:
    """Expected calibration error over ten bins of equal width."""
    bins_N = (p_N * BINS).long().clamp_max(BINS - 1)
    gaps = [
        float((bins_N == b).sum()) / len(p_N) * float((p_N - y_N)[bins_N == b].mean().abs())
        for b in bins_N.unique().tolist()
    ]
    return sum(gaps)


def precision(p_N: Tensor, y_N: Tensor, threshold: float) -> float:
    """Of those said to be supported, how many are."""
    said_N = p_N >= threshold
    return float(y_N[said_N].mean()) if bool(said_N.any()) else float("nan")


def recall(p_N: Tensor, y_N: Tensor, threshold: float) -> float:
    """Of those supported, how many are said to be."""
    return float((p_N >= threshold)[y_N == 1].double().mean()) if bool(y_N.any()) else float("nan")


def measure(p_N: Tensor, rows: Sequence[Case], threshold: float, seed: int) -> dict[str, Any]:
    """Each figure with its 95 % bootstrap interval over answers."""
    y_N = torch.tensor([float(row.right) for row in rows]).double()
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(len(rows), (len(rows),), generator=generator) for _ in range(RESAMPLES)]
    ways: dict[str, Callable[[Tensor, Tensor], float]] = {
        "auroc": auroc,
        "ece": ece,
        "precision": lambda p, y: precision(p, y, threshold),
        "recall": lambda p, y: recall(p, y, threshold),
    }
    made: dict[str, Any] = {"n": len(rows), "supported": int(y_N.sum())}
    for name, way in ways.items():
        drawn = torch.tensor([way(p_N[d], y_N[d]) for d in draws]).double()
        low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975]).double()).tolist()
        values = (way(p_N, y_N), low, high)
        made[name] = None if values[0] != values[0] else [round(value, 3) for value in values]
    return made


def curve(p_N: Tensor, rows: Sequence[Case]) -> list[dict[str, Any]]:
    """Of how many answers the verdict says supported at other thresholds, and its precision and
    recall with their 95 % Wilson intervals."""
    right_N = torch.tensor([row.right for row in rows])
    found = []
    for tenths in range(1, BINS):
        said_N = p_N >= tenths / BINS
        said, hits = int(said_N.sum()), int((said_N & right_N).sum())
        shown = {"precision": share(hits, said), "recall": share(hits, int(right_N.sum()))}
        found.append({"threshold": tenths / BINS, "said": said, **shown})
    return found


def share(hits: int, number: int) -> list[float] | None:
    """A share with its 95 % Wilson interval; None of nothing."""
    if not number:
        return None
    interval = binomtest(hits, number).proportion_ci(method="wilson")
    return [round(float(value), 3) for value in (hits / number, interval.low, interval.high)]


def first_half(case: Case) -> bool:
    """Which half a question's answers belong to."""
    return hashlib.sha256(case.question.encode()).digest()[0] % 2 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", help="corpus and questions, in turn")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    how = AskOptions(top_k=args.top_k, max_new_tokens=16)
    by_set: dict[str, list[Case]] = {}
    for corpus, file in zip(args.sets[::2], args.sets[1::2], strict=True):
        clara = Clara.open(corpus, model=args.model, device="cpu", dtype="float32")
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        by_set[Path(file).stem] = cases(clara, [json.loads(line) for line in lines], how)
    everything = [case for made in by_set.values() for case in made]
    train = [case for case in everything if first_half(case)]
    test = [case for case in everything if not first_half(case)]
    fits = {"text": fit(train, TEXT_SIGNALS), "memory": fit(train, MEMORY_SIGNALS)}
    measured = {}
    for name, fitted in fits.items():
        measured[name] = measure(scores(fitted, test), test, fitted["threshold"], args.seed)
    words_N = torch.tensor([case.words for case in test]).double()
    measured["words alone"] = measure(words_N, test, 0.75, args.seed)
    for name, made in by_set.items():
        rows = [case for case in made if not first_half(case)]
        p_N = scores(fits["text"], rows)
        measured[f"text, {name}"] = measure(p_N, rows, fits["text"]["threshold"], args.seed)
    told = {
        "top_k": args.top_k,
        "train": len(train),
        "figures": measured,
        "curve": curve(scores(fits["text"], test), test),
    }
    calibration = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": clara.loaded.info.fingerprint,
        **fits,
        "measured": told,
    }
    args.out.write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    json.dump(told, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
