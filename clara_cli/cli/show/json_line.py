"""The JSON lines that programs read: one object of each result, the contract with scripts.

Knows the records and nothing of how they come about, nor of how people see them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

from clara_cli.documents.places import Place, place_of
from clara_cli.printable import escaped_json
from clara_cli.records import ABSTENTION, Answer, Explanation, Hit, Retelling, SearchResult

SOURCE_KEYS = ("passage_id", "document_id", "title", "text", "start", "end")


def result_json(result: Any) -> dict[str, Any]:
    """The JSON object of a command's record: its fields, but not those marked `json: False`, nor
    those marked `json: "where set"` that say nothing."""
    fields = [f for f in dataclasses.fields(result) if f.metadata.get("json", True)]
    values = {f.name: _plain(getattr(result, f.name)) for f in fields}
    rare = {f.name for f in fields if f.metadata.get("json") == "where set"}
    return {name: value for name, value in values.items() if value or name not in rare}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return result_json(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def answer_json(answer: Answer) -> dict[str, Any]:
    """The JSON object of one answer (a contract with scripts). What there is nothing to say of is
    omitted: `id`, `warnings`, `support_method`, `read` other than memory, a source's `corpus` among
    several, its `sentence` without text, its `file` and `line`, `explain`. Of an answer that was
    abstained from, `answer` says so and `generated` is what was not shown."""
    record = dataclasses.asdict(answer)
    record = _id_field(record.pop("id")) | record
    record["sources"] = [_source_json(hit) for hit in answer.sources]
    if record.pop("abstained") and answer.answer != ABSTENTION:
        record |= {"answer": ABSTENTION, "generated": answer.answer}
    if not answer.warnings:
        del record["warnings"]
    if answer.support_method is None:
        del record["support_method"]
    if answer.read == "memory":
        del record["read"]
    if answer.explain is None:
        del record["explain"]
    else:
        record["explain"] = _explain_json(answer.explain)
    return record


def search_json(result: SearchResult) -> dict[str, Any]:
    """The JSON object of the passages of a question alone (a contract with scripts)."""
    sources = [_source_json(hit) for hit in result.sources]
    record = {"question": result.question, "sources": sources, "seconds": result.seconds}
    return _id_field(result.id) | record


def _id_field(id: Any) -> dict[str, Any]:
    return {} if id is None else {"id": id}


def _source_json(hit: Hit) -> dict[str, Any]:
    record: dict[str, Any] = {"rank": hit.rank}
    record |= {key: getattr(hit.passage, key) for key in SOURCE_KEYS}
    record["score"] = hit.score
    if hit.sentence is not None:
        record["sentence"] = dataclasses.asdict(hit.sentence)
        if not hit.sentence.line:
            del record["sentence"]["line"]
    if hit.corpus:
        record["corpus"] = hit.corpus
    if hit.read != "memory":
        record["read"] = hit.read
    return record | _place_json(place_of(hit.passage.source))


def _place_json(place: Place) -> dict[str, Any]:
    """`file` with `line`, `page`, `slide`, `sheet` or `section`; nothing where it is not known."""
    if not place.file:
        return {}
    fields: dict[str, Any] = {"file": place.file}
    if place.line or not place.kind:
        fields["line"] = place.line
    if place.kind:
        numbered = place.kind in ("page", "slide") and place.name.isdecimal()
        fields[place.kind] = int(place.name) if numbered else place.name
    return fields


def _explain_json(explanation: Explanation) -> dict[str, Any]:
    passages = []
    for match in explanation.passages:
        pairs = zip(match.token_cosines, match.words, strict=True)
        tokens = [{"cosine_part": part, "words": list(words)} for part, words in pairs]
        passages.append(
            {
                "rank": match.rank,
                "passage_id": match.passage_id,
                "score": match.score,
                "cosine": match.cosine,
                "memory": tokens,
            }
        )
    return {
        "query": [list(words) for words in explanation.query_words],
        "passages": passages,
        "tokens": {"read": explanation.tokens_read, "as_text": explanation.tokens_as_text},
        "signals": explanation.signals,
        "seconds": explanation.seconds,
    }


def retelling_json(retelling: Retelling) -> dict[str, Any]:
    """The JSON object of what was written from one passage (a contract with scripts)."""
    passage = {key: getattr(retelling.passage, key) for key in SOURCE_KEYS}
    record = dataclasses.asdict(retelling)
    del record["passage"]
    return {"task": record.pop("task"), **passage, **record}


def one_line(record: dict[str, Any]) -> str:
    """A JSON object in one line."""
    return escaped_json(json.dumps(jsonable(record), ensure_ascii=False))


def write_json(record: dict[str, Any]) -> None:
    """One JSON object as one line of stdout."""
    line = one_line(record)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal without the letters, or a lone surrogate in a text
        line = json.dumps(jsonable(record))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def jsonable(value: Any) -> Any:
    """JSON has no NaN and no infinities: null. Paths are strings."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
