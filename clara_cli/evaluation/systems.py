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
from clara_cli.errors import ArtefactError, DataError
from clara_cli.evaluation.paragraphs import Piece, Pool
from clara_cli.evaluation.passage_memories import Memories
from clara_cli.search.exact import rescore, scan

MEMORY = ("clara", "sup", "scp", "scp+bm25")  # they read memory, and have a row a ratio
READ_BY_GENERATOR = ("text+generator", "text+generator+bm25")
SUP_ROLE = "sup"  # the query reasoner of another checkpoint, beside this one's roles
PHASES = ("query", "search", "compress", "generate")


@dataclass(frozen=True)
class Prediction:
    """An answer. `hits` are the ids of the paragraphs given, best first, each once;
    `context_tokens` the tokens standing for them; `compress` is what compressing cost, wherever it
    was done, and no part of answering. `text_tokens` are those of the passages' text, where memory
    stands for it."""

    text: str
    hits: tuple[str, ...]
    context_tokens: int
    truncated: bool
    seconds: dict[str, float]
    text_tokens: int | None = None


@dataclass(frozen=True)
class Failure:
    """Why a system has no answer to a question, in one line: that is no wrong answer."""

    error: str
    out_of_memory: bool = False


@dataclass(frozen=True)
class Reading:
    """An answer, read from the first `kept` of the texts given."""

    text: str
    kept: int


class TextReader(Protocol):
    """Answers from passages as text."""

    def read(self, batch: Sequence[tuple[str, Sequence[str]]]) -> list[Reading | Failure]:
        """Answer (question, texts) pairs together, greedily. The last whole texts that do not fit
        the window are left out."""


@dataclass(frozen=True)
class PooledQuestion:
    """A question and the passages it is to be answered from."""

    question: str
    pool: Pool


class System(Protocol):
    """One adapter. `chooses`: it is to get the pool, else the passages given."""

    name: str
    ratio: int | None
    chooses: bool

    def answer(self, batch: Sequence[PooledQuestion]) -> Sequence[Prediction | Failure]:
        """Answer questions together; greedy, so the same batch gives the same answers. What was
        done together is timed together, each question taking an equal share."""

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """What keeping a passage takes, given their texts; None where nothing is kept."""


class Reader:
    """Greedy answers of the generator over memory, and over text by `text_role`: the bare backbone
    (None), or the generator."""

    def __init__(self, loaded: Loaded, max_new_tokens: int, text_role: str | None = None) -> None:
        self.loaded, self.text_role = loaded, text_role
        self.model, self.prompter = loaded.model, loaded.model.prompter
        self.max_new_tokens = max_new_tokens
        self.limit = window(self.model.causal_lm)

    def by(self, text_role: str) -> Reader:
        """The same reader with another role over text."""
        return Reader(self.loaded, self.max_new_tokens, text_role)

    def queries(self, questions: Sequence[str], role: str, memory_tokens: int) -> Tensor:
        """query_BMD; a question longer than a passage is read to a passage's length."""
        with torch.inference_mode():
            rows = [self.prompter.passage(question) for question in questions]
            return self.model.encode(rows, role, memory_tokens).memory_BMD.float().cpu()

    def fit(
        self, question: str, count: int, prompt: Callable[[int], list[int]]
    ) -> tuple[list[int], int]:
        """(prompt ids, passages kept): as many of `count` as the window takes.

        Raises:
            DataError: for a question that does not fit alone.
        """
        for kept in range(count, -1, -1):
            ids = prompt(kept)
            taken = self.model.extent(ids)
            if self.limit is None or taken + self.max_new_tokens <= self.limit:
                return ids, kept
        raise DataError(
            f"the question {question[:60]!r} alone takes {taken} tokens; with "
            f"{self.max_new_tokens} new ones that exceeds the window of {self.limit}",
            "lower --max-new-tokens, or leave the question out",
        )

    def read(self, batch: Sequence[tuple[str, Sequence[str]]]) -> list[Reading | Failure]:
        """Answers to (question, texts) pairs."""
        fitted = [self._fit_texts(question, texts) for question, texts in batch]
        answers = self.generate([ids for ids, _ in fitted], None)
        return [Reading(text, kept) for text, (_, kept) in zip(answers, fitted, strict=True)]

    def _fit_texts(self, question: str, texts: Sequence[str]) -> tuple[list[int], int]:
        prompter = self.prompter
        return self.fit(
            question, len(texts), lambda n: prompter.prompt(prompter.text_chat(question, texts[:n]))
        )

    def count_tokens(self, text: str) -> int:
        """The backbone's tokens of a text."""
        return len(self.prompter.offsets(text))

    def generate(
        self, prompts: Sequence[list[int]], memories: Sequence[Tensor] | None
    ) -> list[str]:
        """The answers; over each one's memory_KMD by the generator, else by `text_role`."""
        role = self.text_role if memories is None else "generator"
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
class _PickedPassages:
    """A question on its way: what it is given, in order, and the seconds spent so far."""

    asked: PooledQuestion
    pieces: Sequence[Piece]
    seconds: dict[str, float]
    prompt: list[int] = field(default_factory=list)
    kept: int = 0

    def prediction(self, text: str, context_tokens: int, replaces_text: bool = False) -> Prediction:
        given, cut = self.pieces[: self.kept], self.kept < len(self.pieces)
        replaced = sum(piece.tokens for piece in given) if replaces_text else None
        return Prediction(text, _ids(given), context_tokens, cut, self.seconds, replaced)


class Picker(Protocol):
    """Chooses the passages that are read. `chooses`: from the pool, else from the passages
    given."""

    chooses: bool

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The passages of each question, best first."""


class AllGiven:
    """Every passage given, in its order."""

    chooses = False

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The passages as they come."""
        return [asked.pool.pieces for asked in batch]


class NoneGiven:
    """No passage: the closed book."""

    chooses = False

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """Nothing."""
        return [() for _ in batch]


@dataclass(frozen=True)
class BM25Picker:
    """The `top_k` passages of the pool by BM25."""

    top_k: int
    chooses = True

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The best by BM25; fewer where too few share a word with the question."""
        return [asked.pool.bm25(asked.question, self.top_k) for asked in batch]


@dataclass(frozen=True)
class PickByMemory:
    """A role that picks the `top_k` passages of the pool whose memory is nearest its own."""

    role: str
    top_k: int
    chooses = True


class MemorySystem:
    """The generator reads memory only: everything given, in its order (`scp`), the best by BM25
    (`scp+bm25`), or what a query reasoner picks (`clara`; `sup`, whose query reasoner learnt from
    labels), ranked by cosine as `clara ask --first-stage latent` ranks them."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        memories: Memories,
        memory_tokens: int,
        ratio: int,
        picker: Picker | PickByMemory,
    ) -> None:
        self.name = name
        self.ratio: int | None = ratio
        self.chooses = picker.chooses
        self._reader, self._memories, self._memory_tokens = reader, memories, memory_tokens
        self._picker = picker
        self._compressed = False

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """Memory as stored."""
        return float(self._memories.bytes_per_passage(self._memory_tokens))

    def answer(self, batch: Sequence[PooledQuestion]) -> list[Prediction]:
        """Pick, fit, splice, generate."""
        picked = self._pick(batch)
        began = time.monotonic()
        for one in picked:
            self._fit(one)
        memories = [
            self._memories.rows([p.row for p in one.pieces[: one.kept]], self._memory_tokens)
            for one in picked
        ]
        texts = self._reader.generate([one.prompt for one in picked], memories)
        share = (time.monotonic() - began) / len(batch)
        for one in picked:
            one.seconds["generate"] = share
        pairs = zip(picked, texts, strict=True)
        return [one.prediction(text, one.kept * self._memory_tokens, True) for one, text in pairs]

    def _pick(self, batch: Sequence[PooledQuestion]) -> list[_PickedPassages]:
        """Each question with the passages it is to be answered from."""
        if isinstance(self._picker, PickByMemory):
            picked = [self._picked(asked, asked.pool.pieces) for asked in batch]
            self._choose(picked, self._picker)
            return picked
        began = time.monotonic()
        chosen = self._picker.pick(batch)
        share = _share(began, batch)
        picked = [self._picked(*pair) for pair in zip(batch, chosen, strict=True)]
        for one in picked:
            one.seconds["search"] = share
        return picked

    def _picked(self, asked: PooledQuestion, pieces: Sequence[Piece]) -> _PickedPassages:
        """A question with passages, compressed where they were not before."""
        rows = [] if asked.pool.whole else [piece.row for piece in pieces]
        seconds = dict.fromkeys(PHASES, 0.0)
        seconds["compress"] = self._memories.seconds(rows, self._memory_tokens)
        return _PickedPassages(asked, pieces, seconds)

    def _fit(self, one: _PickedPassages) -> None:
        prompter, question = self._reader.prompter, one.asked.question
        one.prompt, one.kept = self._reader.fit(
            question,
            len(one.pieces),
            lambda n: prompter.prompt(prompter.answer_chat(question, n, self._memory_tokens)),
        )

    def _choose(self, picked: Sequence[_PickedPassages], reasoner: PickByMemory) -> None:
        """Leave each question the passages of highest cosine, best first."""
        began = time.monotonic()
        questions = [one.asked.question for one in picked]
        query_BMD = self._reader.queries(questions, reasoner.role, self._memory_tokens)
        share = (time.monotonic() - began) / len(picked)
        for one, query_MD in zip(picked, query_BMD, strict=True):
            one.seconds["query"] = share
            if one.pieces:
                pool, top_k = one.asked.pool, reasoner.top_k
                one.pieces, one.seconds["search"] = self._nearest(query_MD, pool, top_k)

    def _nearest(self, query_MD: Tensor, pool: Pool, top_k: int) -> tuple[list[Piece], float]:
        """The passages of highest cosine, best first, and the seconds the search took."""
        if pool.whole:
            if not self._compressed:
                for _ in self._memories.chunks(self._memory_tokens):  # before the clock starts
                    pass
                self._compressed = True
            began = time.monotonic()
            _, rows_K = scan(
                query_MD, self._memories.chunks(self._memory_tokens), top_k + pool.spare
            )
            return list(pool.at_rows(rows_K.tolist(), top_k)), time.monotonic() - began
        memory_NMD = self._memories.rows([piece.row for piece in pool.pieces], self._memory_tokens)
        began = time.monotonic()
        scores_N = rescore(query_MD, memory_NMD)
        order = torch.argsort(scores_N, descending=True, stable=True)[:top_k].tolist()
        return [pool.pieces[i] for i in order], time.monotonic() - began


@dataclass(frozen=True)
class Extract:
    """A text that a reader is given: a passage, or what a compressor left of it or of several;
    `tokens` are the backbone's."""

    pieces: tuple[Piece, ...]
    text: str
    tokens: int


class TextCompressor(Protocol):
    """Shortens passages. `asks`: it needs the question, so that it works while one answers."""

    asks: bool

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract] | Failure:
        """What is left of the passages, in the order it is to be read; one of which nothing is left
        is not there."""


class TextSystem:
    """Passages as text: picked, perhaps compressed, then read. `closed-book` reads nothing, `text`
    the passages given, `text+bm25` the top k by BM25; the generator reads instead of the backbone
    in `text+generator` and `text+generator+bm25`; rivals put other parts in these places."""

    def __init__(
        self,
        name: str,
        reader: TextReader,
        picker: Picker,
        compressor: TextCompressor | None = None,
        ratio: int | None = None,
    ) -> None:
        self.name, self.ratio, self.chooses = name, ratio, picker.chooses
        self._reader, self._picker, self._compressor = reader, picker, compressor

    def bytes_per_passage(self, texts: Sequence[str]) -> float | None:
        """The texts themselves."""
        if isinstance(self._picker, NoneGiven) or not texts:
            return None
        return sum(len(text.encode("utf-8", "replace")) for text in texts) / len(texts)

    def answer(self, batch: Sequence[PooledQuestion]) -> list[Prediction | Failure]:
        """Pick, compress, read."""
        began = time.monotonic()
        picked = self._picker.pick(batch)
        seconds = dict.fromkeys(PHASES, 0.0)
        seconds["search"] = _share(began, batch)
        began = time.monotonic()
        extracts = [
            self._extracts(asked.question, pieces)
            for asked, pieces in zip(batch, picked, strict=True)
        ]
        if self._compressor is not None:
            seconds["search" if self._compressor.asks else "compress"] += _share(began, batch)
        began = time.monotonic()
        readings = self._read(batch, extracts)
        seconds["generate"] = _share(began, batch)
        return [
            _prediction(reading, own, seconds)
            for reading, own in zip(readings, extracts, strict=True)
        ]

    def _read(
        self, batch: Sequence[PooledQuestion], extracts: Sequence[list[Extract] | Failure]
    ) -> list[Reading | Failure]:
        """What the reader makes of those that there is something to read for."""
        tasks = [
            (asked.question, [extract.text for extract in own])
            for asked, own in zip(batch, extracts, strict=True)
            if not isinstance(own, Failure)
        ]
        readings = iter(self._reader.read(tasks) if tasks else [])
        return [own if isinstance(own, Failure) else next(readings) for own in extracts]

    def _extracts(self, question: str, pieces: Sequence[Piece]) -> list[Extract] | Failure:
        if self._compressor is None:
            return [Extract((piece,), piece.text, piece.tokens) for piece in pieces]
        return self._compressor.compress(question, pieces)


def _share(began: float, batch: Sequence[PooledQuestion]) -> float:
    """An equal share, for each question, of the seconds since `began`."""
    return (time.monotonic() - began) / len(batch)


def _prediction(
    reading: Reading | Failure, extracts: list[Extract] | Failure, seconds: dict[str, float]
) -> Prediction | Failure:
    if isinstance(reading, Failure) or isinstance(extracts, Failure):
        return reading if isinstance(reading, Failure) else Failure("nothing to read")
    kept = extracts[: reading.kept]
    return Prediction(
        reading.text,
        _ids([piece for extract in kept for piece in extract.pieces]),
        sum(extract.tokens for extract in kept),
        len(kept) < len(extracts),
        dict(seconds),
    )


def check_roles(names: Sequence[str], loaded: Loaded) -> None:
    """Refuse systems that need a role the checkpoint lacks.

    Raises:
        ArtefactError: naming the role.
    """
    needs = {"compressor": MEMORY, "generator": (*MEMORY, *READ_BY_GENERATOR)}
    for role, systems in needs.items():
        if set(names) & set(systems) and role not in loaded.model.roles:
            others = "closed-book,text,text+bm25"
            hint = f"use another --model, or --system {others}"
            raise ArtefactError(f"{loaded.path}: no {role} in this checkpoint", hint)


def build(
    name: str, tokens_by_ratio: dict[int, int], reader: Reader, memories: Memories, top_k: int
) -> list[System]:
    """One of our own systems; one that reads memory once per ratio, each with its M."""
    if name in MEMORY:
        picks: dict[str, Picker | PickByMemory] = {
            "clara": PickByMemory(reader.model.query_role, top_k),
            "sup": PickByMemory(SUP_ROLE, top_k),
            "scp": AllGiven(),
            "scp+bm25": BM25Picker(top_k),
        }
        return [
            MemorySystem(name, reader, memories, m, ratio, picks[name])
            for ratio, m in tokens_by_ratio.items()
        ]
    pickers: dict[str, Picker] = {
        "closed-book": NoneGiven(),
        "text": AllGiven(),
        "text+bm25": BM25Picker(top_k),
        "text+generator": AllGiven(),
        "text+generator+bm25": BM25Picker(top_k),
    }
    if name in READ_BY_GENERATOR:
        reader = reader.by("generator")
    return [TextSystem(name, reader, pickers[name])]
