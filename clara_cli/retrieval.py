"""A corpus and what was indexed of it: a question in, ranked rows out.

The engine asks it, and so may anything that searches a corpus. Knows no checkpoint: the question
comes with its memory. M memory tokens, D hidden, N candidates, K kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from clara_cli.corpus.chunk import model_text
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError
from clara_cli.search.bm25 import BM25
from clara_cli.search.exact import reciprocal_rank_fusion, rescore, scan
from clara_cli.search.hnsw import HnswIndex
from clara_cli.search.keys import make_key

FirstStage = Literal["latent", "bm25", "hybrid"]
Ranked = list[tuple[float, int]]
CANDIDATES_PER_K = 20


class Retriever:
    """A corpus, its graph where one was built, and its words where text was kept."""

    def __init__(self, corpus: Corpus, index: HnswIndex | None = None) -> None:
        self.corpus, self.index = corpus, index
        self._bm25: BM25 | None = None

    @classmethod
    def open(cls, folder: Path) -> Retriever:
        """Open a corpus with its index, if it has one. Raises ArtefactError where either is
        missing, damaged, or the index is of another corpus."""
        corpus = Corpus.open(folder)
        return cls(corpus, HnswIndex.load(corpus.folder / "index", corpus.manifest.sha256))

    @property
    def has_text(self) -> bool:
        """Whether the corpus kept its passages' text."""
        return self.corpus.manifest.identity.text

    @property
    def default_first_stage(self) -> FirstStage:
        """Who finds passages unless asked otherwise: words, where text was kept (they find more on
        real text with the bundled model, see its card), else the query reasoner."""
        return "bm25" if self.has_text else "latent"

    def search(
        self,
        question: str,
        query_MD: Tensor,
        top_k: int,
        first_stage: FirstStage | None = None,
        candidates: int | None = None,
    ) -> Ranked:
        """The `top_k` best (score, row), best first. BM25 ranks by its own score; latent and
        hybrid by exact cosine of the flattened memories, whoever proposed.

        Without `first_stage` it is the default one, and `latent` where that finds nothing: no
        passage shares a word with the question.
        """
        stage = first_stage or self.default_first_stage
        found = self._ranked(question, query_MD, top_k, stage, candidates)
        if not found and first_stage is None:
            found = self._ranked(question, query_MD, top_k, "latent", candidates)
        return found

    def _ranked(
        self,
        question: str,
        query_MD: Tensor,
        top_k: int,
        first_stage: FirstStage,
        candidates: int | None,
    ) -> Ranked:
        count = max(top_k, candidates or self._candidates(top_k))
        if first_stage == "bm25":
            scores, rows = self.bm25.search(question, top_k)
            return list(zip(scores, rows, strict=True))
        if first_stage == "latent" and self._scans(query_MD):
            found_K, rows_K = scan(query_MD, self._chunks(query_MD.shape[0]), top_k)
            return list(zip(found_K.tolist(), rows_K.tolist(), strict=True))
        proposed = self._latent(query_MD, count)
        if first_stage == "hybrid":
            rankings = [proposed, self.bm25.search(question, count)[1]]
            proposed = reciprocal_rank_fusion(rankings)[:count]
        scores_N = rescore(query_MD, self.corpus.memory(proposed)[:, : query_MD.shape[0]])
        order = torch.argsort(scores_N, descending=True, stable=True)[:top_k].tolist()
        return [(scores_N[i].item(), proposed[i]) for i in order]

    def _candidates(self, top_k: int) -> int:
        """How many rows to rescore: what was measured to be enough when the graph was built."""
        per_k = CANDIDATES_PER_K if self.index is None else self.index.candidates_per_k
        return max(per_k * top_k, CANDIDATES_PER_K)

    def _scans(self, query_MD: Tensor) -> bool:
        """Whether the latent stage reads all memory: there is no graph, or fewer memory tokens are
        asked for than its keys were made of."""
        stored = self.corpus.manifest.identity.memory_tokens
        return self.index is None or len(query_MD) != stored

    def _latent(self, query_MD: Tensor, count: int) -> list[int]:
        """Rows the latent stage proposes: by the graph over narrow keys, else by exact scan."""
        if self.index is None or self._scans(query_MD):
            return scan(query_MD, self._chunks(query_MD.shape[0]), count)[1].tolist()
        key_1F = make_key(self.index.rule, query_MD.unsqueeze(0), self.index.state)
        return self.index.search(key_1F, count)[1][0].tolist()

    def nearest(self, queries_BMD: Tensor, k: int) -> list[list[int]]:
        """The `k` rows nearest each of many questions by cosine of the flattened memories, best
        first: one pass over the corpus for all of them, or the graph's candidates rescored."""
        if self.index is None:
            return scan(queries_BMD, self._chunks(queries_BMD.shape[1]), k)[1].tolist()
        return [
            [row for _, row in self._ranked("", query_MD, k, "latent", None)]
            for query_MD in queries_BMD
        ]

    def _chunks(self, slots: int) -> Iterator[tuple[int, Tensor]]:
        for first, memory_NMD in self.corpus.memory_chunks():
            yield first, memory_NMD[:, :slots]

    @property
    def bm25(self) -> BM25:
        """BM25 over the kept text: as indexed, else counted now.

        Raises:
            ArtefactError: when the corpus kept no text.
        """
        if self._bm25 is None:
            if not self.has_text:
                raise ArtefactError(
                    f"{self.corpus.folder}: no text was kept, so there are no words to search",
                    "use --first-stage latent, or compress again without --no-text",
                )
            saved = BM25.load(self.corpus.folder / "index" / "bm25", self.corpus.manifest.sha256)
            self._bm25 = saved or BM25.build(passage_texts(self.corpus))
        return self._bm25


def passage_texts(corpus: Corpus) -> Iterator[str]:
    """Title and text of every passage, as BM25 reads them."""
    for passage in corpus.passages():
        yield model_text(passage.title, passage.text or "")
