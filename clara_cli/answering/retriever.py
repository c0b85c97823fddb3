"""A corpus and what was indexed of it: a question in, ranked rows out.

The engine asks it, and so may anything that searches a corpus. Knows no checkpoint: the question
comes with its memory. M memory tokens, D hidden, N candidates, K kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError, UsageError, nearest
from clara_cli.printable import shell_word
from clara_cli.records import Passage
from clara_cli.search import where as filters
from clara_cli.search.bm25 import BM25
from clara_cli.search.bm25 import SIDECAR as WORDS_SIDECAR
from clara_cli.search.errors import REBUILD, OtherCorpusError
from clara_cli.search.exact import reciprocal_rank_fusion, rescore, scan
from clara_cli.search.field_table import SIDECAR as FIELDS_SIDECAR
from clara_cli.search.field_table import FieldTable
from clara_cli.search.graph_index import SIDECAR, GraphIndex
from clara_cli.search.keys import make_key
from clara_cli.search.milvus import MilvusGraph
from clara_cli.storage import files
from clara_cli.storage.artefact import read_object
from clara_cli.storage.remote_folder import RemoteFolder
from clara_cli.storage.versions import copy_remote

FirstStage = Literal["latent", "bm25", "hybrid"]
Ranked = list[tuple[float, int]]
Index = TypeVar("Index", GraphIndex, BM25, FieldTable)
INDEX, WORDS, FIELDS = "index", "index/bm25", "index/fields"  # where a corpus keeps them
REINDEX = "index the corpus again, where it lies"  # what mends the index of one at a URL
CANDIDATES_PER_K = 20
_OWN_FIELDS = ("document_id", "passage_id", "title")
_BLOCK = 256  # rows of a filtered scan gathered at a time


@dataclass(frozen=True)
class Filtered:
    """The rows that fulfil a filter, and every field that some passage has."""

    where: str
    rows: list[int]
    fields: set[str]


class Retriever:
    """A corpus, its graph where one was built, and its words where text was kept (`words`: built
    already; else read from the index, or built, when they are first needed)."""

    def __init__(
        self, corpus: Corpus, index: GraphIndex | None = None, words: BM25 | None = None
    ) -> None:
        self.corpus, self.index = corpus, index
        self._bm25 = words
        self._fields: FieldTable | None = None
        self._filtered: Filtered | None = None

    @classmethod
    def open(cls, folder: Path) -> Retriever:
        """Open a corpus with its index, if it has one that is of all its passages. Raises
        ArtefactError where either is missing, damaged, or the index is of another corpus."""
        while True:
            corpus = Corpus.open(folder)
            if corpus.remote is not None:
                _copy_index(corpus.remote)
            index = _loaded(GraphIndex, corpus, INDEX)
            if index is not None and len(index) > len(corpus):
                index.keep(corpus.stored_rows)
            if index is not None or corpus.is_current():  # else it grew, its index with it
                return cls(corpus, index)

    @property
    def outgrown(self) -> bool:
        """Whether the corpus has a graph, but of an earlier state, or of an earlier version of this
        program."""
        return self.index is None and (self.corpus.folder / INDEX / SIDECAR).exists()

    @property
    def has_text(self) -> bool:
        """Whether the corpus kept its passages' text."""
        return self.corpus.manifest.identity.text

    def search(
        self,
        question: str,
        query_MD: Tensor,
        top_k: int,
        first_stage: FirstStage,
        candidates: int | None = None,
        where: str | None = None,
        idf: Mapping[str, float] | None = None,
    ) -> Ranked:
        """The `top_k` best (score, row), best first. BM25 ranks by its own score (with the words'
        `idf` over several corpora, where it is given); latent and hybrid by exact cosine of the
        flattened memories, whoever proposed.

        `where` (search/where.py) keeps passages out before anything is searched; the latent stage
        then scans those left instead of asking the graph.
        """
        rows = None if where is None else self.rows_where(where)
        count = max(top_k, candidates or self._candidates(top_k))
        if first_stage == "bm25":
            scores, rows_found = self.bm25.search(question, top_k, rows, idf)
            return list(zip(scores, rows_found, strict=True))
        if first_stage == "latent" and self.scans(len(query_MD), rows):
            found_K, rows_K = scan(query_MD, self._chunks(len(query_MD), rows), top_k)
            return list(zip(found_K.tolist(), rows_K.tolist(), strict=True))
        proposed = self._latent(query_MD, count, rows)
        if first_stage == "hybrid":
            rankings = [proposed, self.bm25.search(question, count, rows)[1]]
            proposed = reciprocal_rank_fusion(rankings)[:count]
        scores_N = rescore(query_MD, self.corpus.memory(proposed, len(query_MD)))
        order = sorted(range(len(proposed)), key=lambda i: (-scores_N[i].item(), proposed[i]))
        return [(scores_N[i].item(), proposed[i]) for i in order[:top_k]]

    def _candidates(self, top_k: int) -> int:
        """How many rows to rescore: what was measured to be enough when the graph was built."""
        per_k = CANDIDATES_PER_K if self.index is None else self.index.candidates_per_k
        return max(per_k * top_k, CANDIDATES_PER_K)

    def rows_where(self, where: str) -> list[int]:
        """The rows that fulfil a filter, in order; the last one asked for is remembered."""
        return self.filtered(where).rows

    def filtered(self, where: str) -> Filtered:
        """What a filter leaves."""
        if self._filtered is None or self._filtered.where != where:
            rows = self.fields.rows_where(filters.parse(where))
            self._filtered = Filtered(where, rows, self.fields.names | set(_OWN_FIELDS))
        return self._filtered

    @property
    def fields(self) -> FieldTable:
        """The fields of all passages: as indexed, else listed now."""
        if self._fields is None:
            if self.corpus.remote is not None:
                copy_remote(self.corpus.remote, FIELDS, FIELDS_SIDECAR, REINDEX)
            saved = _loaded(FieldTable, self.corpus, FIELDS)
            if saved is not None and len(saved) > len(self.corpus):
                saved = saved.kept(self.corpus.stored_rows)
            self._fields = saved or FieldTable.build(map(passage_fields, self.corpus.passages()))
        return self._fields

    def scans(self, memory_tokens: int, rows: Sequence[int] | None = None) -> bool:
        """Whether the latent stage reads memory itself: there is no graph, only some rows are
        wanted, or fewer memory tokens than the graph's keys were made of."""
        stored = self.corpus.manifest.identity.memory_tokens
        return self.index is None or rows is not None or memory_tokens != stored

    def _latent(self, query_MD: Tensor, count: int, rows: Sequence[int] | None) -> list[int]:
        """Rows the latent stage proposes: by the graph over narrow keys, else by exact scan."""
        if self.index is None or self.scans(len(query_MD), rows):
            return scan(query_MD, self._chunks(len(query_MD), rows), count)[1].tolist()
        key_1F = make_key(self.index.rule, query_MD.unsqueeze(0), self.index.state)
        return self.index.search(key_1F, count)[1][0].tolist()

    def nearest(self, queries_BMD: Tensor, k: int) -> list[list[int]]:
        """The `k` rows nearest each of many questions by cosine of the flattened memories, best
        first: one pass over the corpus for all of them, or the graph's candidates rescored."""
        if self.index is None:
            return scan(queries_BMD, self._chunks(queries_BMD.shape[1]), k)[1].tolist()
        return [
            [row for _, row in self.search("", query_MD, k, "latent")] for query_MD in queries_BMD
        ]

    def _chunks(
        self, memory_tokens: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[int | Sequence[int], Tensor]]:
        """The memory of all passages in order, or of some, a block at a time."""
        if rows is None:
            yield from self.corpus.memory_chunks(memory_tokens=memory_tokens)
            return
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            yield block, self.corpus.memory(block, memory_tokens)

    @property
    def bm25(self) -> BM25:
        """BM25 over the kept text: as indexed, else counted now.

        Raises:
            ArtefactError: when the corpus kept no text.
        """
        if self._bm25 is None:
            if not self.has_text:
                raise ArtefactError(
                    f"{self.corpus.name}: no text was kept, so there are no words to search",
                    "use --first-stage latent, or compress again without --no-text",
                )
            saved = _loaded(BM25, self.corpus, WORDS)
            if saved is not None and len(saved) > len(self.corpus):
                saved = saved.kept(self.corpus.stored_rows)
            self._bm25 = saved or BM25.build(map(passage_text, self.corpus.passages()))
        return self._bm25


def _copy_index(remote: RemoteFolder) -> None:
    """Copy graph and words of a corpus at a URL. A graph that lies in Milvus is not asked: a corpus
    from elsewhere does not choose whom this machine connects to."""
    for place, sidecar in ((INDEX, SIDECAR), (WORDS, WORDS_SIDECAR)):
        copy_remote(remote, place, sidecar, REINDEX)
    described = read_object(remote.local / INDEX / SIDECAR, REINDEX)
    if described is not None and described.values.get("engine") == MilvusGraph.engine:
        files.remove(remote.local, f"{INDEX}/{SIDECAR}")


def _loaded(kind: type[Index], corpus: Corpus, place: str) -> Index | None:
    """An index of a corpus; None where there is none, or one of an earlier or a later state of the
    corpus. Raises ArtefactError where it is damaged or of another corpus."""
    try:
        index = kind.load(corpus.folder / place, corpus.manifest.states)
    except ArtefactError as error:
        if isinstance(error, OtherCorpusError):
            passed = corpus.remote is not None or not corpus.is_current()
            if passed or error.indexed in corpus.manifest.edits.renumbered:
                return None
        if error.hint == REBUILD:
            error.hint = f"build it again: clara index {shell_word(corpus.name)}"
        raise
    return index if index is not None and len(index) == corpus.manifest.rows else None


def refuse_unused_filter(retrievers: Sequence[Retriever], where: str) -> None:
    """Refuse a filter that asks for a field nobody has, or that keeps every passage out.

    Raises:
        UsageError: naming the field, or the fields there are.
    """
    filtered = [retriever.filtered(where) for retriever in retrievers]
    names = set().union(*(one.fields for one in filtered))
    for field in filters.named_fields(filters.parse(where)):
        if field not in names:
            message = f"filter {where!r}: no passage has a field {field!r}"
            raise UsageError(message, nearest(field, sorted(names)))
    if not any(one.rows for one in filtered):
        passages = sum(len(retriever.corpus) for retriever in retrievers)
        message = f"filter {where!r}: none of {passages:,} passages fulfils it"
        raise UsageError(message, f"fields here: {', '.join(sorted(names))}")


def passage_fields(passage: Passage) -> dict[str, Any]:
    """What a filter can ask of a passage: its own fields before its metadata of the same name."""
    return {**passage.metadata, **{name: getattr(passage, name) for name in _OWN_FIELDS}}


def passage_text(passage: Passage) -> str:
    """Title and text of a passage, as BM25 reads them."""
    return model_text(passage.title, passage.text or "")
