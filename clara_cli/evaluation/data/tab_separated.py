"""Tab-separated questions: DPR's (question, list of answers) and MS MARCO's (id, question) with the
judgements beside them; and MS MARCO's folder of both with its collection. Knows nothing of models.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path

from clara_cli.config import DocumentOptions
from clara_cli.documents import sources
from clara_cli.documents.documents import read_documents
from clara_cli.errors import DataError
from clara_cli.evaluation.data.beir import JudgedQuestions, judged, read_qrels
from clara_cli.records import GoldName, PoolPassage, Question

COLLECTION = "collection.tsv"
_SPLITS = ("dev.small", "dev", "test", "train")


def _ignore(message: str) -> None:
    """Take what a reading says of records that are left out: of these files none is."""


def is_tab_separated(line: bytes) -> bool:
    """Whether a file's first line is cells between tabs, and no JSON."""
    return b"\t" in line and not line.lstrip().startswith((b"{", b"["))


def read_file(path: Path, hint: str) -> tuple[str, tuple[Question, ...], tuple[str, ...]]:
    """(form, questions, notes) of a file whose first row names what it holds.

    Raises:
        DataError: for a row of another form, naming it.
    """
    lines = list(_lines(path, hint))
    where, first = lines[0][0], _quoted_cells(lines[0][1])
    if len(first) == 2 and _answers(first[1]) is not None:
        return "dpr-qa", tuple(_with_answers(where, line, hint) for where, line in lines), ()
    if {"text", "contents"} & set(first):
        columns = ", ".join(first[:8])
        raise DataError(f"{where}: documents (columns {columns}), not questions", hint)
    questions = [_numbered(where, line, hint) for where, line in lines]
    qrels = path.with_name(path.name.replace("queries", "qrels", 1))
    if qrels == path or not qrels.is_file():
        note = f"{path}: questions without answers, and no qrels beside it: nothing is scored"
        return "msmarco", tuple(questions), (note,)
    relevant = read_qrels(qrels, hint)
    kept = [
        Question(q.id, q.question, (), (), q.source, tuple(GoldName(id=p) for p in relevant[q.id]))
        for q in questions
        if q.id in relevant
    ]
    if not kept:
        raise DataError(f"{path}: no query is judged in {qrels}", hint)
    return "msmarco", tuple(kept), (f"{path}: {len(kept):,} queries are judged in {qrels.name}",)


def read_folder(folder: Path, hint: str) -> JudgedQuestions:
    """MS MARCO's collection.tsv with queries.SPLIT.tsv and qrels.SPLIT.tsv, the first split that
    has both."""
    splits = [*_SPLITS, *sorted(f.name[8:-4] for f in folder.glob("queries.*.tsv"))]
    pairs = ((folder / f"queries.{s}.tsv", folder / f"qrels.{s}.tsv") for s in splits)
    queries, qrels = next((p for p in pairs if p[0].is_file() and p[1].is_file()), (None, None))
    if queries is None or qrels is None:
        what = f"{folder}: a {COLLECTION} without queries.dev.tsv and qrels.dev.tsv"
        raise DataError(what, hint)
    corpus = folder / COLLECTION
    passages = {
        d.id: PoolPassage(d.id, d.title, d.text)
        for d in read_documents([str(corpus)], DocumentOptions(), _ignore, _ignore)
    }
    questions = [_numbered(where, line, hint) for where, line in _lines(queries, hint)]
    return judged(questions, passages, (corpus, queries, qrels), hint)


def _lines(path: Path, hint: str) -> Iterator[tuple[str, str]]:
    """(file:line, text) of every line that is not blank."""
    source = sources.Source(path, path.name, str(path), "tsv")
    with sources.opened(source) as (_, stream):
        for number, line in sources.lines(stream, sources.MAX_LINE_BYTES):
            where = f"{path}:{number}"
            if line is None:
                raise DataError(f"{where}: longer than {sources.MAX_LINE_BYTES:,} bytes", hint)
            try:
                text = line.decode().rstrip("\r")
            except UnicodeDecodeError as error:
                what = sources.not_utf8(line, error.start)[1]
                raise DataError(f"{where}: {what}", hint) from error
            if text.strip():
                yield where, text


def _quoted_cells(line: str) -> list[str]:
    """The cells of a line as DPR writes them: quoted as CSV is."""
    return next(csv.reader([line], delimiter="\t"))


def _with_answers(where: str, line: str, hint: str) -> Question:
    cells = _quoted_cells(line)
    answers = _answers(cells[1]) if len(cells) == 2 else None
    if not answers or not cells[0].strip():
        raise DataError(f"{where}: {line[:60]!r}, wanted a question and a list of answers", hint)
    return Question(where, cells[0], tuple(dict.fromkeys(answers)), source=where)


def _answers(cell: str) -> list[str] | None:
    """A list of strings as Python or JSON writes it; None for anything else."""
    if not cell.startswith("["):
        return None
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def _numbered(where: str, line: str, hint: str) -> Question:
    """A question of MS MARCO, whose cells are not quoted."""
    cells = line.split("\t")
    if len(cells) != 2 or not all(cell.strip() for cell in cells):
        raise DataError(f"{where}: {line[:60]!r}, wanted an id and a question", hint)
    return Question(cells[0].strip(), cells[1].strip(), (), source=where)
