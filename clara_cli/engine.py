"""A checkpoint, a corpus and its index, put together: question in, answer with sources out.

`ask` and `bench` use it, and so can you: `Clara.open("sample.clara").ask("Who ...?")`. Knows no
terminal. K passages given, M memory tokens, D hidden.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.core.backbone import window
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.corpus.chunk import model_text
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import Answer, Hit, Passage
from clara_cli.retrieval import FirstStage, Ranked, Retriever
from clara_cli.search.bm25 import words

SUPPORTED_FROM = 0.75


class Clara:
    """One checkpoint over one corpus."""

    def __init__(self, loaded: Loaded, retriever: Retriever) -> None:
        self.loaded, self.retriever, self.corpus = loaded, retriever, retriever.corpus
        self.model, self.prompter = loaded.model, loaded.model.prompter
        refuse_mismatch(loaded, self.corpus)
        self.query_role = "query_reasoner" if "query_reasoner" in self.model.roles else "compressor"

    @classmethod
    def open(
        cls,
        corpus: str | Path,
        model: str | None = None,
        backbone: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Clara:
        """Open a corpus with the checkpoint it names (or `model`), and its index if it has one.

        Raises:
            ArtefactError: for a missing or damaged corpus, or a checkpoint of another memory space.
        """
        retriever = Retriever.open(Path(corpus))
        ratio = retriever.corpus.manifest.identity.ratio
        named = named_model(retriever.corpus, model)
        return cls(load(named, backbone, device, dtype, ratio=ratio), retriever)

    def slots(self, ratio: int | None) -> int:
        """Memory tokens read per passage; a ratio higher than the corpus's reads the first ones.

        Raises:
            UsageError: for a ratio the checkpoint does not serve or below the corpus's.
        """
        stored = self.corpus.manifest.identity
        if ratio is None:
            return stored.memory_tokens
        slots = self.loaded.info.slots(ratio)
        if slots > stored.memory_tokens:
            raise UsageError(
                f"--ratio {ratio}: the corpus was compressed at {stored.ratio}",
                f"compress again with --ratio {ratio}, or ask at {stored.ratio} or more",
            )
        return slots

    def query(self, question: str, slots: int) -> Tensor:
        """query_MD: the question in memory space.

        Raises:
            UsageError: when the question is longer than the query reasoner reads.
        """
        row = self.prompter.passage(question)
        full = len(row) >= self.prompter.max_passage + 3
        if full and row[-1] != self.prompter.tokenizer.eos_token_id:  # its end was cut off
            raise UsageError(
                f"the question has more than {self.prompter.max_passage} tokens, "
                "the longest this checkpoint reads",
                "ask it more briefly",
            )
        with torch.inference_mode():
            return self.model.encode([row], self.query_role, slots).memory_BMD[0]

    def ask(
        self,
        question: str,
        top_k: int = 5,
        first_stage: FirstStage | None = None,
        candidates: int | None = None,
        max_new_tokens: int = 128,
        ratio: int | None = None,
    ) -> Answer:
        """Answer from the corpus's memory alone; greedy, so the same question gives the same
        answer."""
        began = time.monotonic()
        slots = self.slots(ratio)
        query_MD = self.query(question, slots)
        queried = time.monotonic()
        found = self.retriever.search(question, query_MD, top_k, first_stage, candidates)
        hits = self._hits(found)
        searched = time.monotonic()
        memory_KMD = self.corpus.memory([hit.row for hit in hits])[:, :slots]
        text, prompt = self.generate(question, memory_KMD, max_new_tokens)
        finished = time.monotonic()
        sources = [hit.passage for hit in hits]
        support = lexical_support(text, sources) if self.retriever.has_text else None
        return Answer(
            question=question,
            answer=text,
            support=support,
            supported=None if support is None else support >= SUPPORTED_FROM,
            sources=tuple(hits),
            memory_tokens=slots * len(hits),
            prompt_tokens=prompt,
            text_tokens_replaced=sum(hit.passage.tokens for hit in hits),
            seconds={
                "query": round(queried - began, 4),
                "search": round(searched - queried, 4),
                "generate": round(finished - searched, 4),
            },
        )

    def _hits(self, found: Ranked) -> list[Hit]:
        passages = self.corpus.passages_at([row for _, row in found])
        pairs = zip(found, passages, strict=True)
        return [Hit(rank, row, score, p) for rank, ((score, row), p) in enumerate(pairs, 1)]

    def generate(self, question: str, memory_KMD: Tensor, max_new_tokens: int) -> tuple[str, int]:
        """(answer text, prompt positions) of a question over given memories.

        Raises:
            UsageError: when prompt and answer do not fit the backbone's window.
        """
        passages, slots = memory_KMD.shape[:2]
        prompt = self.prompter.prompt(self.prompter.answer_chat(question, passages, slots))
        limit = window(self.model.causal_lm)
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise UsageError(
                f"{len(prompt)} prompt positions and {max_new_tokens} new tokens exceed the "
                f"backbone's window of {limit}",
                "lower --top-k or --max-new-tokens",
            )
        memory_ND = memory_KMD.flatten(0, 1).to(self.model.device) if passages else None
        ids = self.model.generate([prompt], memory_ND, max_new_tokens)[0]
        return self.prompter.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(prompt)


def named_model(corpus: Corpus, model: str | None) -> str:
    """The checkpoint to read a corpus with: the one given, else what the corpus names, else
    $CLARA_MODEL, else nano."""
    named = corpus.manifest.identity.checkpoint.get("model")
    return model or named or os.environ.get("CLARA_MODEL") or "nano"


def refuse_mismatch(loaded: Loaded, corpus: Corpus) -> None:
    """A corpus can be read only by the memory space it was made in."""
    made_by = corpus.manifest.identity.checkpoint
    if loaded.info.fingerprint != made_by["fingerprint"]:
        raise ArtefactError(
            f"{corpus.folder} was compressed by checkpoint {made_by['fingerprint']} "
            f"({made_by.get('model')}), {loaded.name} is {loaded.info.fingerprint}",
            f"use --model {made_by.get('model')}, or compress again with --model {loaded.name}",
        )


def lexical_support(answer: str, passages: list[Passage]) -> float:
    """Share of the answer's words that occur in the passages' kept text or titles, 0 for an empty
    answer. Words only: it cannot tell a right use of a word from a wrong one."""
    said = words(answer)
    known = {word for p in passages for word in words(model_text(p.title, p.text or ""))}
    return round(sum(word in known for word in said) / len(said), 4) if said else 0.0
