"""What `synth` wrote as a terminal shows it: how much of each kind was believed, why the rest was
not, and some pairs, so that a person can judge before training on them. Knows
records only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clara_cli.printable import shell_word
from clara_cli.records import SynthResult

POOLED = ("e2e", "instruct")
SHOWN = 160  # characters of a sample


def _synth_lines(r: SynthResult, only: str | None) -> list[str]:
    total = r.accepted + r.rejected
    share = f" ({r.accepted / total:.0%})" if total else ""
    counts = (
        f"{r.accepted:,} accepted{share}, {r.rejected:,} rejected, from {r.passages:,} passages"
    )
    lines = [f"{r.pairs}: {counts}"]
    for kind, (accepted, rejected) in r.kinds.items():
        lines.append(f"  {kind}: {accepted:,} accepted, {rejected:,} rejected")
    lines += [f"rejected for: {_counts(r.reasons)}"] if r.reasons else []
    lines += [f"passages dropped for: {_counts(r.dropped)}"] if r.dropped else []
    covered = "" if r.coverage is None else f"; mean coverage {r.coverage:.2f}"
    spent = "" if r.cost is None else f", cost {r.cost:,.2f}"
    speed = f"{r.tokens:,} tokens{spent} in {r.seconds:,.1f} s"
    lines.append(f"{speed}; up to {r.rounds} rounds a passage{covered}")
    for question, answer in r.samples:
        lines.append(f"  {_short(question)}\n    -> {_short(answer)}")
    return [*lines, _next(r)]


def _next(r: SynthResult) -> str:
    place = shell_word(r.pairs)
    if not r.accepted:
        return "next: try another --llm; the rejected file says why each was rejected"
    pooled = next((kind for kind in POOLED if kind in r.kinds), None)
    if pooled is not None:
        return f"next: clara train {place} --stage {pooled}, with --init and --out"
    return f"next: clara pretrain {place}, with --backbone and --out"


def _counts(found: dict[str, int]) -> str:
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ranked)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


LINES: dict[type, Callable[[Any, str | None], list[Any]]] = {SynthResult: _synth_lines}
