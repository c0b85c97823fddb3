"""Records of the released evaluation files (HotpotQA, 2Wiki, MuSiQue, SQuAD, TriviaQA, PopQA,
KILT, DPR and FiD, as their authors or the Hub give them) as questions. One function a form; each
checks its record and names the place in its errors. Knows nothing of where records come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from clara_cli.documents.examples import id_of
from clara_cli.errors import DataError
from clara_cli.records import GoldName, PoolPassage, Question

Record = dict[str, Any]
HINT = "the file differs from the released one: fetch it again, or write one question a line"


def wrong(where: str, what: str) -> DataError:
    """A record that is not what its form promises."""
    return DataError(f"{where}: {what}", HINT)


def hotpotqa(where: str, record: Record) -> Iterator[Question]:
    """HotpotQA and 2Wiki: `context` of titles with sentences, `supporting_facts` naming titles;
    as lists of pairs (released) or as columns (Hub). In the full-wiki files the context is what a
    retriever found, perhaps nothing: gold that is not in it is named by its title."""
    context = _pairs(where, record, "context", "sentences")
    facts = _pairs(where, record, "supporting_facts", "sent_id")
    gold = dict.fromkeys(str(title) for title, _ in facts)
    titles = {str(title) for title, _ in context}
    named = tuple(GoldName(title=title) for title in gold if title not in titles)
    pool = []
    for number, (title, sentences) in enumerate(context):
        if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise wrong(where, f"context[{number}] has no list of sentences")
        pool.append(PoolPassage(str(number), str(title), _join(sentences), str(title) in gold))
    key = str(record.get("_id") or record.get("id") or where)
    yield Question(key, *_text_and_answers(where, record, ["answer"]), tuple(pool), where, named)


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
        text_and_answers = _text_and_answers(where, record, ["answer", "answer_aliases"])
        yield Question(id_of(record, where), *text_and_answers, tuple(pool), where)


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
    text_and_answers = _text_and_answers(
        where, {**qa, "answers": [a.get("text") for a in answers]}, ["answers"]
    )
    yield Question(id_of(qa, where), *text_and_answers, pool, where)


def triviaqa(where: str, record: Record) -> Iterator[Question]:
    """TriviaQA: `answer` with `value` and `aliases`; no passages."""
    flat = {**record, **{key: record["answer"].get(key) for key in ("value", "aliases")}}
    text_and_answers = _text_and_answers(where, flat, ["value", "aliases"])
    yield Question(id_of(record, where, "question_id"), *text_and_answers, (), where)


def triviaqa_official(where: str, record: Record) -> Iterator[Question]:
    """TriviaQA as its authors give it: `Question`, and `Answer` with `Value`, `Aliases` and what
    people answered. In their filtered files (`Domain` Wikipedia or Web) every evidence document
    named holds an answer: those are its gold, by file name, Wikipedia's by title as well. Nothing
    is known of the documents of the unfiltered ones."""
    answer = record.get("Answer")
    if not isinstance(answer, dict):
        raise wrong(where, "no Answer: the test files come without")
    keys = ["Value", "Aliases", "HumanAnswers"]
    flat = {"question": record.get("Question"), **{key: answer.get(key) for key in keys}}
    named = _evidence(record) if record.get("Domain") in ("Wikipedia", "Web") else ()
    yield Question(
        id_of(record, where, "QuestionId"), *_text_and_answers(where, flat, keys), (), where, named
    )


def _evidence(record: Record) -> tuple[GoldName, ...]:
    """The evidence documents a record of TriviaQA names, each once."""
    names = []
    for key in ("EntityPages", "SearchResults"):
        entries = record.get(key)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("Filename"):
                title = str(entry.get("Title") or "") if key == "EntityPages" else ""
                names.append(GoldName(str(entry["Filename"]), title))
    return tuple(dict.fromkeys(names))


def kilt(where: str, record: Record) -> Iterator[Question]:
    """KILT: `input`, and `output` with answers and the pages they come from, named by Wikipedia
    id and title; no passages."""
    answers: list[str] = []
    pages: dict[GoldName, None] = {}
    for number, output in enumerate(_list(where, record, "output")):
        if not isinstance(output, dict) or not isinstance(output.get("answer") or "", str):
            raise wrong(where, f"output[{number}] is {repr(output)[:40]}")
        answers += [output["answer"]] if output.get("answer") else []
        for page in output.get("provenance") or []:
            if not isinstance(page, dict):
                raise wrong(where, f"output[{number}]: a provenance is {repr(page)[:40]}")
            name = GoldName(str(page.get("wikipedia_id") or ""), str(page.get("title") or ""))
            if name.id or name.title:
                pages[name] = None
    question = record.get("input")
    if not isinstance(question, str) or not question.strip():
        raise wrong(where, f"input is {question!r}, wanted a string")
    key, accepted = id_of(record, where), tuple(dict.fromkeys(answers))
    yield Question(key, question, accepted, (), where, _distinct_pages(pages))


def _distinct_pages(pages: Iterable[GoldName]) -> tuple[GoldName, ...]:
    """Each page once, where some name it by its title alone."""
    distinct: dict[str, GoldName] = {}
    for page in sorted(pages, key=lambda page: not page.id):
        distinct.setdefault(page.title or page.id, page)
    return tuple(distinct.values())


_CTXS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


def dpr(where: str, record: Record) -> Iterator[Question]:
    """DPR's training files: `positive_ctxs`, `negative_ctxs` and `hard_negative_ctxs`. The file has
    the positives first; the pool is in an order that follows from its texts alone."""
    pool = []
    for key in _CTXS:
        pool += _contexts(where, key, record.get(key) or [], key == "positive_ctxs")
    once = {(p.title, p.text): p for p in reversed(pool)}
    shuffled = sorted(once.values(), key=lambda p: hashlib.sha256(p.text.encode()).digest())
    yield from _with_contexts(where, record, shuffled)


def fid(where: str, record: Record) -> Iterator[Question]:
    """FiD's and DPR's retrieved files: `ctxs` in the order they were found; those flagged to hold
    an answer (`hasanswer`, `has_answer`) are its gold, where there are flags."""
    yield from _with_contexts(where, record, _contexts(where, "ctxs", record["ctxs"], False))


def _contexts(where: str, key: str, entries: Any, gold: bool) -> list[PoolPassage]:
    """Passages of `title` and `text`, their ids where they bring some; all gold, or those flagged
    to hold an answer."""
    if not isinstance(entries, list):
        raise wrong(where, f"{key} is {repr(entries)[:40]}, not a list")
    pool = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise wrong(where, f"{key}[{number}] has no text")
        names = (entry.get(name) for name in ("id", "passage_id", "psg_id"))
        paragraph_id = next((str(name) for name in names if name not in (None, "")), "")
        flagged = (entry.get("hasanswer") or entry.get("has_answer")) is True
        title = str(entry.get("title") or "")
        pool.append(PoolPassage(paragraph_id, title, entry["text"], gold or flagged))
    return pool


def _with_contexts(where: str, record: Record, pool: Sequence[PoolPassage]) -> Iterator[Question]:
    """A question with its passages; their positions are their ids where not all have their own."""
    ids = {passage.id for passage in pool}
    if "" in ids or len(ids) < len(pool):
        pool = [replace(passage, id=str(number)) for number, passage in enumerate(pool)]
    text_and_answers = _text_and_answers(where, record, ["answers", "answer", "target"])
    yield Question(id_of(record, where), *text_and_answers, tuple(pool), where)


def popqa(where: str, record: Record) -> Iterator[Question]:
    """PopQA: `possible_answers`, a list or a string that holds one as JSON; no passages."""
    answers = record["possible_answers"]
    if isinstance(answers, str):
        try:
            answers = json.loads(answers)
        except ValueError as error:
            raise wrong(where, f"possible_answers is not JSON: {error}") from error
    text_and_answers = _text_and_answers(
        where, {**record, "possible_answers": answers}, ["possible_answers"]
    )
    yield Question(id_of(record, where), *text_and_answers, (), where)


def open_question(where: str, record: Record) -> Iterator[Question]:
    """A question with its answers and nothing else (NQ-open, FlashRAG)."""
    text_and_answers = _text_and_answers(
        where, record, ["answer", "answers", "golden_answers", "answer_aliases"]
    )
    yield Question(id_of(record, where), *text_and_answers, (), where)


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


def _text_and_answers(where: str, record: Record, keys: list[str]) -> tuple[str, tuple[str, ...]]:
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


def _has_contexts(record: Record) -> bool:
    """Whether `ctxs` is a list of titled texts (of nothing, where nothing was found)."""
    value = record.get("ctxs")
    return isinstance(value, list) and all(
        isinstance(entry, dict) and {"title", "text"} <= entry.keys() for entry in value
    )


Form = tuple[Callable[[Record], bool], Callable[[str, Record], Iterator[Question]]]
FORMS: dict[str, Form] = {  # how a record of each form is told, and how it is read
    "hotpotqa": (lambda r: "context" in r and "supporting_facts" in r, hotpotqa),
    "musique": (lambda r: first_has(r, "paragraphs", "paragraph_text"), musique),
    "squad": (lambda r: first_has(r, "paragraphs", "qas"), squad),
    "squad-row": (lambda r: isinstance(r.get("answers"), dict) and "context" in r, squad_row),
    "triviaqa": (lambda r: isinstance(r.get("answer"), dict), triviaqa),
    "triviaqa-official": (lambda r: "Question" in r and "Answer" in r, triviaqa_official),
    "popqa": (lambda r: "possible_answers" in r, popqa),
    "kilt": (lambda r: "input" in r and isinstance(r.get("output"), list), kilt),
    "dpr": (lambda r: "question" in r and "positive_ctxs" in r, dpr),
    "fid": (lambda r: "question" in r and _has_contexts(r), fid),
    "flashrag": (lambda r: "golden_answers" in r and has_context(r), flashrag),
}


def form_of(where: str, record: Record) -> str | None:
    """The one native form a record has, None for none of them.

    Raises:
        DataError: when it could be two.
    """
    forms = [name for name, (is_form, _) in FORMS.items() if is_form(record)]
    if len(forms) > 1:
        raise DataError(f"{where}: looks like {' and like '.join(forms)}", HINT)
    return forms[0] if forms else None
