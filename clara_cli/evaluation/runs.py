"""Rows of a comparison answered question by question, and the folder that keeps what they said.

A line of predictions.jsonl is one answer; measures.jsonl holds its counts and times at the same
line. Both are cut back to whole questions when a run goes on, so that a resumed run's predictions
are those of an uninterrupted one. Knows nothing of scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara_cli.corpus.files import locked, make_folder, write_atomic
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.pools import Case
from clara_cli.evaluation.systems import System
from clara_cli.records import Progress, Report

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

    @property
    def ratio(self) -> int | None:
        """Text tokens per memory token, None where nothing is compressed or read."""
        return None if self.control == "none" else self.system.ratio


@dataclass
class Answered:
    """Lines of predictions and of measures, in step."""

    predictions: list[Line] = field(default_factory=list)
    measures: list[Line] = field(default_factory=list)

    def of(self, row: Row) -> tuple[list[Line], list[Line]]:
        """The lines of one row, in the order of its questions."""
        key = (row.name, row.ratio)
        pairs = zip(self.predictions, self.measures, strict=True)
        kept = [(p, m) for p, m in pairs if (p["system"], p["ratio"]) == key]
        return [p for p, _ in kept], [m for _, m in kept]


def answer_all(
    rows: Sequence[Row],
    case_of: Callable[[int], Case],
    ids: Sequence[str],
    folder: Path | None,
    settings: Mapping[str, Any],
    report: Report,
) -> Answered:
    """Every row's answer to every question, in order; goes on where `folder` left off.

    Raises:
        ArtefactError: where the folder holds a run with other settings.
    """
    if folder is None:
        answered = Answered()
        for number in range(len(ids)):
            for prediction, measure in _question(rows, number, case_of):
                answered.predictions.append(prediction)
                answered.measures.append(measure)
            _show(report, number + 1, len(ids))
        return answered
    make_folder(folder)
    with locked(folder):
        return _answer_into(folder, rows, case_of, ids, settings, report)


def _answer_into(
    folder: Path,
    rows: Sequence[Row],
    case_of: Callable[[int], Case],
    ids: Sequence[str],
    settings: Mapping[str, Any],
    report: Report,
) -> Answered:
    _claim(folder, settings)
    answered, done = _resume(folder, rows, ids)
    if done:
        report.note(f"{folder}: {done:,} questions answered before, going on from there")
    with _appending(folder / MEASURES) as measures, _appending(folder / PREDICTIONS) as predictions:
        for number in range(done, len(ids)):
            lines = list(_question(rows, number, case_of))
            measures([measure for _, measure in lines])
            predictions([prediction for prediction, _ in lines])
            answered.predictions += [prediction for prediction, _ in lines]
            answered.measures += [measure for _, measure in lines]
            _show(report, number + 1, len(ids))
    return answered


def _show(report: Report, done: int, total: int) -> None:
    report.progress(Progress("bench", done, total, "questions"))


def _question(
    rows: Sequence[Row], number: int, case_of: Callable[[int], Case]
) -> Iterator[tuple[Line, Line]]:
    """A question's lines, one a row that answers it."""
    plain = case_of(number)
    for row in rows:
        case = plain if row.cases is None else row.cases.get(number)
        if case is None:
            continue
        pool = case.pool if row.system.chooses else case.given
        said = row.system.answer(case.question.question, pool)
        prediction = {
            "system": row.name,
            "ratio": row.ratio,
            "id": case.question.id,
            "question": case.question.question,
            "prediction": said.text,
            "golden_answers": list(case.question.answers),
            "hits": list(said.hits),
            "gold": list(case.gold),
        }
        measure = {
            "context_tokens": said.context_tokens,
            "truncated": said.truncated,
            "seconds": {phase: round(value, 6) for phase, value in said.seconds.items()},
        }
        yield prediction, measure


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


def _resume(folder: Path, rows: Sequence[Row], ids: Sequence[str]) -> tuple[Answered, int]:
    """What whole questions are there, with the files cut back to them; and how many."""
    predictions, measures = (read_lines(folder / name) for name in (PREDICTIONS, MEASURES))
    kept, done = 0, 0
    for number, identifier in enumerate(ids):
        expected = [r for r in rows if r.cases is None or number in r.cases]
        if kept + len(expected) > min(len(predictions), len(measures)):
            break
        for row, line in zip(expected, predictions[kept:], strict=False):
            said = (line.get("system"), line.get("ratio"), line.get("id"))
            if said != (row.name, row.ratio, identifier):
                place = f"{folder / PREDICTIONS}:{predictions.index(line) + 1}"
                what = f"{place}: {said}, expected {(row.name, row.ratio, identifier)}"
                raise ArtefactError(what, "delete the folder and run again")
        kept, done = kept + len(expected), number + 1
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
