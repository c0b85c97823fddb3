"""Text compressors: tokens pruned, sentences chosen, summaries written. Their budget is the
memory's: M tokens a passage.

Knows models and text; what reads the result is the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from clara_cli.documents.chunk import sentence_spans
from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.rivals.retrievers import Embedder
from clara_cli.evaluation.rivals.weights import Weights
from clara_cli.evaluation.systems import Extract

CountTokens = Callable[[str], int]


class LLMLingua2:
    """LLMLingua-2 (arXiv 2403.12968) by its authors' package: a token classifier drops the tokens
    least worth keeping, without a look at the question."""

    asks = False

    def __init__(self, weights: Weights, budget: int, count: CountTokens) -> None:
        self._prune = _package(weights)
        self._budget, self._count = budget, count

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract]:
        """What is left of each passage at the rate that leaves `budget` tokens of the average
        one."""
        tokens = sum(piece.tokens for piece in pieces)
        rate = min(1.0, self._budget * len(pieces) / max(tokens, 1))
        if rate == 1.0:
            return [Extract((piece,), piece.text, piece.tokens) for piece in pieces]
        texts = self._prune.compress_prompt(
            [piece.text for piece in pieces],
            rate=rate,
            use_context_level_filter=False,  # it drops whole passages, then prunes by `rate` again
        )
        pairs = zip(pieces, texts["compressed_prompt_list"], strict=True)
        return [Extract((piece,), text, self._count(text)) for piece, text in pairs if text]


class _PlainTokens:
    """A tokenizer as `llmlingua` counts with it: no token that stands for no text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _package(weights: Weights) -> Any:
    """`llmlingua`'s compressor over weights loaded here. Its own constructor fetches a vocabulary
    of OpenAI's, which weighs words by their tokens (the weights' own does here), and loads weights
    with code of theirs; both are left out."""
    from llmlingua import PromptCompressor

    class Loaded(PromptCompressor):
        def __init__(self) -> None:
            tokenizer = weights.tokenizer
            wordpiece = any(token.startswith("##") for token in tokenizer.get_vocab())
            # the package tells the two kinds of vocabularies by the names of its published models
            self.model_name = "bert-base-multilingual-cased" if wordpiece else "xlm-roberta-large"
            self.model, self.tokenizer = weights.model, tokenizer
            self.oai_tokenizer = _PlainTokens(tokenizer)
            self.device = str(weights.model.device)
            self.use_llmlingua2 = True
            self.max_position_embeddings = weights.longest
            self.init_llmlingua2()
            self.max_seq_len = min(512, weights.longest)

    return Loaded()


class RecompExtractive:
    """RECOMP's extractive compressor (arXiv 2310.04408): the sentences whose vectors have the
    highest inner product with the question's, until the budget is used, in the order of the
    text."""

    asks = True

    def __init__(self, embedder: Embedder, budget: int, count: CountTokens) -> None:
        self._embedder, self._budget, self._count = embedder, budget, count

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract]:
        """The best sentences of all passages together; at least one."""
        named = [(piece, text) for piece in pieces for text in _sentences(piece.text)]
        if not named:
            return []
        vectors = self._embedder.raw([question, *(text for _, text in named)])
        scores = (vectors[1:] @ vectors[0]).tolist()
        kept: set[int] = set()
        left = self._budget * len(pieces)
        for number in sorted(range(len(named)), key=lambda n: -scores[n]):
            tokens = self._count(named[number][1])
            if kept and tokens > left:
                break
            kept.add(number)
            left -= tokens
        chosen = [named[number] for number in sorted(kept)]
        return [Extract((piece,), text, self._count(text)) for piece, text in chosen]


class RecompAbstractive:
    """RECOMP's abstractive compressor: a T5 writes a summary of the passages for the question; an
    empty one says that nothing in them helps."""

    asks = True

    def __init__(self, weights: Weights, count: CountTokens, longest: int = 512) -> None:
        self._weights, self._count, self._longest = weights, count, longest

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract]:
        """The summary, standing for every passage; nothing where it is empty."""
        documents = "\n".join(piece.text for piece in pieces)
        prompt = f"Question: {question}\n Document: {documents}\n Summary: "
        tokens = self._weights.tokenizer(
            prompt, truncation=True, max_length=1024, return_tensors="pt"
        ).to(self._weights.model.device)
        with torch.inference_mode():
            ids = self._weights.model.generate(
                **tokens, max_new_tokens=self._longest, do_sample=False
            )
        text = str(self._weights.tokenizer.decode(ids[0], skip_special_tokens=True)).strip()
        return [Extract(tuple(pieces), text, self._count(text))] if text else []


def _sentences(text: str) -> list[str]:
    spans = ((text[start:end].strip()) for start, end in sentence_spans(text))
    return [sentence for sentence in spans if sentence]
