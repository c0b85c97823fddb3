"""Evaluation questions by name (from the Hub) or from a file or folder, recognised by content.

A file is of one form from its first record to its last; anything else is an error that says what
was looked for. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_cli.documents import sources
from clara_cli.documents.examples import (
    QUESTION_HINT,
    questions_of,
    read_records,
    refuse_surrogates,
)
from clara_cli.errors import ArtefactError, DataError, UsageError, first_line, nearest
from clara_cli.evaluation.data import tab_separated
from clara_cli.evaluation.data.beir import read_beir
from clara_cli.evaluation.data.native import FORMS, Record, first_has, form_of, open_question
from clara_cli.records import PoolPassage, Question
from clara_cli.storage.files import sha256_file

LOOKED_FOR = (
    "looked for: JSON lines with `question` and `answers` (and `paragraphs` or `docs`), passages "
    "with `qas`, native HotpotQA, 2Wiki, MuSiQue, SQuAD, TriviaQA, PopQA, KILT, DPR or FiD "
    "records, DPR's or MS MARCO's tab-separated questions, a BEIR folder (corpus.jsonl, "
    "queries.jsonl, qrels/), a FlashRAG one (test.jsonl or dev.jsonl, corpus.jsonl), an MS MARCO "
    "one (collection.tsv, queries.dev.tsv, qrels.dev.tsv)"
)
HUB = {  # name: id, configuration, split, form of its records
    "nq": ("google-research-datasets/nq_open", None, "validation", "open"),
    "hotpotqa": ("hotpotqa/hotpot_qa", "distractor", "validation", "hotpotqa"),
    "musique": ("dgslibisey/MuSiQue", None, "validation", "musique"),
    "2wiki": ("framolfese/2WikiMultihopQA", None, "validation", "hotpotqa"),
    "squad": ("rajpurkar/squad", None, "validation", "squad-row"),
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", "validation", "triviaqa"),
    "popqa": ("akariasai/PopQA", None, "test", "popqa"),
}
_OWN = ("paragraphs", "docs", "qas")  # keys of our own forms that bring passages
_POOL_LIKE = ("context", "contexts", "ctxs", "passages", "documents", "paragraphs", "docs")
_LISTS_POOLS = ("hotpotqa", "fid")  # forms whose every record has a list of passages
_LARGEST = 4 * 2**30


@dataclass(frozen=True)
class Dataset:
    """Questions in order. `paragraphs` are those that belong to no question's pool (BEIR);
    `pooled` is False where pools hold gold passages alone; `lists_pools` is True where a pool
    without passages is what the data says (nothing was retrieved), not a pool that is missing.
    `revision` is a commit or checksum."""

    name: str
    form: str
    questions: tuple[Question, ...]
    revision: str | None
    paragraphs: tuple[PoolPassage, ...] = ()
    pooled: bool = True
    lists_pools: bool = False
    notes: tuple[str, ...] = ()


def load(name: str) -> Dataset:
    """A dataset by name, or from the file or folder of that path.

    Raises:
        UsageError: for a name that is neither.
        ArtefactError: for a named dataset that cannot be fetched.
        DataError: for a file in no known form, or a bad record, naming it.
    """
    path = Path(name)
    if name in HUB:
        return _from_hub(name)
    if path.is_dir():
        return _from_folder(name, path)
    if not path.exists():
        hint = f"{nearest(name, HUB)}; or give a file or folder that is there"
        raise UsageError(f"--dataset {name}: no such name, file or folder", hint)
    form, questions, notes = _read_file(path)
    if not questions:
        raise DataError(f"{path}: no question with an answer in it", LOOKED_FOR)
    revision, listed = f"sha256:{sha256_file(path)}", form in _LISTS_POOLS
    notes = (*notes, *(_absent_gold(path, questions) if listed else ()))
    return Dataset(name, form, questions, revision, lists_pools=listed, notes=notes)


def _absent_gold(path: Path, questions: Iterable[Question]) -> Iterator[str]:
    """A note where a retrieved pool lacks gold paragraphs."""
    count = sum(len(question.named_gold) for question in questions)
    if count:
        yield (
            f"{path}: {count:,} gold paragraphs are not among those their question comes with; "
            "they count as not found, unless the corpus searched has them"
        )


def _from_folder(name: str, path: Path) -> Dataset:
    """A folder in BEIR's layout or, where nothing of that is there, in MS MARCO's or FlashRAG's."""
    from clara_cli.evaluation.data.flashrag import read_flashrag, split_of

    split, beir = split_of(path), [path / "queries.jsonl", path / "qrels"]
    if split is not None and not any(part.exists() for part in beir):
        questions, paragraphs, revision = read_flashrag(path, split, LOOKED_FOR)
        notes = (f"{path}: {len(questions):,} questions of {split.name}",)
        return Dataset(name, "flashrag", questions, revision, paragraphs, notes=notes)
    marco = (path / tab_separated.COLLECTION).is_file() and not (path / "corpus.jsonl").exists()
    read = tab_separated.read_folder if marco else read_beir
    judged = read(path, LOOKED_FOR)
    return Dataset(
        name,
        "msmarco" if marco else "beir",
        judged.questions,
        judged.revision,
        judged.passages,
        pooled=False,
        lists_pools=True,
        notes=judged.notes,
    )


def _from_hub(name: str) -> Dataset:
    identifier, config, split, form = HUB[name]
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(identifier, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = first_line(error)
        raise ArtefactError(
            f"dataset {name} ({identifier} on the Hub): {reason}",
            f"connect to the network once, or give a file: --dataset {name}_dev.json",
        ) from error
    files = rows.info.download_checksums or {}
    commits = [url.partition("@")[2].partition("/")[0] for url in files]
    records = ((f"{identifier} {split}[{i}]", dict(row)) for i, row in enumerate(rows))
    return Dataset(name, form, _native(form, records), next(filter(None, commits), None))


def _read_file(path: Path) -> tuple[str, tuple[Question, ...], tuple[str, ...]]:
    head = _first_line(path)
    if tab_separated.is_tab_separated(head):
        return tab_separated.read_file(path, LOOKED_FOR)
    records: Iterable[tuple[str, Record]]
    if _is_json_line(head):
        where, first = next(read_records([str(path)], LOOKED_FOR))
        records = read_records([str(path)], LOOKED_FOR)
    else:
        records = _whole_json(path)
        where, first = records[0]
    if "qas" in first or any(_own_pool(first, key) for key in _OWN):
        return "clara", _own_questions(records), ()
    form = form_of(where, first)
    if form is not None:
        return form, _native(form, records), ()
    if "question" not in first:
        raise _unknown(where, first)
    passed_over = [key for key in _POOL_LIKE if first.get(key)]
    note = f"{path}: {', '.join(passed_over)} of each question is in no known form and is not read"
    return "open", _own_questions(records), (note,) if passed_over else ()


def _own_questions(records: Iterable[tuple[str, Record]]) -> tuple[Question, ...]:
    """Questions of records of our own forms."""
    return tuple(q for where, record in records for q in questions_of(where, record))


def _own_pool(record: Record, key: str) -> bool:
    value = record.get(key)
    if key != "paragraphs":
        return value is not None
    return isinstance(value, list) and (not value or first_has(record, key, "text"))


def _native(form: str, records: Iterable[tuple[str, Record]]) -> tuple[Question, ...]:
    """Questions of records that all have one native form."""
    if form == "open":
        return tuple(q for where, record in records for q in open_question(where, record))
    is_form, read = FORMS[form]
    questions: list[Question] = []
    for where, record in records:
        if not is_form(record):
            raise DataError(f"{where}: not a {form} record like those before it", LOOKED_FOR)
        questions.extend(read(where, record))
    return tuple(questions)


def _first_line(path: Path) -> bytes:
    """A file's first line that is not blank; of an array, which may be all one line, its start."""
    source = sources.Source(path, path.name, str(path), "json")
    with sources.opened(source) as (_, stream):
        if _starts_array(stream):
            return b"["
        lines = (line or b"" for _, line in sources.lines(stream, sources.MAX_LINE_BYTES))
        return next((line for line in lines if line.strip()), b"")


def _whole_json(path: Path) -> list[tuple[str, Record]]:
    """The records of a file that is one JSON value: an array of them, or an object that holds one
    (SQuAD's `data`, TriviaQA's `Data`)."""
    source = sources.Source(path, path.name, str(path), "json")
    with sources.opened(source) as (_, stream):
        whole = sources.whole(stream, _LARGEST)
    if whole is None:
        raise DataError(f"{path}: larger than {_LARGEST:,} bytes as one JSON value", LOOKED_FOR)
    try:
        value: Any = json.loads(whole)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: neither JSON lines nor JSON: {error}", LOOKED_FOR) from error
    return list(_records(path, value))


def _starts_array(stream: Any) -> bool:
    return bool(stream.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["))


def _is_json_line(line: bytes) -> bool:
    """Whether a file's first line is one record of JSON lines."""
    try:
        value = json.loads(line)
    except (UnicodeDecodeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _data_key(value) is None


def _data_key(value: Record) -> str | None:
    """The key under which an object holds its records."""
    return next((key for key in ("data", "Data") if isinstance(value.get(key), list)), None)


def _records(path: Path, value: Any) -> Iterator[tuple[str, Record]]:
    key = _data_key(value) if isinstance(value, dict) else None
    if isinstance(value, dict) and key is None:
        raise _unknown(str(path), value)
    entries = value if key is None else value[key]
    about = {"Domain": value["Domain"]} if key == "Data" and "Domain" in value else {}
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: no records in it", LOOKED_FOR)
    for number, record in enumerate(entries):
        if not isinstance(record, dict):
            raise DataError(f"{path}: record {number} is {repr(record)[:40]}", LOOKED_FOR)
        refuse_surrogates(f"{path}: record {number}", record, LOOKED_FOR)
        yield f"{path}: record {number}", {**about, **record}


def _unknown(where: str, record: Record) -> DataError:
    keys = ", ".join(sorted(map(str, record))[:8]) or "none"
    hint = f"{LOOKED_FOR}; {QUESTION_HINT}"
    return DataError(f"{where}: in no known form (its keys: {keys})", hint)
