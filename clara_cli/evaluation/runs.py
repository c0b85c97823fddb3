"""Rows of a comparison answered batch by batch, and the folder that keeps what they said.

A line of predictions.jsonl is one answer; measures.jsonl holds its counts and times at the same
line. Questions are answered in batches that follow from their positions alone, and both files are
cut back to whole batches when a run goes on, so that a resumed run's predictions are those of an
uninterrupted one. A question for which a system's memory did not suffice has no prediction (null):
that is no wrong answer. Knows nothing of scores.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clara_cli.core.ranks import Ranks
from clara_cli.corpus.files import locked, make_folder, write_atomic
from clara_cli.errors import ArtefactError, is_out_of_memory
from clara_cli.evaluation.pools import Case
from clara_cli.evaluation.systems import Asked, Prediction, System
from clara_cli.records import Progress, Report

BATCH = 8  # questions answered together: those at positions 0-7, 8-15, ... of the data set
PREDICTIONS, MEASURES, SETTINGS = "predictions.jsonl", "measures.jsonl", "bench.json"
Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One system at one ratio; `control` names what was done to the documents. `cases` holds the
    questions it answers, None: all of them as they are."""

    system: System
    control: str = ""
    cases: Mapping[int, Case] | None = None

    @property
    def name(self) -> str:
        """As shown: the system, then its control."""
        return f"{self.system.name}/{self.control}" if self.control else self.system.name

    def case(self, number: int, cases: Sequence[Case]) -> Case | None:
        """What it answers of the n-th question; None where it does not."""
        return cases[number] if self.cases is None else self.cases.get(number)

    @property
    def ratio(self) -> int | None:
        """Text tokens per memory token, None where nothing is compressed or read."""
        return None if self.control == "none" else self.system.ratio


@dataclass
class Answered:
    """Lines of predictions and of measures, in step."""

    predictions: list[Line] = field(default_factory=list)
    measures: list[Line] = field(default_factory=list)

    def add(self, lines: Sequence[tuple[Line, Line]]) -> None:
        """Keep further (prediction, measure) pairs."""
        self.predictions += [prediction for prediction, _ in lines]
        self.measures += [measure for _, measure in lines]

    def of(self, row: Row) -> tuple[list[Line], list[Line]]:
        """The lines of one row, in the order of its questions."""
        key = (row.name, row.ratio)
        pairs = zip(self.predictions, self.measures, strict=True)
        kept = [(p, m) for p, m in pairs if (p["system"], p["ratio"]) == key]
        return [p for p, _ in kept], [m for _, m in kept]


def answer_all(
    rows: Sequence[Row],
    cases: Sequence[Case],
    folder: Path | None,
    settings: Mapping[str, Any],
    ranks: Ranks,
    report: Report,
) -> Answered:
    """Every row's answer to every question, in order; goes on where `folder` left off. Several
    processes take the batches in turn; the first one has, and writes, all that they say.

    Raises:
        ArtefactError: where the folder holds a run with other settings.
    """
    answered, keep = Answered(), contextlib.ExitStack()
    with keep:
        write = None
        if folder is not None and ranks.first:
            make_folder(folder)
            keep.enter_context(locked(folder))

        def begin() -> int:
            if folder is None:
                return 0
            _claim(folder, settings)
            found, done = _resume(folder, rows, cases)
            answered.predictions, answered.measures = found.predictions, found.measures
            return done

        done = ranks.lead(begin)
        if folder is not None and ranks.first:
            write = keep.enter_context(_writing(folder))
            if done:
                report.note(f"{folder}: {done:,} questions answered before, going on from there")
        for first in range(done, len(cases), BATCH * ranks.size):
            own = list(_batch(rows, cases, first + BATCH * ranks.rank))
            lines = [line for part in ranks.gathered(own) for line in part]
            if write is not None:
                write(lines)
            answered.add(lines)
            _show(report, first + BATCH * (ranks.size - 1), len(cases))
    return answered


@contextmanager
def _writing(folder: Path) -> Iterator[Callable[[Sequence[tuple[Line, Line]]], None]]:
    """Append (prediction, measure) pairs to the folder's two files."""
    with _appending(folder / MEASURES) as measures, _appending(folder / PREDICTIONS) as predictions:

        def write(lines: Sequence[tuple[Line, Line]]) -> None:
            measures([measure for _, measure in lines])
            predictions([prediction for prediction, _ in lines])

        yield write


def _show(report: Report, first: int, total: int) -> None:
    report.progress(Progress("bench", min(first + BATCH, total), total, "questions"))


def _batch(rows: Sequence[Row], cases: Sequence[Case], first: int) -> Iterator[tuple[Line, Line]]:
    """The lines of the questions from `first` on, question by question, one a row that answers
    it."""
    numbers = range(first, min(first + BATCH, len(cases)))
    said: dict[tuple[int, int], tuple[Line, Line]] = {}
    for place, row in enumerate(rows):
        own = {n: case for n in numbers if (case := row.case(n, cases)) is not None}
        answers = _answers(row.system, list(own.values()))
        for (number, case), answer in zip(own.items(), answers, strict=True):
            said[number, place] = _prediction(row, case, answer), _measure(answer)
    for key in sorted(said):
        yield said[key]


def _answers(system: System, cases: Sequence[Case]) -> list[Prediction | None]:
    """A system's answers; one by one where memory does not suffice for all together, and None
    where it does not suffice for one."""
    if not cases:
        return []
    batch = [Asked(c.question.question, c.pool if system.chooses else c.given) for c in cases]
    try:
        return list(system.answer(batch))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(cases) == 1:
        return [None]
    return [answer for case in cases for answer in _answers(system, [case])]


def _prediction(row: Row, case: Case, said: Prediction | None) -> Line:
    return {
        "system": row.name,
        "ratio": row.ratio,
        "id": case.question.id,
        "question": case.question.question,
        "prediction": None if said is None else said.text,
        "golden_answers": list(case.question.answers),
        "hits": [] if said is None else list(said.hits),
        "gold": list(case.gold),
    }


def _measure(said: Prediction | None) -> Line:
    if said is None:
        return {"out_of_memory": True}
    seconds = {phase: round(value, 6) for phase, value in said.seconds.items()}
    return {
        "context_tokens": said.context_tokens,
        "truncated": said.truncated,
        "seconds": seconds,
    }


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the run's settings, or refuse a folder of others, naming the first difference."""
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(settings))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(f"{path}: not JSON: {error}", "choose another --out") from error
        keys = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        if keys:
            was, now = (repr(s.get(keys[0]))[:60] for s in (found, wanted))
            what = f"{folder} holds a run with other settings: {keys[0]} is {was} there, {now} here"
            raise ArtefactError(what, "choose another --out, or delete it first")
        return
    others = [name for name in (PREDICTIONS, MEASURES) if (folder / name).exists()]
    if others:
        what = f"{folder}: has {others[0]} but no {SETTINGS}"
        raise ArtefactError(what, "choose another --out, or delete it first")
    write_atomic(path, (json.dumps(wanted, indent=2) + "\n").encode())


def _resume(folder: Path, rows: Sequence[Row], cases: Sequence[Case]) -> tuple[Answered, int]:
    """What whole batches of questions are there, with the files cut back to them; and how many
    questions that is."""
    predictions, measures = (read_lines(folder / name) for name in (PREDICTIONS, MEASURES))
    kept, done = 0, 0
    for first in range(0, len(cases), BATCH):
        last = min(first + BATCH, len(cases))
        expected = [
            (row.name, row.ratio, case.question.id)
            for number in range(first, last)
            for row in rows
            if (case := row.case(number, cases)) is not None
        ]
        if kept + len(expected) > min(len(predictions), len(measures)):
            break
        for place, wanted in enumerate(expected, kept):
            said = tuple(predictions[place].get(key) for key in ("system", "ratio", "id"))
            if said != wanted:
                what = f"{folder / PREDICTIONS}:{place + 1}: {said}, expected {wanted}"
                raise ArtefactError(what, "delete the folder and run again")
        kept, done = kept + len(expected), last
    answered = Answered(predictions[:kept], measures[:kept])
    for name, lines, found in (
        (PREDICTIONS, answered.predictions, len(predictions)),
        (MEASURES, answered.measures, len(measures)),
    ):
        whole = (folder / name).exists() and (folder / name).read_bytes().endswith(b"\n")
        if found > kept or not whole:
            write_atomic(folder / name, b"".join(map(encode, lines)))
    return answered, done


def read_lines(path: Path) -> list[Line]:
    """The whole lines of a file that may end in the middle of one."""
    if not path.exists():
        return []
    lines: list[Line] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(raw)
        except (UnicodeDecodeError, ValueError) as error:
            raise ArtefactError(f"{path}:{number}: {error}", "delete it and run again") from error
        if not isinstance(line, dict):
            raise ArtefactError(f"{path}:{number}: not an object", "delete it and run again")
        lines.append(line)
    return lines


def encode(line: Line) -> bytes:
    """A JSON line; letters as they are wherever UTF-8 has them."""
    try:
        return (json.dumps(line, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate in the data
        return (json.dumps(line) + "\n").encode()


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[list[Line]], None]]:
    with path.open("ab") as stream:

        def append(lines: list[Line]) -> None:
            stream.write(b"".join(map(encode, lines)))
            stream.flush()
            os.fsync(stream.fileno())

        yield append
