"""A passage into questions with pools, for `train`: questions over several passages with hard
negatives (e2e), and answers read from the passages a search finds (instruct).

Holds all passages and BM25 over them. Knows no rounds: what counts is one good question, not
coverage.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clara_cli.chat.client import LLM
from clara_cli.records import Passage
from clara_cli.search.bm25 import BM25, words
from clara_cli.synthesis import prompts
from clara_cli.synthesis.passage_worker import Outcome, PassageWorker, Settings, finished
from clara_cli.synthesis.quality_checks import Candidate, Verdict, check_duplicate, check_golds
from clara_cli.synthesis.replies import (
    Linked,
    Malformed,
    read_linked,
    read_pairs,
    read_text,
)

LINKED_PASSAGES = 3  # shown to the model at a time: the passage and its nearest neighbours
QUERY_WORDS = 64  # of a passage, to find its neighbours by


@dataclass(frozen=True, slots=True)
class Library:
    """All passages, the texts models read, and the search over them."""

    passages: Sequence[Passage]
    texts: Sequence[str]
    search: BM25

    @classmethod
    def build(cls, passages: Sequence[Passage], texts: Sequence[str]) -> Library:
        """Count the words of every passage."""
        return cls(passages, texts, BM25.build(texts))

    def nearest(self, query: str, k: int, without: Sequence[int] = ()) -> list[int]:
        """The k rows nearest a query, best first."""
        _, rows = self.search.search(query, k + len(without))
        return [row for row in rows if row not in without][:k]

    def paragraph(self, row: int, *, gold: bool) -> dict[str, Any]:
        """A passage as a pool has it."""
        passage = self.passages[row]
        shown = {"id": passage.passage_id, "title": passage.title, "text": passage.text or ""}
        return {**shown, "gold": gold}


async def linked(library: Library, row: int, llm: LLM, settings: Settings, key: str) -> Outcome:
    """Questions over a passage and its neighbours, gold marked, with hard negatives."""
    worker = _open_worker(library, row, llm, settings, key)
    query = " ".join(words(library.texts[row])[:QUERY_WORDS])
    shown = [row, *library.nearest(query, LINKED_PASSAGES - 1, [row])]
    texts = [library.texts[r] for r in shown]
    if len(shown) < 2 or not (worker.passage.text or "").strip():
        worker.drop(Verdict("alone", "no other passage shares its words"))
        return finished(worker, [])
    worker.outcome.rounds = 1
    found: Any = await worker.ask(
        prompts.linked(texts, settings.temperature),
        lambda reply, cut: read_linked(reply, len(texts), cut),
    )
    for pair, golds in [] if isinstance(found, Malformed) else found:
        verdict = await _check_linked(worker, (pair, golds), texts)
        if verdict is not None:
            worker.reject("e2e", 1, verdict, {"question": pair.question, "answer": pair.answer})
        else:
            rows = [shown[number] for number in golds]
            _keep(worker, "e2e", pair, _pool(library, pair, rows, settings))
    return _finished(worker, "e2e")


async def _check_linked(
    worker: PassageWorker, question: Linked, texts: list[str]
) -> Verdict | None:
    pair, golds = question
    chosen = [texts[number] for number in golds]
    if len(golds) < 2:
        return worker.count(Verdict("single", "names fewer than two passages"))
    verdict = check_golds(pair, chosen) or check_duplicate(pair, _questions_kept(worker))
    if verdict is not None:
        return worker.count(verdict)
    return await worker.verdict("\n\n".join(chosen), pair)


def _pool(
    library: Library, pair: Candidate, golds: list[int], settings: Settings
) -> list[dict[str, Any]]:
    """Gold passages among the nearest others that do not hold the answer, in an order that tells
    nothing."""
    answer = words(pair.answer)
    near = library.nearest(pair.question, 2 * settings.pool_size, golds)
    hard = [row for row in near if not _holds(words(library.texts[row]), answer)]
    rows = [*golds, *hard[: max(0, settings.pool_size - len(golds))]]
    random.Random(f"{settings.seed} {pair.question}").shuffle(rows)
    return [library.paragraph(row, gold=row in golds) for row in rows]


def _holds(text: list[str], answer: list[str]) -> bool:
    """Whether the words of an answer stand together in a text."""
    size = len(answer)
    return any(text[i : i + size] == answer for i in range(len(text) - size + 1))


async def instruct(library: Library, row: int, llm: LLM, settings: Settings, key: str) -> Outcome:
    """Questions about a passage, answered by the model from the passages a search finds."""
    worker = _open_worker(library, row, llm, settings, key)
    text = library.texts[row]
    if not (worker.passage.text or "").strip():
        worker.drop(Verdict("empty", "no text"))
        return finished(worker, [])
    worker.outcome.rounds = 1
    found: Any = await worker.ask(
        prompts.questions("simple", text, settings.temperature), read_pairs
    )
    for draft in [] if isinstance(found, Malformed) else found:
        rows = library.nearest(draft.question, settings.top_k)
        texts = [library.texts[r] for r in rows]
        pair, verdict = await _answer(worker, draft, texts)
        if verdict is not None:
            worker.reject(
                "instruct", 1, verdict, {"question": pair.question, "answer": pair.answer}
            )
        else:
            pool = [library.paragraph(r, gold=r == row) for r in rows]
            _keep(worker, "instruct", pair, pool)
    return _finished(worker, "instruct")


async def _answer(
    worker: PassageWorker, draft: Candidate, texts: list[str]
) -> tuple[Candidate, Verdict | None]:
    """A question with the answer the model reads from texts, tried twice, and what speaks
    against it."""
    verdict = worker.count(check_duplicate(Candidate(draft.question, ""), _questions_kept(worker)))
    if verdict is not None or not texts:
        return draft, verdict or Verdict("alone", "the search finds no passage")
    pair = draft
    for temperature in (0.0, worker.settings.temperature):
        said: Any = await worker.ask(
            prompts.answer(texts, draft.question, temperature),
            lambda reply, cut: read_text(reply, "answer", cut),
        )
        if isinstance(said, Malformed):
            return draft, Verdict("malformed", said.why)
        pair = Candidate(draft.question, said)
        verdict = await worker.verdict("\n\n".join(texts), pair)
        if verdict is None:
            break
    return pair, verdict


def _open_worker(
    library: Library, row: int, llm: LLM, settings: Settings, key: str
) -> PassageWorker:
    passage = library.passages[row]
    return PassageWorker(llm, settings, passage, Outcome(key, passage.passage_id))


def _questions_kept(worker: PassageWorker) -> list[Candidate]:
    return [Candidate(line["question"], line["answers"][0]) for line in worker.outcome.lines]


def _keep(worker: PassageWorker, kind: str, pair: Candidate, pool: list[dict[str, Any]]) -> None:
    number = len(worker.outcome.lines)
    worker.outcome.lines.append(
        {
            "id": f"{worker.passage.passage_id}/{number}",
            "question": pair.question,
            "answers": [pair.answer],
            "type": kind,
            "paragraphs": pool,
        }
    )


def _finished(worker: PassageWorker, kind: str) -> Outcome:
    accepted = [(kind, 1) for _ in worker.outcome.lines]
    if not accepted:
        worker.drop(worker.nothing("no question passed"))
    return finished(worker, accepted)
