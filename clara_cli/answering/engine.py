"""A checkpoint, one corpus or several, and their indexes, put together: question in, answer with
sources out.

`ask` uses it, and so can you: `Clara.open("sample.clara").ask("Who ...?")`. Knows no
terminal. K passages given, M memory tokens, D hidden.
"""

from __future__ import annotations

import os
import random
import reprlib
import shlex
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.answering.answerer import Answerer, FoundPassages
from clara_cli.answering.familiar_text import read_familiar_text
from clara_cli.answering.passage_search import (
    AskOptions,
    EncodeQuestions,
    PassageSearch,
    refuse_odd_text,
    shortened,
)
from clara_cli.answering.retelling import retell
from clara_cli.answering.retriever import FirstStage, Retriever
from clara_cli.bundled import default_model
from clara_cli.core.checkpoint import Loaded, LoadOptions, load, reads
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.core.finite import refuse_nonfinite_outputs
from clara_cli.core.placement import WHOLE, BackbonePlacement
from clara_cli.corpus.manifest import Identity
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.printable import shell_word
from clara_cli.records import Answer, Hit, Retelling, SearchResult, Task

_COMPARED = 5000  # passage ids looked through for one like a wrong one


class Clara:
    """One checkpoint over one corpus, or several of its memory space."""

    def __init__(self, loaded: Loaded, retriever: Retriever, *more: Retriever) -> None:
        self.loaded, self.retriever, self.corpus = loaded, retriever, retriever.corpus
        self.retrievers = (retriever, *more)
        self.passage_search = PassageSearch(self.retrievers)
        self.names = self.passage_search.names
        self.model, self.prompter = loaded.model, loaded.model.prompter
        for one in self.retrievers:
            refuse_mismatch(loaded, one.corpus)
        self.query_role = self.model.query_role
        self.answerer = Answerer(loaded, self.has_text, self._other)
        fingerprints = (loaded.info.fingerprint, loaded.info.older_fingerprint)
        self.familiar_text = read_familiar_text(loaded.path, *fingerprints)

    @classmethod
    def open(
        cls,
        corpus: str | Path | Sequence[str | Path],
        model: str | None = None,
        backbone: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        held: BackbonePlacement = WHOLE,
    ) -> Clara:
        """Open a corpus, or several, with the checkpoint the first one names (or `model`), and
        their indexes where they have any.

        Raises:
            ArtefactError: for a missing or damaged corpus, or a checkpoint of another memory space.
        """
        folders = [corpus] if isinstance(corpus, str | Path) else list(corpus)
        retrievers = [Retriever.open(Path(folder)) for folder in folders]
        first = retrievers[0].corpus
        named, ratio = named_model(first, model), first.manifest.identity.ratio
        loaded = load(LoadOptions(named, backbone, device, dtype, held, ratio, only_reads=True))
        return cls(loaded, *retrievers)

    @property
    def has_text(self) -> bool:
        """Whether every corpus kept its passages' text."""
        return self.passage_search.has_text

    def memory_tokens_for(self, ratio: int | None) -> int:
        """Memory tokens read per passage; a ratio higher than a corpus's reads fewer than are
        stored, and so do several corpora, each at the highest ratio among them.

        Raises:
            UsageError: for a ratio the checkpoint does not serve or below a corpus's.
        """
        least = min((r.corpus.manifest.identity for r in self.retrievers), key=_memory_tokens)
        if ratio is None:
            return least.memory_tokens
        memory_tokens = self.loaded.info.memory_tokens_for(ratio)
        if memory_tokens > least.memory_tokens:
            raise UsageError(
                f"--ratio {ratio}: the corpus was compressed at {least.ratio}",
                f"compress again with --ratio {ratio}, or ask at {least.ratio} or more",
            )
        return memory_tokens

    def query(self, question: str, memory_tokens: int) -> Tensor:
        """query_MD: the question in memory space.

        Raises:
            UsageError: when the question is longer than the query reasoner reads.
        """
        return self.queries([question], memory_tokens)[0]

    def queries(self, questions: Sequence[str], memory_tokens: int) -> Tensor:
        """query_BMD of several questions, in one batch. Raises ArtefactError where it is not
        finite."""
        rows = [self._question_row(question) for question in questions]
        with torch.inference_mode():
            query_BMD = self.model.encode(rows, self.query_role, memory_tokens).memory_BMD
        refuse_nonfinite_outputs(query_BMD, self.model.backbone.name, "memories of questions")
        return query_BMD

    def check_question(self, question: str) -> None:
        """Raise UsageError for a question that is no text, or longer than the query reasoner
        reads."""
        self._question_row(question)

    def _question_row(self, question: str) -> list[int]:
        refuse_odd_text(question)
        row = self.prompter.passage(question)
        full = len(row) >= self.prompter.max_passage + 3
        if full and row[-1] != self.prompter.tokenizer.eos_token_id:  # its end was cut off
            raise UsageError(
                f"the question {shortened(question)!r} has more than {self.prompter.max_passage} "
                "tokens, the longest this checkpoint reads",
                "ask it more briefly",
            )
        return row

    def ask(
        self,
        question: str,
        top_k: int | None = None,
        first_stage: FirstStage | None = None,
        candidates: int | None = None,
        max_new_tokens: int = 128,
        ratio: int | None = None,
        read: ReadMode | None = None,
        text_tokens: int = AskOptions.text_tokens,
        explain: bool = False,
        on_text: Callable[[str], None] | None = None,
        where: str | None = None,
    ) -> Answer:
        """Answer a question; greedy, so the same question gives the same answer. `on_text` is told
        each piece of it as it comes. `read` and `top_k` are the checkpoint's own where they are not
        given. See `AskOptions` for the rest."""
        reading = self.loaded.info.reading
        how = AskOptions(
            top_k=top_k or reading.passages_of(read or reading.mode),
            first_stage=first_stage,
            candidates=candidates,
            max_new_tokens=max_new_tokens,
            ratio=ratio,
            read=read or reading.mode,
            text_tokens=text_tokens,
            explain=explain,
            where=where,
        )
        return self.ask_all([question], how, on_text)[0]

    def ask_all(
        self,
        questions: Sequence[str],
        how: AskOptions,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answer several questions together, in their order."""
        return self.answer(self.find(questions, how), how, on_text)

    def find(self, questions: Sequence[str], how: AskOptions) -> list[FoundPassages]:
        """The passages of each question, found in every corpus and ranked together, with their
        memory."""
        for question in questions:
            self.check_question(question)
        memory_tokens = self.memory_tokens_for(how.ratio)
        rankings = self.passage_search.rank(questions, how, self.encoder(how.ratio))
        return [
            FoundPassages(
                question=ranking.question,
                hits=ranking.hits,
                memory_KMD=self.memory(ranking.hits, memory_tokens),
                query_MD=ranking.query_MD,
                seconds=ranking.seconds,
                searched=ranking.searched,
                word_weights=ranking.word_weights,
            )
            for ranking in rankings
        ]

    def search(self, question: str, how: AskOptions | None = None) -> SearchResult:
        """The passages of a question alone, each with its best sentence; nothing is generated."""
        return self.search_all([question], how or AskOptions())[0]

    def search_all(self, questions: Sequence[str], how: AskOptions) -> list[SearchResult]:
        """The passages of several questions, in their order."""
        return self.passage_search.passages(questions, how, self.encoder(how.ratio))

    def encoder(self, ratio: int | None) -> EncodeQuestions:
        """What gives questions their memory, at a ratio; raises UsageError for a question that the
        query reasoner cannot read."""
        memory_tokens = self.memory_tokens_for(ratio)

        def encode(questions: Sequence[str]) -> Tensor:
            for question in questions:
                self.check_question(question)
            return self.queries(questions, memory_tokens)

        return encode

    def memory(self, hits: Sequence[Hit], memory_tokens: int) -> Tensor:
        """memory_KMD of passages, wherever they are stored."""
        return self.passage_search.memory(hits, memory_tokens, self.corpus.manifest.identity.hidden)

    def answer(
        self,
        found: Sequence[FoundPassages],
        how: AskOptions,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Answer questions from passages already found; see `Answerer.answer`."""
        return self.answerer.answer(found, how, on_text)

    def reads_well(self, found: FoundPassages) -> bool:
        """Whether passages are like the text that the checkpoint has learned, as far as that was
        measured for it."""
        passages = [hit.passage for hit in found.hits]
        return self.familiar_text is None or self.familiar_text.has(self.model, passages)

    def retell(
        self,
        task: Task,
        passage_id: str,
        max_new_tokens: int = 128,
        ratio: int | None = None,
        instruction: int = 0,
    ) -> Retelling:
        """Write from the memory of one passage: a paraphrase, or its questions and answers.

        Raises:
            UsageError: when there is no such passage.
        """
        hit = self.passage(passage_id)
        (memory_MD,) = self.memory([hit], self.memory_tokens_for(ratio))
        return retell(self.model, task, hit.passage, memory_MD, max_new_tokens, instruction)

    def passage(self, passage_id: str) -> Hit:
        """The passage of that id, of the corpus named first where several have it.

        Raises:
            UsageError: when there is none, with the nearest ids.
        """
        known: list[str] = []
        for name, retriever in zip(self.names, self.retrievers, strict=True):
            for row, passage in enumerate(retriever.corpus.passages()):
                if passage.passage_id == passage_id:
                    return Hit(1, row, 1.0, passage, name)
                known.append(passage.passage_id)
        own = [one for one in known if one.startswith(f"{passage_id}#")]  # it is a document's id
        close = own[:3] or get_close_matches(passage_id, known[:_COMPARED]) or known[:1]
        where = ", ".join(one.corpus.name for one in self.retrievers)
        hint = f"did you mean {' or '.join(map(repr, close))}?"
        raise UsageError(f"no passage {passage_id!r} in {where}", hint)

    def _other(self, found: FoundPassages) -> Tensor:
        """The memory of one passage of the first corpus that was not found, the same one each time
        the question is asked; of none where every passage was."""
        taken = {hit.row for hit in found.hits if hit.corpus == self.names[0]}
        most = min(len(self.corpus), len(taken) + 1)
        drawn = random.Random(found.question).sample(range(len(self.corpus)), most)
        rows = [row for row in drawn if row not in taken][:1]
        return self.corpus.memory(rows, found.memory_KMD.shape[1])


def _memory_tokens(identity: Identity) -> int:
    return identity.memory_tokens


def named_model(corpus: Corpus, model: str | None) -> str:
    """The checkpoint to read a corpus with: the one given, else what the corpus names, else
    $CLARA_MODEL, else the bundled one that can be had."""
    made_by = corpus.manifest.identity.checkpoint
    return model or recorded_model(corpus.folder, made_by) or default_model()


def recorded_model(folder: Path, made_by: dict[str, Any]) -> str | None:
    """The checkpoint that a corpus names, None where it names none. A corpus cannot choose what is
    loaded beyond its own kind: one that lies in the corpus itself has to be given by the user.

    Raises:
        ArtefactError: for what is no name, and for one inside the corpus's own folder.
    """
    named = made_by.get("model")
    if named is None:
        return None
    place = f"{folder / 'manifest.json'}: key 'checkpoint.model'"
    if not isinstance(named, str) or not named:
        message = f"{place}: {reprlib.repr(named)}, not a checkpoint's name"
        raise ArtefactError(message, "name the checkpoint with --model")
    try:
        places = [Path(os.path.abspath(named)), Path(named).resolve()]  # a link leads elsewhere
    except (ValueError, OSError, RuntimeError):  # no path of this system: a NUL, links in a circle
        places = []
    inside = any(place.is_relative_to(folder.resolve()) for place in places)
    if inside and os.path.lexists(named):
        message = f"{place}: {named} lies in the corpus itself, which may not choose what is loaded"
        raise ArtefactError(message, f"if you trust it, add --model {shlex.quote(named)}")
    return named


def refuse_mismatch(loaded: Loaded, corpus: Corpus, option: str = "--model") -> None:
    """A corpus can be read only by the memory space it was made in; `option` is what names another
    checkpoint."""
    if not reads(loaded, corpus.manifest.identity.checkpoint["fingerprint"]):
        raise mismatch(corpus, loaded.name, loaded.info.fingerprint, option)


def mismatch(corpus: Corpus, name: str, fingerprint: str, option: str = "--model") -> ArtefactError:
    """The error of a corpus and a checkpoint of another memory space."""
    made_by = corpus.manifest.identity.checkpoint
    again = f"clara compress the documents again with --model {shell_word(name)}"
    try:
        recorded = recorded_model(corpus.folder, made_by)
    except ArtefactError:  # what it names is not to be loaded
        recorded = None
    named, use = "", again
    if recorded is not None:
        named, use = f" ({recorded})", f"use {option} {shell_word(recorded)}, or {again}"
    message = (
        f"{corpus.name} was compressed by checkpoint {made_by['fingerprint']}{named}, "
        f"{name} is {fingerprint}"
    )
    return ArtefactError(message, use)
