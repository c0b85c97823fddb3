"""Where memory beats text: seconds to the first token of the same question over the same passages,
more and more of them, as a share of what reading them as text takes.

Four ways: text; memory compressed before; memory compressed when the question comes; text cut to
memory's budget. Finding the passages is left out: all have it before them. Rounds alternate, the
first warms up, figures are medians; shares only, since seconds are this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from clara_cli.bench_records import BreakEven, BreakEvenPoint
from clara_cli.core.checkpoint import Loaded
from clara_cli.errors import DataError
from clara_cli.evaluation.extractive import Extractive, PoolPicker
from clara_cli.evaluation.paragraphs import Case, Piece, Pool
from clara_cli.evaluation.passage_memories import Memories
from clara_cli.evaluation.speed import synchronise
from clara_cli.evaluation.systems import (
    AllGiven,
    MemorySystem,
    PooledQuestion,
    Prediction,
    Reader,
    System,
    TextSystem,
)
from clara_cli.records import Progress, Report

PASSAGES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5
CACHED, WHEN_ASKED = "memory", "memory, compressed when asked"
SHORTENED = "text, extractive"


@dataclass(frozen=True)
class _AnswerMode:
    """One way to answer: a system that writes one token, and what else its seconds take."""

    name: str
    ratio: int | None
    system: System
    before: Callable[[Sequence[Piece]], None] | None = None


def break_even(
    cases: Sequence[Case],
    tokens_by_ratio: Mapping[int, int],
    loaded: Loaded,
    memories: Memories,
    report: Report,
) -> tuple[BreakEven, ...]:
    """Each way's share of text's seconds to the first token, by the number of passages: up to 32,
    or what the data has, or what the window takes as text.

    Raises:
        DataError: for questions that come without passages.
    """
    pieces = distinct_pieces(cases, PASSAGES[-1])
    if not pieces:
        raise DataError("--break-even: no question comes with a passage", "use another --setting")
    question, reader = cases[0].question.question, Reader(loaded, 1)
    text = _AnswerMode("text", None, TextSystem("text", reader, AllGiven()))
    ways = [
        way for ratio, m in tokens_by_ratio.items() for way in _ways(reader, memories, ratio, m)
    ]
    points: dict[tuple[str, int | None], list[BreakEvenPoint]] = {}
    counts = [count for count in PASSAGES if count <= len(pieces)]
    report.progress(Progress("break-even", 0, len(counts), "sizes"))
    for number, count in enumerate(counts, 1):
        passages = pieces[:count]
        measured = _rounds(question, passages, [text, *ways], reader.model.device)
        (reading, base), *others = measured
        if reading.truncated:
            break
        for way, (prediction, seconds) in zip(ways, others, strict=True):
            point = BreakEvenPoint(
                count, reading.context_tokens, prediction.context_tokens, seconds / base
            )
            points.setdefault((way.name, way.ratio), []).append(point)
        report.progress(Progress("break-even", number, len(counts), "sizes"))
    return tuple(
        BreakEven(name, ratio, tuple(own), faster_from(own))
        for (name, ratio), own in points.items()
    )


def distinct_pieces(cases: Sequence[Case], most: int) -> list[Piece]:
    """The first passages that questions come with, each once."""
    pieces: dict[int, Piece] = {}
    for case in cases:
        for piece in case.given.pieces:
            pieces.setdefault(piece.row, piece)
            if len(pieces) == most:
                return list(pieces.values())
    return list(pieces.values())


def faster_from(points: Sequence[BreakEvenPoint]) -> int | None:
    """The text tokens of the smallest size from which on a way is faster than text at every size
    measured; None where it is not at the largest."""
    start = None
    for point in reversed(points):
        if point.share >= 1:
            break
        start = point.text_tokens
    return start


def _ways(reader: Reader, memories: Memories, ratio: int, m: int) -> Iterator[_AnswerMode]:
    system = MemorySystem("scp", reader, memories, m, ratio, AllGiven())

    def compress(pieces: Sequence[Piece]) -> None:
        rows = [reader.prompter.passage(piece.text) for piece in pieces]
        with torch.inference_mode():
            reader.model.encode(rows, "compressor", m)

    yield _AnswerMode(CACHED, ratio, system)
    yield _AnswerMode(WHEN_ASKED, ratio, system, compress)
    shorten = Extractive(m, PASSAGES[-1], reader.prompter.offsets)
    yield _AnswerMode(
        SHORTENED, ratio, TextSystem("extractive", reader, PoolPicker(), shorten, ratio)
    )


def _rounds(
    question: str, pieces: Sequence[Piece], ways: Sequence[_AnswerMode], device: torch.device
) -> list[tuple[Prediction, float]]:
    """Each way's answer of one token, and the median of its seconds."""
    pooled = PooledQuestion(question, Pool(tuple(pieces)))
    seconds: list[list[float]] = [[] for _ in ways]
    predictions: list[Prediction] = []
    for number in range(ROUNDS + 1):
        predictions = []
        for way, own in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            if way.before is not None:
                way.before(pieces)
            (prediction,) = way.system.answer([pooled])
            synchronise(device)
            assert isinstance(prediction, Prediction)  # our own readers answer or raise
            predictions.append(prediction)
            if number:
                own.append(time.perf_counter() - began)
    return [(p, median(own)) for p, own in zip(predictions, seconds, strict=True)]
