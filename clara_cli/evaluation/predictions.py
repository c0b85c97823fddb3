"""Rows of a comparison answered batch by batch, and the folder that keeps what they said.

A line of predictions.jsonl is one answer; measures.jsonl holds its counts and times at the same
line. Questions are answered in batches that follow from their positions alone, and both files are
cut back to whole batches when a run goes on, so that a resumed run's predictions are those of an
uninterrupted one. A question a system could not answer has no prediction (null), and its line of
measures says why: that is no wrong answer. Where the reason may pass (a server away, an extra
missing; not memory), a run that goes on asks again. Knows nothing of scores.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import ArtefactError, is_out_of_memory
from clara_cli.evaluation.paragraphs import Case
from clara_cli.evaluation.systems import PHASES, Failure, PooledQuestion, Prediction, System
from clara_cli.records import Progress, Report
from clara_cli.storage.artefact import Fields, read_object, refuse_difference
from clara_cli.storage.files import make_folder, write_atomic
from clara_cli.storage.history import History, encode_line
from clara_cli.storage.lock import locked

BATCH = 8  # questions answered together: those at positions 0-7, 8-15, ... of the data set
PREDICTIONS, MEASURES, SETTINGS = "predictions.jsonl", "measures.jsonl", "bench.json"
_ANEW = "delete the folder and run again"
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
class AnsweredRows:
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
) -> AnsweredRows:
    """Every row's answer to every question, in order; goes on where `folder` left off. Several
    processes take the batches in turn; the first one has, and writes, all that they say.

    Raises:
        ArtefactError: where the folder holds a run with other settings.
    """
    answered, keep = AnsweredRows(), contextlib.ExitStack()
    with keep:
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
        if folder is not None:
            _ask_again(answered, rows, cases, done, folder, ranks)
            if ranks.first and done:
                report.note(f"{folder}: {done:,} questions answered before, going on from there")
        _show(report, min(done, len(cases)), len(cases))
        for first in range(done, len(cases), BATCH * ranks.size):
            own = list(_batch(rows, cases, first + BATCH * ranks.rank))
            lines = [line for part in ranks.gathered(own) for line in part]
            if folder is not None and ranks.first:  # the predictions last: they count
                _history(folder, MEASURES).append(measure for _, measure in lines)
                _history(folder, PREDICTIONS).append(prediction for prediction, _ in lines)
            answered.add(lines)
            _show(report, min(first + BATCH * ranks.size, len(cases)), len(cases))
    return answered


def _ask_again(
    answered: AnsweredRows,
    rows: Sequence[Row],
    cases: Sequence[Case],
    done: int,
    folder: Path,
    ranks: Ranks,
) -> None:
    """Answer the failures among the first `done` questions again, a system's batch as a whole, so
    that its answers are those of a run without failures."""
    order = list(_order(rows, cases, range(done)))
    failed = ranks.lead(
        lambda: sorted(
            {
                (number // BATCH, place)
                for (number, place), measure in zip(order, answered.measures, strict=True)
                if "error" in measure
            }
        )
    )
    lines_at = {key: line for line, key in enumerate(order)}
    for first in range(0, len(failed), ranks.size):
        own = failed[first + ranks.rank : first + ranks.rank + 1]
        again = [
            ((number, place), lines)
            for batch, place in own
            for number, lines in _row_batch(rows[place], cases, batch * BATCH)
        ]
        for key, (prediction, measure) in (pair for part in ranks.gathered(again) for pair in part):
            if ranks.first:
                answered.predictions[lines_at[key]] = prediction
                answered.measures[lines_at[key]] = measure
        if ranks.first:
            _rewrite(folder, answered)


def _show(report: Report, done: int, total: int) -> None:
    report.progress(Progress("bench", done, total, "questions"))


def _batch(rows: Sequence[Row], cases: Sequence[Case], first: int) -> Iterator[tuple[Line, Line]]:
    """The lines of the questions from `first` on, question by question, one a row that answers
    it."""
    replies = {
        (number, place): lines
        for place, row in enumerate(rows)
        for number, lines in _row_batch(row, cases, first)
    }
    for key in sorted(replies):
        yield replies[key]


def _row_batch(
    row: Row, cases: Sequence[Case], first: int
) -> Iterator[tuple[int, tuple[Line, Line]]]:
    """One row's lines of the questions from `first` on, with their numbers."""
    numbers = range(first, min(first + BATCH, len(cases)))
    own = {n: case for n in numbers if (case := row.case(n, cases)) is not None}
    answers = _answers(row.system, list(own.values()))
    for (number, case), answer in zip(own.items(), answers, strict=True):
        yield number, (_prediction(row, case, answer), _measure(answer))


def _order(
    rows: Sequence[Row], cases: Sequence[Case], numbers: Iterable[int]
) -> Iterator[tuple[int, int]]:
    """(question, row) of each line, in the order of the files."""
    for number in numbers:
        for place, row in enumerate(rows):
            if row.case(number, cases) is not None:
                yield number, place


def _answers(system: System, cases: Sequence[Case]) -> list[Prediction | Failure]:
    """A system's answers; one by one where memory does not suffice for all together, and a failure
    where it does not suffice for one."""
    if not cases:
        return []
    batch = [
        PooledQuestion(c.question.question, c.pool if system.chooses else c.given) for c in cases
    ]
    try:
        return list(system.answer(batch))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(cases) == 1:
        return [Failure("out of memory", out_of_memory=True)]
    return [answer for case in cases for answer in _answers(system, [case])]


def _prediction(row: Row, case: Case, answer: Prediction | Failure) -> Line:
    text, hits = (answer.text, answer.hits) if isinstance(answer, Prediction) else (None, ())
    return {
        "system": row.name,
        "ratio": row.ratio,
        "id": case.question.id,
        "question": case.question.question,
        "prediction": text,
        "golden_answers": list(case.question.answers),
        "hits": list(hits),
        "gold": list(case.gold),
    }


def _measure(answer: Prediction | Failure) -> Line:
    if isinstance(answer, Failure):
        return {"out_of_memory": True} if answer.out_of_memory else {"error": answer.error}
    seconds = {phase: round(value, 6) for phase, value in answer.seconds.items()}
    replaced = {} if answer.text_tokens is None else {"text_tokens": answer.text_tokens}
    return {
        "context_tokens": answer.context_tokens,
        **replaced,
        "truncated": answer.truncated,
        "seconds": seconds,
    }


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the run's settings, or refuse a folder of others, naming the first difference."""
    hint = "choose another --out, or delete it first"
    begun = read_object(folder / SETTINGS, hint)
    if begun is not None:
        refuse_difference(folder, begun.values, settings, hint)
        return
    others = [name for name in (PREDICTIONS, MEASURES) if (folder / name).exists()]
    if others:
        raise ArtefactError(f"{folder}: has {others[0]} but no {SETTINGS}", hint)
    write_atomic(folder, SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())


def _history(folder: Path, name: str) -> History:
    return History(folder, name, _ANEW)


def _resume(folder: Path, rows: Sequence[Row], cases: Sequence[Case]) -> tuple[AnsweredRows, int]:
    """What whole batches of questions are there, with the files cut back to them; and how many
    questions that is."""
    predictions, measures = (read_lines(folder, name) for name in (PREDICTIONS, MEASURES))
    kept, done = 0, 0
    for first in range(0, len(cases), BATCH):
        last = min(first + BATCH, len(cases))
        expected = [
            (rows[place].name, rows[place].ratio, cases[number].question.id)
            for number, place in _order(rows, cases, range(first, last))
        ]
        if kept + len(expected) > min(len(predictions), len(measures)):
            break
        for place, wanted in enumerate(expected, kept):
            names = tuple(predictions[place].get(key) for key in ("system", "ratio", "id"))
            if names != wanted:
                what = f"{folder / PREDICTIONS}:{place + 1}: {names}, expected {wanted}"
                raise ArtefactError(what, _ANEW)
        kept, done = kept + len(expected), last
    for name in (PREDICTIONS, MEASURES):
        _history(folder, name).keep(kept)
    return AnsweredRows(predictions[:kept], measures[:kept]), done


def _rewrite(folder: Path, answered: AnsweredRows) -> None:
    """Write both files again."""
    write_atomic(folder, PREDICTIONS, b"".join(map(encode_line, answered.predictions)))
    write_atomic(folder, MEASURES, b"".join(map(encode_line, answered.measures)))


def read_lines(folder: Path, name: str) -> list[Line]:
    """The predictions or measures in a run's folder. Raises ArtefactError naming a line that is
    none."""
    check = _check_prediction if name == PREDICTIONS else _check_measure
    lines = []
    for fields in _history(folder, name).lines():
        check(fields)
        lines.append(fields.values)
    return lines


def _check_prediction(fields: Fields) -> None:
    for key in ("system", "id"):
        fields.get(key, str)
    for key, kind in (("ratio", int), ("prediction", str)):
        fields.optional(key, kind)
    for key in ("golden_answers", "hits", "gold"):
        fields.list_of(key, str)


def _check_measure(fields: Fields) -> None:
    if "error" in fields.values:
        fields.get("error", str)
        return
    if "out_of_memory" in fields.values:
        fields.get("out_of_memory", bool)
        return
    fields.count("context_tokens")
    if "text_tokens" in fields.values:
        fields.count("text_tokens")
    fields.get("truncated", bool)
    seconds = fields.object("seconds")
    for phase in {*PHASES, *seconds.values}:
        seconds.number(phase)
