"""Where `clara ask` gets many questions: a file, or standard input as its lines come."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_cli.documents.examples import questions_of, read_records, refuse_surrogates
from clara_cli.documents.sources import not_utf8
from clara_cli.errors import DataError, UsageError
from clara_cli.storage.file_kinds import read_user_file, special_file

STDIN = Path("-")
HINT = 'one question a line, or lines like {"id": "7", "question": "Who ...?"}'


@dataclass(frozen=True)
class AskedQuestion:
    """A question, where it stands (`file:line`, empty on the command line), and its id as it was
    given: a string or a number, None where it has none."""

    text: str
    place: str = ""
    id: Any = None


def read_question_file(file: Path) -> list[AskedQuestion]:
    """The questions of a text file (one a line) or a JSON-lines file (`question`, `id`).

    Raises:
        UsageError: for a file that cannot be read.
        DataError: for a line that is no question, naming it; for a file without any.
    """
    if ".jsonl" in file.suffixes:
        records = read_records([str(file)], HINT)
        return [one for place, record in records for one in _of_record(place, record)]
    if special := special_file(file):
        raise DataError(f"{file}: {special}", "give -f a file of questions, or pipe one in: -f -")
    try:
        raw = read_user_file(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", "give -f a file of questions") from error
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        number, what = not_utf8(error.object, error.start)
        raise DataError(f"{file}:{number}: {what}", "save the file as UTF-8") from error
    places = [(f"{file}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
    questions = [AskedQuestion(line, place) for place, line in places if line]
    if not questions:
        raise DataError(f"{file}: no questions in it", "one question a line")
    return questions


def read_stdin(most: int) -> Iterator[list[AskedQuestion]]:
    """The questions of standard input, at most `most` together: all that have come whenever the
    last ones are answered, so that a program may ask one, read its answer, and ask the next.

    Raises:
        DataError: for a line that is no question; for an input without any.
    """
    lines: queue.Queue[tuple[int, bytes] | None] = queue.Queue(4 * most)
    threading.Thread(target=_feed, args=(lines,), daemon=True, name="clara-stdin").start()
    number_of_questions, ended = 0, False
    while not ended:
        together = [lines.get()]
        while len(together) < most and together[-1] is not None and not lines.empty():
            together.append(lines.get_nowait())
        ended = together[-1] is None
        questions = [q for line in together if line is not None for q in _of_line(*line)]
        number_of_questions += len(questions)
        if questions:
            yield questions
    if not number_of_questions:
        raise DataError("no questions on stdin", HINT)


def _feed(lines: queue.Queue[tuple[int, bytes] | None]) -> None:
    """Put every line of stdin, with its number, and None at the end."""
    if sys.stdin is not None:
        for number, line in enumerate(sys.stdin.buffer, 1):
            lines.put((number, line))
    lines.put(None)


def _of_line(number: int, raw: bytes) -> list[AskedQuestion]:
    """The questions of a line: of a JSON object, else the line itself; none for an empty line."""
    place = f"<stdin>:{number}"
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: {not_utf8(raw, error.start)[1]}", "pipe UTF-8 text") from error
    if not line.startswith("{"):
        return [AskedQuestion(line, place)] if line else []
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}", HINT) from error
    refuse_surrogates(place, record, HINT)
    return _of_record(place, record)


def _of_record(place: str, record: dict[str, Any]) -> list[AskedQuestion]:
    """The questions of a record, checked, each with its own id where it has one."""
    questions = list(questions_of(place, record, need_answers=False))
    ids = [entry.get("id") for entry in record.get("qas", [record])]
    return [AskedQuestion(q.question, place, id) for q, id in zip(questions, ids, strict=True)]
