"""The systems compared: each answers a question from a pool, with the same backbone.

Tensor letters: K passages given, M memory tokens, D hidden. A prompt that would exceed the window
loses its last whole passages. Knows nothing of datasets, scores or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clara_cli.core.backbone import window
from clara_cli.core.checkpoint import Loaded
from clara_cli.errors import ArtefactError, DataError, UsageError, nearest
from clara_cli.evaluation.memory import Memories
from clara_cli.evaluation.pools import Piece, Pool
from clara_cli.search.exact import rescore, scan

NAMES = ("clara", "scp", "closed-book", "text", "text+bm25")
BY_RATIO = ("clara", "scp")
PHASES = ("query", "search", "compress", "generate")


@dataclass(frozen=True)
class Prediction:
    """An answer. `hits` are the ids of the paragraphs given, best first, each once;
    `context_tokens` the tokens standing for them; `compress` is what compressing cost, wherever it
    was done, and no part of answering."""

    text: str
    hits: tuple[str, ...]
    context_tokens: int
    truncated: bool
    seconds: dict[str, float]


class System(Protocol):
    """One adapter. `chooses`: it is to get the pool, else the passages given."""

    name: str
    ratio: int | None
    chooses: bool

    def answer(self, question: str, pool: Pool) -> Prediction:
        """Answer from the pool; greedy, so the same question gives the same answer."""

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """What keeping a passage takes, given their texts; None where nothing is kept."""


class Reader:
    """Greedy answers of the generator (over memory) and of the bare backbone (over text)."""

    def __init__(self, loaded: Loaded, max_new_tokens: int) -> None:
        self.model, self.prompter = loaded.model, loaded.model.prompter
        self.max_new_tokens = max_new_tokens
        self.limit = window(self.model.causal_lm)
        found = "query_reasoner" in self.model.roles
        self.query_role = "query_reasoner" if found else "compressor"

    def query(self, question: str, slots: int) -> Tensor:
        """query_MD; a question longer than a passage is read to a passage's length."""
        with torch.inference_mode():
            row = self.prompter.passage(question)
            return self.model.encode([row], self.query_role, slots).memory_BMD[0].float().cpu()

    def fit(
        self, question: str, count: int, prompt: Callable[[int], list[int]]
    ) -> tuple[list[int], int]:
        """(prompt ids, passages kept): as many of `count` as the window takes.

        Raises:
            DataError: for a question that does not fit alone.
        """
        for kept in range(count, -1, -1):
            ids = prompt(kept)
            if self.limit is None or len(ids) + self.max_new_tokens <= self.limit:
                return ids, kept
        raise DataError(
            f"the question {question[:60]!r} alone takes {len(ids)} tokens; with "
            f"{self.max_new_tokens} new ones that exceeds the window of {self.limit}",
            "lower --max-new-tokens, or leave the question out",
        )

    def generate(self, ids: list[int], memory_KMD: Tensor | None) -> str:
        """The answer; over memory by the generator, else by the bare backbone."""
        role = None if memory_KMD is None else "generator"
        memory_ND = None
        if memory_KMD is not None and len(memory_KMD):
            memory_ND = memory_KMD.flatten(0, 1).to(self.model.device)
        out = self.model.generate([ids], memory_ND, self.max_new_tokens, role)[0]
        return str(self.prompter.tokenizer.decode(out, skip_special_tokens=True)).strip()


def _ids(pieces: Sequence[Piece]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece.given for piece in pieces))


class MemorySystem:
    """`clara` (the query reasoner picks the top k) and `scp` (everything given, in its order): the
    generator reads memory only."""

    def __init__(
        self, reader: Reader, memories: Memories, slots: int, ratio: int, top_k: int | None
    ) -> None:
        self.name = "scp" if top_k is None else "clara"
        self.chooses = top_k is not None
        self.ratio: int | None = ratio
        self._reader, self._memories, self._slots, self._top_k = reader, memories, slots, top_k
        self._compressed = False

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """Memory as stored."""
        return float(self._memories.bytes_per_passage(self._slots))

    def answer(self, question: str, pool: Pool) -> Prediction:
        """Rank (clara), fit, splice, generate."""
        seconds = dict.fromkeys(PHASES, 0.0)
        pieces: Sequence[Piece] = pool.pieces
        rows = [] if pool.whole else [piece.row for piece in pieces]
        seconds["compress"] = self._memories.seconds(rows, self._slots)
        if self._top_k is not None and pieces:
            began = time.monotonic()
            query_MD = self._reader.query(question, self._slots)
            seconds["query"] = time.monotonic() - began
            pieces, seconds["search"] = self._pick(query_MD, pool, self._top_k)
        began = time.monotonic()
        ids, kept = self._reader.fit(question, len(pieces), lambda n: self._prompt(question, n))
        memory_KMD = self._memories.rows([p.row for p in pieces[:kept]], self._slots)
        text = self._reader.generate(ids, memory_KMD)
        seconds["generate"] = time.monotonic() - began
        hits, context = _ids(pieces[:kept]), kept * self._slots
        return Prediction(text, hits, context, kept < len(pieces), seconds)

    def _prompt(self, question: str, passages: int) -> list[int]:
        prompter = self._reader.prompter
        return prompter.prompt(prompter.answer_chat(question, passages, self._slots))

    def _pick(self, query_MD: Tensor, pool: Pool, top_k: int) -> tuple[list[Piece], float]:
        """The passages of highest cosine, best first, and the seconds the search took."""
        if pool.whole:
            if not self._compressed:
                for _ in self._memories.chunks(self._slots):  # before the clock starts
                    pass
                self._compressed = True
            began = time.monotonic()
            _, rows_K = scan(query_MD, self._memories.chunks(self._slots), top_k)
            picked = [pool.by_row[row] for row in rows_K.tolist() if row in pool.by_row]
            return picked, time.monotonic() - began
        memory_NMD = self._memories.rows([piece.row for piece in pool.pieces], self._slots)
        began = time.monotonic()
        scores_N = rescore(query_MD, memory_NMD)
        order = torch.argsort(scores_N, descending=True, stable=True)[:top_k].tolist()
        return [pool.pieces[i] for i in order], time.monotonic() - began


class TextSystem:
    """The backbone without adapters: `closed-book` reads nothing, `text` the passages given,
    `text+bm25` the top k by BM25."""

    ratio: int | None = None

    def __init__(self, reader: Reader, name: str, top_k: int) -> None:
        self.name, self._reader, self._top_k = name, reader, top_k
        self.chooses = name == "text+bm25"

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """The texts themselves."""
        if self.name == "closed-book" or not texts:
            return None
        return sum(len(text.encode("utf-8", "replace")) for text in texts) / len(texts)

    def answer(self, question: str, pool: Pool) -> Prediction:
        """Pick (text+bm25), fit, generate."""
        seconds = dict.fromkeys(PHASES, 0.0)
        pieces = () if self.name == "closed-book" else pool.pieces
        if self.chooses:
            began = time.monotonic()
            pieces = pool.bm25(question, self._top_k)
            seconds["search"] = time.monotonic() - began
        began = time.monotonic()
        prompter, texts = self._reader.prompter, [piece.text for piece in pieces]
        ids, kept = self._reader.fit(
            question,
            len(pieces),
            lambda n: prompter.prompt(prompter.text_chat(question, texts[:n])),
        )
        text = self._reader.generate(ids, None)
        seconds["generate"] = time.monotonic() - began
        context = sum(piece.tokens for piece in pieces[:kept])
        return Prediction(text, _ids(pieces[:kept]), context, kept < len(pieces), seconds)


def build(
    names: Sequence[str],
    slots: dict[int, int],
    loaded: Loaded,
    memories: Memories,
    top_k: int,
    max_new_tokens: int,
) -> list[System]:
    """The systems named, those that read memory once per ratio; `slots` gives each ratio's M.

    Raises:
        UsageError: for an unknown or repeated name.
        ArtefactError: for a checkpoint without the roles they need.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--system {name!r}: no such system", nearest(name, NAMES))
    if len(set(names)) < len(names):
        raise UsageError(f"--system {','.join(names)}: one is named twice", "name each once")
    for role in ("compressor", "generator"):
        if set(names) & set(BY_RATIO) and role not in loaded.model.roles:
            hint = f"use another --model, or --system {','.join(NAMES[2:])}"
            raise ArtefactError(f"{loaded.path}: no {role} in this checkpoint", hint)
    reader = Reader(loaded, max_new_tokens)
    made: list[System] = []
    for name in names:
        if name in BY_RATIO:
            k = top_k if name == "clara" else None
            made.extend(MemorySystem(reader, memories, m, r, k) for r, m in slots.items())
        else:
            made.append(TextSystem(reader, name, top_k))
    return made
