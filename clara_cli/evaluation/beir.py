"""A BEIR folder as questions: corpus.jsonl, queries.jsonl, qrels/*.tsv.

Queries bring answers only where `answers` (or `metadata.answers`) says so; without them only the
ranking can be scored. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clara_cli.corpus.files import sha256_file
from clara_cli.documents.examples import read_records
from clara_cli.errors import DataError
from clara_cli.records import PoolPassage, Question

_SPLITS = ("test", "dev", "train")


def read_beir(folder: Path, hint: str) -> tuple[tuple[Question, ...], tuple[PoolPassage, ...], str]:
    """(questions that have relevance judgements, the corpus, a checksum of the three files)."""
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
    relevant = _qrels(qrels, passages, hint)
    questions = []
    for where, record in read_records([str(queries)], hint):
        key, text = record.get("_id"), record.get("text")
        if not isinstance(key, str) or not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: a BEIR query needs _id and text, both strings", hint)
        if key in relevant:
            gold = (passages[g] for g in relevant[key])
            pool = tuple(PoolPassage(p.id, p.title, p.text, True) for p in gold)
            questions.append(Question(key, text, _answers(record), pool, where))
    if not questions:
        raise DataError(f"{queries}: no query is judged in {qrels}", hint)
    digest = "+".join(sha256_file(f)[:16] for f in (corpus, queries, qrels))
    return tuple(questions), tuple(passages.values()), f"sha256:{digest}"


def _qrels(file: Path, passages: dict[str, PoolPassage], hint: str) -> dict[str, list[str]]:
    relevant: dict[str, list[str]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error}", hint) from error
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and not cells[-1].strip().isdigit()):
            continue  # a blank line, the header
        if len(cells) != 3 or not cells[2].strip().lstrip("-").isdigit():
            raise DataError(f"{file}:{number}: {line[:60]!r}, wanted query, passage, score", hint)
        query, passage, score = cells
        if int(score) > 0:
            if passage not in passages:
                raise DataError(f"{file}:{number}: passage {passage!r} is not in the corpus", hint)
            relevant.setdefault(query, []).append(passage)
    return relevant


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
