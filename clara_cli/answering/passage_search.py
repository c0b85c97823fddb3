"""Corpora of one memory space searched together: questions in, ranked passages out.

Knows no checkpoint: it is given a way to encode questions, called only where a stage needs their
memory. K passages found, M memory tokens, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clara_cli.answering.retriever import FirstStage, Retriever, refuse_unused_filter
from clara_cli.answering.sentences import with_best_sentences
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.errors import UsageError
from clara_cli.records import Hit, SearchResult
from clara_cli.search.bm25 import pooled_idf

NO_QUERY = torch.empty(0)  # BM25 reads the question's words, not its memory

EncodeQuestions = Callable[[Sequence[str]], Tensor]  # questions to query_BMD


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How questions are answered. `text_tokens` bounds what `read="auto"` gives as text, `where`
    filters the passages that are searched (search/where.py), `abstain` keeps unsupported answers
    from being shown."""

    top_k: int = 5
    first_stage: FirstStage | None = None
    candidates: int | None = None
    max_new_tokens: int = 128
    ratio: int | None = None
    read: ReadMode = "memory"
    text_tokens: int = 256
    explain: bool = False
    where: str | None = None
    abstain: bool = False


@dataclass(frozen=True)
class Ranking:
    """A question with its passages, best first, its own memory where it was computed, the rarity of
    its words where words were searched, and the seconds of finding them. `searched` is what was
    searched with: the question, after what it leans on."""

    question: str
    hits: tuple[Hit, ...]
    query_MD: Tensor | None
    seconds: dict[str, float]
    searched: str
    word_weights: Mapping[str, float] | None = field(default=None, repr=False)


class PassageSearch:
    """Corpora and what was indexed of them."""

    def __init__(self, retrievers: Sequence[Retriever]) -> None:
        self.retrievers = tuple(retrievers)
        folders = [one.corpus.name for one in self.retrievers]
        self.names = folders if len(folders) > 1 else [""]  # how sources name their corpus

    @property
    def has_text(self) -> bool:
        """Whether every corpus kept its passages' text."""
        return all(one.has_text for one in self.retrievers)

    def rank(
        self, questions: Sequence[str], how: AskOptions, encode: EncodeQuestions
    ) -> list[Ranking]:
        """The passages of each question, found in every corpus and ranked together.

        Raises:
            UsageError: for a filter that no passage fulfils.
        """
        if how.where is not None:
            refuse_unused_filter(self.retrievers, how.where)
        began = time.monotonic()
        stage = how.first_stage or ("bm25" if self.has_text else "latent")
        queries: dict[int, Tensor] = {}
        if stage != "bm25" or how.explain:
            queries = dict(enumerate(encode(questions)))
        queried, ranked = time.monotonic(), []
        for number, question in enumerate(questions):
            weights = None if stage == "latent" else self._word_weights(question)
            hits = self._search(question, queries.get(number, NO_QUERY), stage, how, weights)
            if not hits and how.first_stage is None and stage == "bm25":  # no word in common
                (queries[number],) = encode([question])
                hits = self._search(question, queries[number], "latent", how, None)
            ranked.append((question, hits, queries.get(number), weights))
        searched = time.monotonic()
        seconds = {"query": queried - began, "search": searched - queried}
        seconds = {phase: spent / len(questions) for phase, spent in seconds.items()}
        return [
            Ranking(question, hits, query_MD, seconds, question, weights)
            for question, hits, query_MD, weights in ranked
        ]

    def passages(
        self, questions: Sequence[str], how: AskOptions, encode: EncodeQuestions
    ) -> list[SearchResult]:
        """The passages of each question alone, each with its best sentence; raises as `rank`."""
        results = []
        for one in self.rank(questions, how, encode):
            hits = with_best_sentences(one.hits, one.question, weights=one.word_weights)
            seconds = {phase: round(spent, 4) for phase, spent in one.seconds.items()}
            results.append(SearchResult(one.question, hits, seconds))
        return results

    def memory(self, hits: Sequence[Hit], memory_tokens: int, hidden: int) -> Tensor:
        """memory_KMD of passages, wherever they are stored."""
        memory_KMD = torch.empty(len(hits), memory_tokens, hidden)
        for name, retriever in zip(self.names, self.retrievers, strict=True):
            places = [i for i, hit in enumerate(hits) if hit.corpus == name]
            rows = [hits[i].row for i in places]
            memory_KMD[places] = retriever.corpus.memory(rows, memory_tokens)
        return memory_KMD

    def _word_weights(self, question: str) -> dict[str, float]:
        return pooled_idf([retriever.bm25 for retriever in self.retrievers], question)

    def _search(
        self,
        question: str,
        query_MD: Tensor,
        stage: FirstStage,
        how: AskOptions,
        weights: Mapping[str, float] | None,
    ) -> tuple[Hit, ...]:
        """The best of all corpora, by score; ties to the corpus named first."""
        hits: list[Hit] = []
        idf = weights if stage == "bm25" and len(self.retrievers) > 1 else None
        for name, retriever in zip(self.names, self.retrievers, strict=True):
            ranked = retriever.search(
                question, query_MD, how.top_k, stage, how.candidates, how.where, idf
            )
            passages = retriever.corpus.passages_at([row for _, row in ranked])
            pairs = zip(ranked, passages, strict=True)
            hits += [Hit(0, row, score, p, name) for (score, row), p in pairs]
        best = sorted(hits, key=lambda hit: -hit.score)[: how.top_k]
        return tuple(replace(hit, rank=rank) for rank, hit in enumerate(best, 1))


def refuse_odd_text(question: str) -> None:
    """Raise UsageError for a question that is no text: bytes of a command line that are not UTF-8
    reach Python as lone surrogates."""
    try:
        question.encode()
    except UnicodeEncodeError as error:
        odd = question[error.start]
        message = f"the question {shortened(question)!r} holds {odd!r}, no character"
        raise UsageError(message, "give it as UTF-8 text") from error


def shortened(question: str) -> str:
    """A question as messages quote it."""
    return question if len(question) <= 40 else f"{question[:40]}..."
