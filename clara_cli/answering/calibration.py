"""What turns the signals of answers into support: a logistic fit on answers that are known to be
right or wrong, and how good it is on others.

N answers, S signals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from clara_cli.answering.support import FORMAT, VERSION

BINS, RESAMPLES, PENALTY = 10, 1000, 1e-2


@dataclass(frozen=True)
class Case:
    """An answer with its signals, and whether it is supported."""

    question: str
    wrong: bool
    right: bool
    signals: dict[str, float]
    words: float


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
    points = []
    for tenths in range(1, BINS):
        said_N = p_N >= tenths / BINS
        said, hits = int(said_N.sum()), int((said_N & right_N).sum())
        shown = {"precision": share(hits, said), "recall": share(hits, int(right_N.sum()))}
        points.append({"threshold": tenths / BINS, "said": said, **shown})
    return points


def share(hits: int, number: int) -> list[float] | None:
    """A share with its 95 % Wilson interval; None of nothing."""
    if not number:
        return None
    interval = binomtest(hits, number).proportion_ci(method="wilson")
    return [round(float(value), 3) for value in (hits / number, interval.low, interval.high)]


def first_half(question: str) -> bool:
    """Which half a question's answers belong to: the one fitted, or the one measured."""
    return hashlib.sha256(question.encode()).digest()[0] % 2 == 0


def fit_and_measure(
    cases: Sequence[Case],
    signals: Mapping[str, Sequence[str]],
    unseen: Mapping[str, Sequence[Case]] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fits by name, summary): each fit of its signals on one half of the questions, its figures on
    the other half and on `unseen` sets, and the curve of `text` over thresholds."""
    train = [case for case in cases if first_half(case.question)]
    test = [case for case in cases if not first_half(case.question)]
    fits = {name: fit(train, names) for name, names in signals.items()}
    figures = {
        name: measure(scores(fitted, test), test, fitted["threshold"], seed)
        for name, fitted in fits.items()
    }
    words_N = torch.tensor([case.words for case in test]).double()
    figures["words alone"] = measure(words_N, test, 0.75, seed)
    for name, rows in (unseen or {}).items():
        p_N = scores(fits["text"], rows)
        figures[f"text, {name}"] = measure(p_N, rows, fits["text"]["threshold"], seed)
    summary = {
        "train": len(train),
        "figures": figures,
        "curve": curve(scores(fits["text"], test), test),
    }
    return fits, summary


def calibrated(
    fingerprint: str,
    read: str,
    fits: Mapping[str, Any],
    summary: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `support.json` says, those of other ways of reading kept from `before`."""
    kept = before or {}
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "modes": {**kept.get("modes", {}), read: dict(fits)},
        "measured": {**kept.get("measured", {}), read: dict(summary)},
    }
