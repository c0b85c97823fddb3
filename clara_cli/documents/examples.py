"""Training data in: pairs for pretraining, questions with their pools for training and bench.

Every line is checked as it is read; an error names file, line and value. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from clara_cli.documents import sources
from clara_cli.documents.json_lines import parse_line
from clara_cli.documents.listing import list_sources
from clara_cli.errors import DataError
from clara_cli.records import GoldName, Pair, PoolPassage, Question

PAIR_HINT = (
    'a pair looks like {"data_type": "qa", "question": ["..."], "answers": ["..."], '
    '"docs": ["..."]} (ten of them: recipes/sample/pairs.jsonl)'
)
PAIR_KINDS = {"qa": ("qa", "simple", "complex"), "paraphrase": ("paraphrase",)}
QUESTION_HINT = (
    'a question looks like {"question": "...", "answers": ["..."], '
    '"paragraphs": [{"title": "...", "text": "...", "gold": true}]} '
    "(ten of them: recipes/sample/questions_with_pools.jsonl)"
)


def read_records(paths: Sequence[str], hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line of JSON-lines files (plain, .gz, .xz, or - for stdin).

    Raises:
        DataError: for a line that is not a JSON object, naming it; for files without any.
        UsageError: for a path that is not there.
    """
    any_record = False
    for source in list_sources(paths):
        with sources.opened(source) as (kind, stream):
            if kind != "jsonl":
                raise DataError(f"{source.name}: not a JSON-lines file", hint)
            for number, line in sources.lines(stream, sources.MAX_LINE_BYTES):
                where = f"{source.name}:{number}"
                if line is None:
                    raise DataError(f"{where}: longer than {sources.MAX_LINE_BYTES:,} bytes", hint)
                if not line or line.isspace():
                    continue
                try:
                    record = parse_line(line, sources.MAX_LINE_BYTES, not_a_number=True)
                except sources.BadRecord as bad:
                    raise DataError(f"{where}: {bad}", hint) from None
                if not isinstance(record, dict):
                    raise DataError(f"{where}: not a JSON object: {str(record)[:60]!r}", hint)
                refuse_surrogates(where, record, hint)
                any_record = True
                yield where, record
    if not any_record:
        raise DataError(f"no records in {', '.join(paths)}", hint)


def refuse_surrogates(where: str, record: dict[str, Any], hint: str) -> None:
    """Raise DataError for a value with half a character (JSON may escape one), which no tokenizer
    reads."""
    for key, value in record.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            message = f"{where}: {key} has the lone surrogate \\u{code:04x}, no character"
            raise DataError(message, hint) from error


def id_of(record: dict[str, Any], default: str, key: str = "id") -> str:
    """A record's id as a string; `default` where it has none, or null."""
    value = record.get(key)
    return default if value is None else str(value)


def read_pairs(paths: Sequence[str]) -> list[Pair]:
    """All pairs of the files, in order."""
    return [_pair(where, record) for where, record in read_records(paths, PAIR_HINT)]


def _pair(where: str, record: dict[str, Any]) -> Pair:
    if named := [key for key in ("paragraphs", "qas", "pos_index") if key in record]:
        message = f"{where}: a question with its pool ({named[0]}), not a pair to pretrain on"
        raise DataError(message, f"clara train reads such questions; {PAIR_HINT}")
    if isinstance(record.get("question"), str) and "docs" not in record:
        message = f"{where}: a question without the passage (docs) that answers it, not a pair"
        raise DataError(message, f"add docs; {PAIR_HINT}")
    _no_document(where, record, "docs", PAIR_HINT)
    data_type = record.get("data_type", "qa")
    if data_type not in PAIR_KINDS:
        raise DataError(f"{where}: data_type is {data_type!r}, known: qa, paraphrase", PAIR_HINT)
    kind = record.get("kind", data_type)
    if kind not in PAIR_KINDS[data_type]:
        kinds = ", ".join(PAIR_KINDS[data_type])
        raise DataError(f"{where}: kind is {kind!r}, known of {data_type}: {kinds}", PAIR_HINT)
    texts = _strings(record, "docs", where, PAIR_HINT)
    answers = _strings(record, "answers", where, PAIR_HINT)
    one = {"docs": (texts, "a pair is of one passage")}
    if data_type == "paraphrase":
        one["answers"] = (answers, "a paraphrase is one text")
    for key, (values, why) in one.items():
        if len(values) > 1:
            message = f"{where}: {len(values)} {key}, {why}"
            raise DataError(message, f"write each as a record of its own; {PAIR_HINT}")
    questions: tuple[str, ...] = ()
    if data_type == "qa":
        questions = _strings(record, "question", where, PAIR_HINT)
        if len(questions) != len(answers):
            raise DataError(
                f"{where}: {len(questions)} questions, {len(answers)} answers", PAIR_HINT
            )
    return Pair(kind, questions, answers, texts, where)


def _no_document(where: str, record: dict[str, Any], key: str, hint: str) -> None:
    """Refuse a document, which has a text and nothing of a training record's `key`."""
    if "text" in record and key not in record:
        message = f"{where}: a document (text), not a record to train on"
        raise DataError(message, f"clara synth makes such records of documents; {hint}")


def _strings(record: dict[str, Any], key: str, where: str, hint: str) -> tuple[str, ...]:
    """A non-empty list of strings, or one string as such a list."""
    value = record.get(key)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        shown = "missing" if value is None else repr(value)[:60]
        raise DataError(f"{where}: {key} is {shown}, wanted one or more strings", hint)
    return tuple(value)


def read_questions(paths: Sequence[str], need_answers: bool = True) -> Iterator[Question]:
    """Questions in any of the accepted forms, in order.

    A record with `qas` gives one question per entry, all over its `paragraphs`, or over its own
    passage as a pool of one.
    """
    for where, record in read_records(paths, QUESTION_HINT):
        yield from questions_of(where, record, need_answers)


def questions_of(
    where: str, record: dict[str, Any], need_answers: bool = True
) -> Iterator[Question]:
    """The questions of one record, checked; `where` names it in errors."""
    if "qas" in record:
        yield from _of_passage(where, record, need_answers)
    else:
        yield _question(where, record, need_answers)


def _of_passage(where: str, record: dict[str, Any], need_answers: bool) -> Iterator[Question]:
    text, qas = record.get("text"), record["qas"]
    if not isinstance(qas, list) or not ("paragraphs" in record or isinstance(text, str)):
        raise DataError(
            f"{where}: a record with qas needs a text or paragraphs, and a list of them",
            QUESTION_HINT,
        )
    if "paragraphs" in record:
        pool = _pool(record, where)
    else:
        passage_id, title = id_of(record, where), str(record.get("title") or "")
        pool = (PoolPassage(passage_id, title, str(text), True),)
    for position, entry in enumerate(qas):
        if not isinstance(entry, dict):
            raise DataError(
                f"{where}: qas[{position}] is {str(entry)[:40]!r}, not an object", QUESTION_HINT
            )
        question, answers = _asked(entry, f"{where} qas[{position}]", need_answers)
        yield Question(id_of(entry, f"{where}#{position}"), question, answers, pool, where)


def _question(where: str, record: dict[str, Any], need_answers: bool) -> Question:
    if isinstance(record.get("question"), list):
        message = f"{where}: a pair to pretrain on (a list of questions), not a question"
        raise DataError(message, f"clara pretrain reads such pairs; {QUESTION_HINT}")
    _no_document(where, record, "question", QUESTION_HINT)
    question, answers = _asked(record, where, need_answers)
    pool = _pool(record, where)
    pool_ids = {passage.id for passage in pool}
    rest = tuple(GoldName(id=key) for key in _named_gold(record) if key not in pool_ids)
    return Question(id_of(record, where), question, answers, pool, where, rest)


def _pool(record: dict[str, Any], where: str) -> tuple[PoolPassage, ...]:
    """The passages a question comes with, where it has any."""
    pool: list[PoolPassage] = []
    named = _named_gold(record)
    if "paragraphs" in record:
        for position, entry in enumerate(_list(record, "paragraphs", where)):
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                raise DataError(f"{where}: paragraphs[{position}] has no text", QUESTION_HINT)
            key, title = id_of(entry, str(position)), str(entry.get("title") or "")
            gold = bool(entry.get("gold", False)) or key in named
            pool.append(PoolPassage(key, title, entry["text"], gold))
    elif "docs" in record:
        texts = _strings(record, "docs", where, QUESTION_HINT)
        golds = _positions(record.get("pos_index") or [], len(texts), where)
        for position, text in enumerate(texts):
            pool.append(PoolPassage(str(position), "", text, position in golds))
    return tuple(pool)


def _named_gold(record: dict[str, Any]) -> list[str]:
    """`gold`, where it is a list of ids: of the question's paragraphs, or of documents."""
    value = record.get("gold")
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        return []
    return list(dict.fromkeys(value))


def _positions(value: Any, count: int, where: str) -> set[int]:
    """`pos_index`: which of `count` docs are gold."""
    if not isinstance(value, list) or any(type(i) is not int or not 0 <= i < count for i in value):
        shown = repr(value)[:40]
        raise DataError(
            f"{where}: pos_index is {shown}, wanted positions from 0 to {count - 1}", QUESTION_HINT
        )
    return set(value)


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(record[key], list):
        raise DataError(f"{where}: {key} is {repr(record[key])[:40]}, not a list", QUESTION_HINT)
    return record[key]


def _asked(record: dict[str, Any], where: str, need_answers: bool) -> tuple[str, tuple[str, ...]]:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        shown = "missing" if question is None else repr(question)[:60]
        raise DataError(f"{where}: question is {shown}, wanted a string", QUESTION_HINT)
    answers: list[str] = []
    for key in ("answer", "answers", "golden_answers", "answer_aliases"):
        if record.get(key):
            answers.extend(_strings(record, key, where, QUESTION_HINT))
    if need_answers and not answers:
        raise DataError(f"{where}: no answer (answer, answers or golden_answers)", QUESTION_HINT)
    return question, tuple(dict.fromkeys(answers))
