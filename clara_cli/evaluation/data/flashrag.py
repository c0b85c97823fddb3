"""FlashRAG folders as questions: test.jsonl, dev.jsonl or train.jsonl, and corpus.jsonl
where there is one. Its questions name no gold passages unless their metadata holds HotpotQA's or
2Wiki's context. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

from clara_cli.documents.examples import read_records
from clara_cli.errors import DataError
from clara_cli.evaluation.data.native import flashrag, has_context, open_question
from clara_cli.records import PoolPassage, Question
from clara_cli.storage.files import sha256_file

_SPLITS = ("test", "dev", "train")


def split_of(folder: Path) -> Path | None:
    """The file of questions in a folder: the test split, else dev, else train."""
    return next((f for s in _SPLITS if (f := folder / f"{s}.jsonl").is_file()), None)


def read_flashrag(
    folder: Path, questions: Path, hint: str
) -> tuple[tuple[Question, ...], tuple[PoolPassage, ...], str]:
    """(questions, the corpus, a checksum of the files read)."""
    asked: list[Question] = []
    for where, record in read_records([str(questions)], hint):
        if "golden_answers" not in record:
            raise DataError(f"{where}: no golden_answers", hint)
        read = flashrag if has_context(record) else open_question
        asked.extend(read(where, record))
    corpus, passages = folder / "corpus.jsonl", {}
    if corpus.is_file():
        for where, record in read_records([str(corpus)], hint):
            key, text = record.get("id"), record.get("contents")
            if not isinstance(key, (str, int)) or not isinstance(text, str):
                raise DataError(f"{where}: a FlashRAG passage needs id and contents", hint)
            if str(key) in passages:
                raise DataError(f"{where}: id {key!r} comes twice", hint)
            passages[str(key)] = PoolPassage(str(key), "", text)
    files = [f for f in (questions, corpus) if f.is_file()]
    digest = "+".join(sha256_file(f)[:16] for f in files)
    return tuple(asked), tuple(passages.values()), f"sha256:{digest}"
