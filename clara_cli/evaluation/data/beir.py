"""A BEIR folder as questions: corpus.jsonl, queries.jsonl, qrels/*.tsv.

Queries bring answers only where `answers` (or `metadata.answers`) says so; without them only the
ranking can be scored. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_cli.documents.examples import read_records
from clara_cli.errors import DataError
from clara_cli.records import GoldName, PoolPassage, Question
from clara_cli.storage.file_kinds import read_file
from clara_cli.storage.files import sha256_file

_SPLITS = ("test", "dev", "train")


@dataclass(frozen=True)
class JudgedQuestions:
    """Questions with relevance judgements, the corpus they are answered from, a checksum of the
    files, and what a reader of the figures has to know."""

    questions: tuple[Question, ...]
    passages: tuple[PoolPassage, ...]
    revision: str
    notes: tuple[str, ...]


def read_beir(folder: Path, hint: str) -> JudgedQuestions:
    """The queries of a folder that are judged relevant to a passage, judged passages that the
    corpus lacks included: as gold that is only named."""
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    qrels = next((f for s in _SPLITS if (f := folder / "qrels" / f"{s}.tsv").is_file()), None)
    missing = [str(f) for f in (corpus, queries) if not f.is_file()]
    missing += [] if qrels else [str(folder / "qrels" / "test.tsv")]
    if missing or qrels is None:
        raise DataError(f"{folder}: a folder without {', '.join(missing)}", hint)
    passages: dict[str, PoolPassage] = {}
    for where, record in read_records([str(corpus)], hint):
        key, text = record.get("_id"), record.get("text")
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(f"{where}: a BEIR passage needs _id and text, both strings", hint)
        if key in passages:
            raise DataError(f"{where}: _id {key!r} comes twice", hint)
        passages[key] = PoolPassage(key, str(record.get("title") or ""), text)
    questions = []
    for where, record in read_records([str(queries)], hint):
        key, text = record.get("_id"), record.get("text")
        if not isinstance(key, str) or not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: a BEIR query needs _id and text, both strings", hint)
        questions.append(Question(key, text, _answers(record), source=where))
    return judged(questions, passages, (corpus, queries, qrels), hint)


def judged(
    questions: Iterable[Question],
    passages: Mapping[str, PoolPassage],
    files: tuple[Path, Path, Path],
    hint: str,
) -> JudgedQuestions:
    """The questions that the last of `files` (corpus, queries, qrels) judges, with their gold.

    Raises:
        DataError: where none is judged, or a line of judgements cannot be read.
    """
    corpus, queries, qrels = files
    relevant = read_qrels(qrels, hint)
    judged_questions = []
    for q in questions:
        names = relevant.get(q.id, [])
        gold = [passages[name] for name in names if name in passages]
        named = tuple(GoldName(id=name) for name in names if name not in passages)
        pool = tuple(PoolPassage(p.id, p.title, p.text, True) for p in gold)
        own = passages.get(q.id)
        itself = q.id if own is not None and is_itself(q.question, own) else None
        if names:
            with_gold = Question(q.id, q.question, q.answers, pool, q.source, named, itself)
            judged_questions.append(with_gold)
    if not judged_questions:
        raise DataError(f"{queries}: no query is judged in {qrels}", hint)
    digest = "+".join(sha256_file(f)[:16] for f in files)
    notes = _notes(judged_questions, passages, corpus, qrels)
    return JudgedQuestions(
        tuple(judged_questions), tuple(passages.values()), f"sha256:{digest}", notes
    )


def is_itself(question: str, passage: PoolPassage) -> bool:
    """Whether a passage is the question's own text, with or without a title before it, white space
    aside (ArguAna's queries are arguments of the corpus, Quora's are its questions)."""
    question_words = question.split()
    return question_words in (passage.text.split(), [*passage.title.split(), *passage.text.split()])


def _notes(
    questions: Iterable[Question], passages: Mapping[str, PoolPassage], corpus: Path, qrels: Path
) -> tuple[str, ...]:
    own = coincident = missing = 0
    for question in questions:
        missing += len(question.named_gold)
        own += question.own_passage is not None
        coincident += question.own_passage is None and question.id in passages
    notes = []
    if missing:
        notes.append(
            f"{qrels}: {missing:,} judged passages are not in {corpus.name}; they count as not "
            "found"
        )
    if own:
        notes.append(
            f"{corpus}: {own:,} queries stand in it under their own id; a query is not given its "
            "own passage"
        )
    if coincident:
        notes.append(
            f"{corpus}: {coincident:,} queries have the id of a passage of another text, which "
            "stays among those searched; BEIR's own evaluator would drop it"
        )
    return tuple(notes)


def read_qrels(file: Path, hint: str) -> dict[str, list[str]]:
    """Ids of the passages judged relevant to each query: lines of query, passage, score, with or
    without a header (BEIR), or of query, 0, passage, score (TREC, MS MARCO).

    Raises:
        DataError: for a line of another form, naming it.
    """
    relevant: dict[str, list[str]] = {}
    try:
        lines = read_file(file).decode().splitlines()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error}", hint) from error
    for number, line in enumerate(lines, 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and not cells[-1].strip().isdigit()):
            continue  # a blank line, the header
        if len(cells) == 4:
            del cells[1]
        if len(cells) != 3 or not cells[2].strip().lstrip("-").isdigit():
            raise DataError(f"{file}:{number}: {line[:60]!r}, wanted query, passage, score", hint)
        query, passage, score = cells
        if int(score) > 0 and passage not in relevant.setdefault(query, []):
            relevant[query].append(passage)
    return {query: names for query, names in relevant.items() if names}


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    metadata = record.get("metadata")
    inner = metadata if isinstance(metadata, dict) else {}
    for key in ("answers", "answer", "golden_answers"):
        value = record.get(key) or inner.get(key)
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(dict.fromkeys(value))
    return ()
