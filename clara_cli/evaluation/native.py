"""Records of the released evaluation files (HotpotQA, 2Wiki, MuSiQue, SQuAD, TriviaQA, PopQA, as
their authors or the Hub give them) as questions. One function a form; each checks its record and
names the place in its errors. Knows nothing of where records come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from clara_cli.documents.examples import id_of
from clara_cli.errors import DataError
from clara_cli.records import PoolPassage, Question

Record = dict[str, Any]
HINT = "the file differs from the released one: fetch it again, or write one question a line"


def wrong(where: str, what: str) -> DataError:
    """A record that is not what its form promises."""
    return DataError(f"{where}: {what}", HINT)


def hotpotqa(where: str, record: Record) -> Iterator[Question]:
    """HotpotQA and 2Wiki: `context` of titles with sentences, `supporting_facts` naming titles;
    as lists of pairs (released) or as columns (Hub)."""
    context = _pairs(where, record, "context", "sentences")
    facts = _pairs(where, record, "supporting_facts", "sent_id")
    gold = {title for title, _ in facts}
    if gold and not gold & {title for title, _ in context}:
        raise wrong(where, f"no supporting fact ({sorted(map(str, gold))}) is in the context")
    pool = []
    for number, (title, sentences) in enumerate(context):
        if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise wrong(where, f"context[{number}] has no list of sentences")
        pool.append(PoolPassage(str(number), str(title), _join(sentences), title in gold))
    key = str(record.get("_id") or record.get("id") or where)
    yield Question(key, *_asked(where, record, ["answer"]), tuple(pool), where)


def _pairs(where: str, record: Record, key: str, second: str) -> list[tuple[Any, Any]]:
    value = record.get(key)
    if isinstance(value, dict) and isinstance(value.get("title"), list):
        other = value.get(second)
        if isinstance(other, list) and len(other) == len(value["title"]):
            return list(zip(value["title"], other, strict=True))
    elif isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value):
        return [(title, rest) for title, rest in value]
    raise wrong(where, f"{key} is {repr(value)[:40]}, wanted [title, {second}] pairs")


def _join(sentences: list[str]) -> str:
    """Sentences as one text, with a space where neither side brings one."""
    text = ""
    for sentence in sentences:
        gap = text and sentence and not text[-1].isspace() and not sentence[0].isspace()
        text += " " + sentence if gap else sentence
    return text.strip()


def musique(where: str, record: Record) -> Iterator[Question]:
    """MuSiQue: `paragraphs` with `paragraph_text` and `is_supporting`; unanswerable ones are
    left out."""
    pool = []
    for number, entry in enumerate(_list(where, record, "paragraphs")):
        if not isinstance(entry, dict) or not isinstance(entry.get("paragraph_text"), str):
            raise wrong(where, f"paragraphs[{number}] has no paragraph_text")
        gold = entry.get("is_supporting")
        if not isinstance(gold, bool):
            raise wrong(where, f"paragraphs[{number}]: is_supporting is {gold!r}")
        title = str(entry.get("title") or "")
        pool.append(PoolPassage(str(number), title, entry["paragraph_text"], gold))
    if record.get("answerable", True):
        asked = _asked(where, record, ["answer", "answer_aliases"])
        yield Question(id_of(record, where), *asked, tuple(pool), where)


def squad(where: str, record: Record) -> Iterator[Question]:
    """One article of a SQuAD file: `paragraphs` with `context` and `qas`; questions without an
    answer (version 2) are left out."""
    title = str(record.get("title") or "").replace("_", " ")
    for number, entry in enumerate(_list(where, record, "paragraphs")):
        place = f"{where} paragraphs[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
            raise wrong(place, "no context")
        pool = (PoolPassage("0", title, entry["context"], True),)
        for qa in _list(place, entry, "qas"):
            if not isinstance(qa, dict):
                raise wrong(place, f"a question is {repr(qa)[:40]}")
            yield from _squad_question(place, qa, qa.get("answers"), pool)


def squad_row(where: str, record: Record) -> Iterator[Question]:
    """A row of SQuAD as the Hub gives it: `context`, and `answers` as columns."""
    answers = record["answers"]
    texts = answers.get("text") if isinstance(answers, dict) else None
    if not isinstance(texts, list) or not isinstance(record.get("context"), str):
        raise wrong(where, "wanted a context and answers with text")
    title = str(record.get("title") or "").replace("_", " ")
    pool = (PoolPassage("0", title, record["context"], True),)
    yield from _squad_question(where, record, [{"text": text} for text in texts], pool)


def _squad_question(
    where: str, qa: Record, answers: Any, pool: tuple[PoolPassage, ...]
) -> Iterator[Question]:
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        raise wrong(where, f"answers is {repr(answers)[:40]}, wanted a list of objects")
    if qa.get("is_impossible") or not answers:
        return
    asked = _asked(where, {**qa, "answers": [a.get("text") for a in answers]}, ["answers"])
    yield Question(id_of(qa, where), *asked, pool, where)


def triviaqa(where: str, record: Record) -> Iterator[Question]:
    """TriviaQA: `answer` with `value` and `aliases`; no passages."""
    flat = {**record, **{key: record["answer"].get(key) for key in ("value", "aliases")}}
    asked = _asked(where, flat, ["value", "aliases"])
    yield Question(id_of(record, where, "question_id"), *asked, (), where)


def popqa(where: str, record: Record) -> Iterator[Question]:
    """PopQA: `possible_answers`, a list or a string that holds one as JSON; no passages."""
    answers = record["possible_answers"]
    if isinstance(answers, str):
        try:
            answers = json.loads(answers)
        except ValueError as error:
            raise wrong(where, f"possible_answers is not JSON: {error}") from error
    asked = _asked(where, {**record, "possible_answers": answers}, ["possible_answers"])
    yield Question(id_of(record, where), *asked, (), where)


def open_question(where: str, record: Record) -> Iterator[Question]:
    """A question with its answers and nothing else (NQ-open, FlashRAG)."""
    asked = _asked(where, record, ["answer", "answers", "golden_answers", "answer_aliases"])
    yield Question(id_of(record, where), *asked, (), where)


def has_context(record: Record) -> bool:
    """Whether a record's metadata holds the paragraphs of its question."""
    metadata = record.get("metadata")
    return isinstance(metadata, dict) and {"context", "supporting_facts"} <= metadata.keys()


def flashrag(where: str, record: Record) -> Iterator[Question]:
    """A question whose metadata holds `context` and `supporting_facts`, sentences under
    `sentences` (HotpotQA) or `content` (2Wiki)."""
    metadata = record["metadata"]
    context = metadata["context"]
    if isinstance(context, dict) and "content" in context:
        context = {**context, "sentences": context["content"]}
    for asked in open_question(where, record):
        native = {**record, "context": context, "answer": asked.answers[0]}
        native["supporting_facts"] = metadata["supporting_facts"]
        for question in hotpotqa(where, native):
            yield Question(asked.id, asked.question, asked.answers, question.pool, where)


def _list(where: str, record: Record, key: str) -> list[Any]:
    if not isinstance(record.get(key), list):
        raise wrong(where, f"{key} is {repr(record.get(key))[:40]}, not a list")
    return record[key]


def _asked(where: str, record: Record, keys: list[str]) -> tuple[str, tuple[str, ...]]:
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise wrong(where, f"question is {question!r}, wanted a string")
    answers: list[str] = []
    for key in keys:
        value = record.get(key)
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise wrong(where, f"{key} is {repr(value)[:40]}, wanted one or more strings")
        answers.extend(values)
    if not answers:
        raise wrong(where, f"no answer ({', '.join(keys)})")
    return question, tuple(dict.fromkeys(answers))


def first_has(record: Record, key: str, inner: str) -> bool:
    """Whether `record[key]` is a list whose first object has `inner`."""
    value = record.get(key)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and inner in first


Form = tuple[Callable[[Record], bool], Callable[[str, Record], Iterator[Question]]]
FORMS: dict[str, Form] = {  # how a record of each form is told, and how it is read
    "hotpotqa": (lambda r: "context" in r and "supporting_facts" in r, hotpotqa),
    "musique": (lambda r: first_has(r, "paragraphs", "paragraph_text"), musique),
    "squad": (lambda r: first_has(r, "paragraphs", "qas"), squad),
    "squad-row": (lambda r: isinstance(r.get("answers"), dict) and "context" in r, squad_row),
    "triviaqa": (lambda r: isinstance(r.get("answer"), dict), triviaqa),
    "popqa": (lambda r: "possible_answers" in r, popqa),
    "flashrag": (lambda r: "golden_answers" in r and has_context(r), flashrag),
}


def form_of(where: str, record: Record) -> str | None:
    """The one native form a record has, None for none of them.

    Raises:
        DataError: when it could be two.
    """
    found = [name for name, (is_form, _) in FORMS.items() if is_form(record)]
    if len(found) > 1:
        raise DataError(f"{where}: looks like {' and like '.join(found)}", HINT)
    return found[0] if found else None
