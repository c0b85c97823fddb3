"""The figures of a run: what was believed and what was not, by kind, round, gate and reason, tokens
and cost, some pairs to judge by.

Reads a journal's counts; knows nothing of how they came about.
"""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from clara_cli.records import SynthResult
from clara_cli.storage.history import History
from clara_cli.synthesis.journal import Journal

SAMPLES, SAMPLED_LINES = 3, 2_000
DAMAGED = "restore the file, or start again with another --out"


def under(counts: dict[str, float], prefix: str) -> dict[str, int]:
    """The counts under a prefix, by what follows it."""
    counted = {k.removeprefix(prefix): int(n) for k, n in counts.items() if k.startswith(prefix)}
    return dict(sorted(counted.items()))


def cost(counts: dict[str, float], prompt_price: float, reply_price: float) -> float | None:
    """What the tokens cost at prices for a million, None where no price is set."""
    if not (prompt_price or reply_price):
        return None
    read, wrote = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    return (read * prompt_price + wrote * reply_price) / 1e6


def result(
    journal: Journal, kinds: tuple[str, ...], prices: tuple[float, float], seed: int
) -> SynthResult:
    """The command's record, over all runs that made the file."""
    counts = journal.counts
    accepted, rejected = under(counts, "accepted."), under(counts, "rejected.")
    covered = counts.get("covered", 0)
    return SynthResult(
        pairs=str(journal.out),
        accepted=sum(accepted.values()),
        rejected=sum(rejected.values()),
        passages=int(counts.get("passages", 0)),
        rounds=journal.rounds,
        tokens=int(counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)),
        seconds=round(journal.seconds, 3),
        kinds={kind: (accepted.get(kind, 0), rejected.get(kind, 0)) for kind in kinds},
        reasons=under(counts, "reason."),
        dropped=under(counts, "dropped."),
        coverage=round(counts["coverage"] / covered, 4) if covered else None,
        cost=cost(counts, *prices),
        samples=sample(journal.out, seed),
    )


def sample(out: Path, seed: int) -> tuple[tuple[str, str], ...]:
    """Some accepted pairs, for a person to judge by. Raises ArtefactError for a line that is no
    pair."""
    pairs: list[tuple[str, str]] = []
    for fields in islice(History(out.parent, out.name, DAMAGED).lines(), SAMPLED_LINES):
        question = fields.values.get("question")
        texts = [question] if isinstance(question, str) else fields.list_of("question", str)
        answers = fields.list_of("answers", str)
        if len(answers) != max(1, len(texts)):
            raise fields.wrong("answers", f"{len(answers)} to {len(texts)} questions")
        pairs += zip(texts or ["(paraphrase)"], answers, strict=True)
    return tuple(random.Random(seed).sample(pairs, min(SAMPLES, len(pairs))))


def summary(journal: Journal, result: SynthResult, settings: dict[str, Any]) -> str:
    """Everything counted, as the JSON kept beside the output."""
    counts = journal.counts
    numbers = sorted({int(k.split(".")[1]) for k in counts if k.startswith("round.")})
    by_round = [{"round": n} | under(counts, f"round.{n}.") for n in numbers]
    record = {
        "settings": settings,
        **dataclasses.asdict(result),
        "by_round": by_round,
        "gates": under(counts, "gate."),
        "malformed_replies": under(counts, "malformed."),
        "repaired": int(counts.get("repaired", 0)),
        "requests": int(counts.get("requests", 0)),
        "prompt_tokens": int(counts.get("prompt_tokens", 0)),
        "completion_tokens": int(counts.get("completion_tokens", 0)),
    }
    return json.dumps(record, ensure_ascii=False, indent=2) + "\n"
