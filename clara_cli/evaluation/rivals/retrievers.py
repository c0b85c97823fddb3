"""Passages picked by models: dense vectors, a cross-encoder, both of BM25 and vectors, a language
model that writes an order.

Tensor letters: B texts, N passages of a pool, L tokens, E width of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clara_cli.core import loading
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.pool_settings import FIRST_STAGE
from clara_cli.evaluation.rivals.weights import Weights
from clara_cli.evaluation.systems import PooledQuestion

Pooling = Literal["mean", "cls", "last"]
BATCH = 32
RANK_CONSTANT = 60  # of reciprocal rank fusion (Cormack, Clarke and Buettcher 2009)
FUSED = 100  # ranks of each list that are fused
_WEB = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True)
class VectorRule:
    """How a family of models makes vectors: which states become one, and what stands before a
    question and before a passage."""

    pooling: Pooling
    question: str = ""
    passage: str = ""


FAMILIES: tuple[tuple[str, VectorRule], ...] = (
    (r"bge-m3", VectorRule("cls")),
    (r"bge-.*-en", VectorRule("cls", "Represent this sentence for searching relevant passages: ")),
    (r"qwen3-embedding", VectorRule("last", f"Instruct: {_WEB}\nQuery:")),
    (r"e5-(small|base|large)", VectorRule("mean", "query: ", "passage: ")),
    (r"minilm|contriever", VectorRule("mean")),
)
"""By name, where a model's files do not say it (their cards do)."""


def vector_rule(folder: Path, name: str) -> VectorRule:
    """How the model of a folder makes vectors: by its own files, else by its family's name.

    Raises:
        ArtefactError: where neither says it.
    """
    family = next((r for pattern, r in FAMILIES if re.search(pattern, name.lower())), None)
    pooling = _pooling(folder) or (family.pooling if family else None)
    if pooling is None:
        families = "bge, Qwen3-Embedding, e5, MiniLM, contriever"
        raise ArtefactError(
            f"{name}: nothing says how its vectors are made (1_Pooling/config.json)",
            f"take a sentence-transformers model, or one of {families}",
        )
    prompts = _settings(folder / "config_sentence_transformers.json").get("prompts") or {}
    question = prompts.get("query") or (family.question if family else "")
    passage = prompts.get("document") or (family.passage if family else "")
    return VectorRule(pooling, question, passage)


def _pooling(folder: Path) -> Pooling | None:
    settings = _settings(folder / "1_Pooling" / "config.json")
    kinds: dict[str, Pooling] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    return next((p for key, p in kinds.items() if settings.get(f"pooling_mode_{key}")), None)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    settings = loading.read_settings(path, str(path.parent))
    return settings if isinstance(settings, dict) else {}


class Embedder:
    """Texts to unit vectors on the CPU."""

    def __init__(self, weights: Weights, rule: VectorRule) -> None:
        self._weights, self.rule = weights, rule
        settings = _settings(weights.folder / "sentence_bert_config.json")
        own = settings.get("max_seq_length")
        self._longest = min(weights.longest, own) if isinstance(own, int) else weights.longest

    def vectors(self, texts: Sequence[str], prefix: str = "") -> Tensor:
        """vectors_BE of unit length, float32."""
        parts = [
            self._batch([prefix + text for text in texts[first : first + BATCH]])
            for first in range(0, len(texts), BATCH)
        ]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def raw(self, texts: Sequence[str]) -> Tensor:
        """vectors_BE as the model makes them, for models compared by inner product."""
        parts = [self._batch(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
        return torch.cat(parts)

    def _batch(self, texts: Sequence[str]) -> Tensor:
        model = self._weights.model
        tokens = self._weights.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            hidden_BLE = model(**tokens).last_hidden_state.float()
        mask_BL = tokens["attention_mask"]
        if self.rule.pooling == "cls":
            return hidden_BLE[:, 0].cpu()
        if self.rule.pooling == "last":
            rows = torch.arange(len(hidden_BLE), device=hidden_BLE.device)
            return hidden_BLE[rows, mask_BL.sum(1) - 1].cpu()
        weights_BL1 = mask_BL[..., None].float()
        return ((hidden_BLE * weights_BL1).sum(1) / weights_BL1.sum(1)).cpu()


class DensePicker:
    """The `top_k` passages whose vectors are nearest the question's by cosine. A passage's vector
    is made once."""

    chooses = True

    def __init__(self, embedder: Embedder, top_k: int) -> None:
        self._embedder, self._top_k = embedder, top_k
        self._vectors: dict[int, Tensor] = {}

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The nearest, best first."""
        return [order[: self._top_k] for order in self.ranked(batch)]

    def ranked(self, batch: Sequence[PooledQuestion]) -> list[list[Piece]]:
        """All passages of each question's pool, nearest first."""
        pieces = {piece.row: piece for asked in batch for piece in asked.pool.pieces}
        new = [piece for row, piece in pieces.items() if row not in self._vectors]
        if new:
            vectors_BE = self._embedder.vectors([p.text for p in new], self._embedder.rule.passage)
            self._vectors |= zip((piece.row for piece in new), vectors_BE, strict=True)
        questions = [asked.question for asked in batch]
        queries_BE = self._embedder.vectors(questions, self._embedder.rule.question)
        return [self._order(query, asked) for query, asked in zip(queries_BE, batch, strict=True)]

    def _order(self, query_E: Tensor, asked: PooledQuestion) -> list[Piece]:
        pieces = asked.pool.pieces
        if not pieces:
            return []
        vectors_NE = torch.stack([self._vectors[piece.row] for piece in pieces])
        scores_N = vectors_NE @ query_E
        order = torch.argsort(scores_N, descending=True, stable=True).tolist()
        return list(asked.pool.at_positions(order, len(pieces)))


@dataclass(frozen=True)
class HybridPicker:
    """BM25's and the dense order fused by reciprocal rank, the `top_k` best."""

    dense: DensePicker
    top_k: int
    chooses = True

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The best by the sum of 1 / (60 + rank)."""
        return [
            fuse([asked.pool.bm25(asked.question, FUSED), order[:FUSED]])[: self.top_k]
            for asked, order in zip(batch, self.dense.ranked(batch), strict=True)
        ]


def fuse(orders: Sequence[Sequence[Piece]]) -> list[Piece]:
    """Pieces of several orders by reciprocal rank fusion; of equal ones the first named."""
    scores: dict[Piece, float] = {}
    for order in orders:
        for rank, piece in enumerate(order, 1):
            scores[piece] = scores.get(piece, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda piece: -scores[piece])


def candidates(asked: PooledQuestion) -> Sequence[Piece]:
    """What a reranker orders: the pool; of a whole corpus BM25's 20 best."""
    pool = asked.pool
    return pool.bm25(asked.question, FIRST_STAGE) if pool.whole else pool.pieces


class CrossEncoderPicker:
    """The `top_k` candidates that a cross-encoder scores highest, reading question and passage
    together."""

    chooses = True

    def __init__(self, weights: Weights, top_k: int) -> None:
        self._weights, self._top_k = weights, top_k

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The best by score; of equal ones the first given."""
        return [self._best(asked) for asked in batch]

    def _best(self, asked: PooledQuestion) -> Sequence[Piece]:
        pieces = candidates(asked)
        scores = self.scores(asked.question, [piece.text for piece in pieces])
        order = sorted(range(len(pieces)), key=lambda n: -scores[n])
        return [pieces[n] for n in order[: self._top_k]]

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """The logit of relevance of each text (of two classes the second's)."""
        model, scores = self._weights.model, []
        for first in range(0, len(texts), BATCH):
            own = list(texts[first : first + BATCH])
            tokens = self._weights.tokenizer(
                [question] * len(own),
                own,
                padding=True,
                truncation="longest_first",
                max_length=self._weights.longest,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                scores += model(**tokens).logits[:, -1].float().tolist()
        return scores
