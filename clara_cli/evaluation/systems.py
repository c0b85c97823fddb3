"""The systems compared: each answers a question from a pool, with the same backbone.

Tensor letters: K passages given, M memory tokens, D hidden. A prompt that would exceed the window
loses its last whole passages. Knows nothing of datasets, scores or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from clara_cli.core.backbone import window
from clara_cli.core.checkpoint import Loaded
from clara_cli.errors import ArtefactError, DataError, UsageError, nearest
from clara_cli.evaluation.memory import Memories
from clara_cli.evaluation.pools import Piece, Pool
from clara_cli.search.exact import rescore, scan

NAMES = ("clara", "sup", "scp", "closed-book", "text", "text+bm25")
BY_RATIO = ("clara", "sup", "scp")
SUP_ROLE = "sup"  # the query reasoner of another checkpoint, beside this one's roles
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


@dataclass(frozen=True)
class Asked:
    """A question and the passages it is to be answered from."""

    question: str
    pool: Pool


class System(Protocol):
    """One adapter. `chooses`: it is to get the pool, else the passages given."""

    name: str
    ratio: int | None
    chooses: bool

    def answer(self, batch: Sequence[Asked]) -> list[Prediction]:
        """Answer questions together; greedy, so the same batch gives the same answers. What was
        done together is timed together, each question taking an equal share."""

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """What keeping a passage takes, given their texts; None where nothing is kept."""


class Reader:
    """Greedy answers of the generator (over memory) and of the bare backbone (over text)."""

    def __init__(self, loaded: Loaded, max_new_tokens: int) -> None:
        self.model, self.prompter = loaded.model, loaded.model.prompter
        self.max_new_tokens = max_new_tokens
        self.limit = window(self.model.causal_lm)

    def queries(self, questions: Sequence[str], role: str, slots: int) -> Tensor:
        """query_BMD; a question longer than a passage is read to a passage's length."""
        with torch.inference_mode():
            rows = [self.prompter.passage(question) for question in questions]
            return self.model.encode(rows, role, slots).memory_BMD.float().cpu()

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

    def generate(
        self, prompts: Sequence[list[int]], memories: Sequence[Tensor] | None
    ) -> list[str]:
        """The answers; over each one's memory_KMD by the generator, else by the bare backbone."""
        role = None if memories is None else "generator"
        memory_ND = None
        if memories is not None and any(map(len, memories)):
            spliced = [memory_KMD.flatten(0, 1) for memory_KMD in memories]
            memory_ND = torch.cat(spliced).to(self.model.device)
        rows = self.model.generate(prompts, memory_ND, self.max_new_tokens, role)
        decode = self.prompter.tokenizer.decode
        return [str(decode(ids, skip_special_tokens=True)).strip() for ids in rows]


def _ids(pieces: Sequence[Piece]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece.given for piece in pieces))


@dataclass
class _Picked:
    """A question on its way: what it is given, in order, and the seconds spent so far."""

    asked: Asked
    pieces: Sequence[Piece]
    seconds: dict[str, float]
    prompt: list[int] = field(default_factory=list)
    kept: int = 0

    def said(self, text: str, context_tokens: int) -> Prediction:
        given, cut = self.pieces[: self.kept], self.kept < len(self.pieces)
        return Prediction(text, _ids(given), context_tokens, cut, self.seconds)


class MemorySystem:
    """The generator reads memory only: everything given, in its order (`scp`), or the `top_k` that
    a query reasoner picks (`clara`; `sup`, whose query reasoner learnt from labels), ranked by
    cosine as `clara ask --first-stage latent` ranks them."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        memories: Memories,
        slots: int,
        ratio: int,
        pick: tuple[str, int] | None = None,
    ) -> None:
        self.name = name
        self.ratio: int | None = ratio
        self.chooses = pick is not None
        self._reader, self._memories, self._slots, self._pick = reader, memories, slots, pick
        self._compressed = False

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """Memory as stored."""
        return float(self._memories.bytes_per_passage(self._slots))

    def answer(self, batch: Sequence[Asked]) -> list[Prediction]:
        """Rank (clara, sup), fit, splice, generate."""
        picked = [self._given(asked) for asked in batch]
        if self._pick is not None:
            self._choose(picked, *self._pick)
        began = time.monotonic()
        for one in picked:
            self._fit(one)
        memories = [
            self._memories.rows([p.row for p in one.pieces[: one.kept]], self._slots)
            for one in picked
        ]
        texts = self._reader.generate([one.prompt for one in picked], memories)
        share = (time.monotonic() - began) / len(batch)
        for one in picked:
            one.seconds["generate"] = share
        pairs = zip(picked, texts, strict=True)
        return [one.said(text, one.kept * self._slots) for one, text in pairs]

    def _given(self, asked: Asked) -> _Picked:
        rows = [] if asked.pool.whole else [piece.row for piece in asked.pool.pieces]
        seconds = dict.fromkeys(PHASES, 0.0)
        seconds["compress"] = self._memories.seconds(rows, self._slots)
        return _Picked(asked, asked.pool.pieces, seconds)

    def _fit(self, one: _Picked) -> None:
        prompter, question = self._reader.prompter, one.asked.question
        one.prompt, one.kept = self._reader.fit(
            question,
            len(one.pieces),
            lambda n: prompter.prompt(prompter.answer_chat(question, n, self._slots)),
        )

    def _choose(self, picked: Sequence[_Picked], role: str, top_k: int) -> None:
        """Leave each question the passages of highest cosine, best first."""
        began = time.monotonic()
        questions = [one.asked.question for one in picked]
        query_BMD = self._reader.queries(questions, role, self._slots)
        share = (time.monotonic() - began) / len(picked)
        for one, query_MD in zip(picked, query_BMD, strict=True):
            one.seconds["query"] = share
            if one.pieces:
                one.pieces, one.seconds["search"] = self._nearest(query_MD, one.asked.pool, top_k)

    def _nearest(self, query_MD: Tensor, pool: Pool, top_k: int) -> tuple[list[Piece], float]:
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

    def answer(self, batch: Sequence[Asked]) -> list[Prediction]:
        """Pick (text+bm25), fit, generate."""
        picked = [self._given(asked) for asked in batch]
        began = time.monotonic()
        for one in picked:
            self._fit(one)
        texts = self._reader.generate([one.prompt for one in picked], None)
        share = (time.monotonic() - began) / len(batch)
        for one in picked:
            one.seconds["generate"] = share
        return [
            one.said(text, sum(piece.tokens for piece in one.pieces[: one.kept]))
            for one, text in zip(picked, texts, strict=True)
        ]

    def _given(self, asked: Asked) -> _Picked:
        seconds = dict.fromkeys(PHASES, 0.0)
        if not self.chooses:
            pieces = () if self.name == "closed-book" else asked.pool.pieces
            return _Picked(asked, pieces, seconds)
        began = time.monotonic()
        pieces = asked.pool.bm25(asked.question, self._top_k)
        seconds["search"] = time.monotonic() - began
        return _Picked(asked, pieces, seconds)

    def _fit(self, one: _Picked) -> None:
        prompter, texts = self._reader.prompter, [piece.text for piece in one.pieces]
        one.prompt, one.kept = self._reader.fit(
            one.asked.question,
            len(texts),
            lambda n: prompter.prompt(prompter.text_chat(one.asked.question, texts[:n])),
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown or repeated name.

    Raises:
        UsageError: naming it.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--system {name!r}: no such system", nearest(name, NAMES))
    if len(set(names)) < len(names):
        raise UsageError(f"--system {','.join(names)}: one is named twice", "name each once")


def check_roles(names: Sequence[str], loaded: Loaded) -> None:
    """Refuse systems that need a role the checkpoint lacks.

    Raises:
        ArtefactError: naming the role.
    """
    for role in ("compressor", "generator"):
        if set(names) & set(BY_RATIO) and role not in loaded.model.roles:
            others = ",".join(name for name in NAMES if name not in BY_RATIO)
            hint = f"use another --model, or --system {others}"
            raise ArtefactError(f"{loaded.path}: no {role} in this checkpoint", hint)


def build(
    names: Sequence[str],
    slots: dict[int, int],
    loaded: Loaded,
    memories: Memories,
    top_k: int,
    max_new_tokens: int,
) -> list[System]:
    """The systems named, those that read memory once per ratio; `slots` gives each ratio's M."""
    reader = Reader(loaded, max_new_tokens)
    picks = {"clara": (loaded.model.query_role, top_k), "sup": (SUP_ROLE, top_k), "scp": None}
    made: list[System] = []
    for name in names:
        if name in BY_RATIO:
            made.extend(
                MemorySystem(name, reader, memories, m, ratio, picks[name])
                for ratio, m in slots.items()
            )
        else:
            made.append(TextSystem(reader, name, top_k))
    return made
