"""Corpora held open for questions: what `clara ask` answers and searches with, and a conversation's
memory.

`ClaraSession` answers from memory by a checkpoint; `PassageSession` finds passages, which a
language model may read as text, and loads a checkpoint only for a question that words do not find.
"""

from __future__ import annotations

import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from clara_cli.answering.answerer import FoundPassages
from clara_cli.answering.engine import Clara
from clara_cli.answering.followup import completed
from clara_cli.answering.llm_answerer import LLMAnswerer, LLMQuestion
from clara_cli.answering.passage_search import (
    AskOptions,
    EncodeQuestions,
    PassageSearch,
    refuse_odd_text,
)
from clara_cli.answering.retriever import INDEX, Retriever
from clara_cli.bundled import fetch_smol
from clara_cli.config import AskConfig
from clara_cli.core.checkpoint_info import ReadMode
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.printable import shell_word
from clara_cli.records import Answer, Report, SearchResult


class Session(ABC):
    """Corpora held open, and a conversation over them; `top_k` and `ratio` may change between
    questions."""

    def __init__(self, config: AskConfig, report: Report) -> None:
        self.config, self._report = config, report
        self.top_k, self.ratio = config.top_k or AskOptions.top_k, config.ratio
        self.read: ReadMode = config.read or AskOptions.read
        self.said: list[Answer] = []
        self._first_folders = [str(folder) for folder in config.corpus]

    @property
    @abstractmethod
    def passage_search(self) -> PassageSearch:
        """The corpora."""

    @property
    def corpus_name(self) -> str:
        """The corpora, or the documents asked instead, as the user named them."""
        folders = [one.corpus.name for one in self.passage_search.retrievers]
        if self.config.documents and folders == self._first_folders:
            return ", ".join(self.config.documents)
        return ", ".join(folders)

    def search(self, question: str) -> SearchResult:
        """The passages of a question alone, searched with what was said before where the question
        leans on it."""
        whole = completed(non_empty(question), self.said[-1] if self.said else None)
        (result,) = self.search_all([whole])
        return replace(result, question=question)

    def search_all(self, questions: list[str], top_k: int | None = None) -> list[SearchResult]:
        """The passages of questions that have nothing to do with each other, in their order."""
        how = self._how(top_k=top_k)
        questions = [non_empty(question) for question in questions]
        return self.passage_search.passages(questions, how, self._encoder(how))

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer one question, searching with what was said before where the question leans on
        it; `on_text` receives each piece of the answer as it comes."""
        answer = self.answer_after(question, self.said, on_text)
        self.said.append(answer)
        return answer

    def explain(self) -> Answer:
        """The last answer again, with the why.

        Raises:
            UsageError: before the first question.
        """
        if not self.said:
            raise UsageError("there is no answer yet", "ask a question first")
        *before, last = self.said
        self.said[-1] = self.answer_after(last.question, before, explain=True)
        return self.said[-1]

    @abstractmethod
    def ask_all(self, questions: list[str]) -> list[Answer]:
        """Answer questions that have nothing to do with each other, in their order."""

    @abstractmethod
    def check_question(self, question: str) -> None:
        """Raise UsageError for a question that cannot be read."""

    @abstractmethod
    def read_at(self, ratio: int) -> None:
        """Read at another ratio from now on; raises UsageError for one that is not served."""

    @abstractmethod
    def change_corpus(self, folders: list[Path]) -> None:
        """Ask other corpora from now on; on an error the present ones stay."""

    @abstractmethod
    def _encoder(self, how: AskOptions) -> EncodeQuestions:
        """What gives questions their memory."""

    @abstractmethod
    def answer_after(
        self,
        question: str,
        before: list[Answer],
        on_text: Callable[[str], None] | None = None,
        explain: bool = False,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """The answer to a question asked after others, of at most `max_new_tokens` (those of the
        options at most, and by default)."""

    def _how(
        self, explain: bool = False, top_k: int | None = None, max_new_tokens: int | None = None
    ) -> AskOptions:
        config = self.config
        longest = config.max_new_tokens
        return AskOptions(
            top_k=top_k or self.top_k,
            first_stage=None if config.first_stage == "auto" else config.first_stage,
            candidates=config.candidates,
            max_new_tokens=min(longest, max_new_tokens or longest),
            ratio=self.ratio,
            read=self.read,
            text_tokens=config.text_tokens,
            explain=explain or config.explain,
            where=config.where,
            abstain=config.abstain,
        )


class ClaraSession(Session):
    """A session that answers from memory, by a checkpoint."""

    def __init__(self, clara: Clara, config: AskConfig, report: Report) -> None:
        super().__init__(config, report)
        reading = clara.loaded.info.reading
        self.clara = clara
        self._warned = False
        self.read = config.read or reading.mode
        self.top_k = config.top_k or reading.passages_of(self.read)

    @property
    def passage_search(self) -> PassageSearch:
        """The corpora."""
        return self.clara.passage_search

    def read_at(self, ratio: int) -> None:
        """Read at another ratio from now on.

        Raises:
            UsageError: for one that checkpoint or corpus does not serve.
        """
        self.clara.memory_tokens_for(ratio)
        self.ratio = ratio

    def change_corpus(self, folders: list[Path]) -> None:
        """Ask other corpora from now on; on an error the present ones stay."""
        clara = Clara(self.clara.loaded, *(Retriever.open(folder) for folder in folders))
        refuse_unreadable(clara, self.config, self._report)
        clara.memory_tokens_for(self.ratio)
        self.clara = clara

    def check_question(self, question: str) -> None:
        """Raise UsageError for a question that cannot be read."""
        self.clara.check_question(question)

    def ask_all(self, questions: list[str]) -> list[Answer]:
        """Answer questions that have nothing to do with each other, in their order."""
        how = self._how()
        found = self.clara.find([non_empty(question) for question in questions], how)
        return self._answer(found, how)

    def _answer(
        self,
        found: list[FoundPassages],
        how: AskOptions,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """The answers from passages found; where those are unlike what the checkpoint can read,
        its answers say so, and the first time the report has the command that reads them."""
        unlike = [not self.clara.reads_well(one) for one in found]
        warning = f"these passages are unlike the text that {self.clara.loaded.name} has learned"
        if any(unlike) and not self._warned:
            self._warned = True
            question = found[unlike.index(True)].question
            self._report.warn(f"{warning}: {self._better_reader(question)}")
        answers = self.clara.answer(found, how, on_text)
        return [
            replace(answer, warnings=(warning,)) if unknown else answer
            for answer, unknown in zip(answers, unlike, strict=True)
        ]

    def _better_reader(self, question: str) -> str:
        """The command that answers a question from the same documents by a model that reads text,
        or shows passages where the documents are not there."""
        corpora = [retriever.corpus for retriever in self.clara.retrievers]
        parts = [part for corpus in corpora for part in corpus.manifest.parts]
        words = [takewhile(lambda word: not word.startswith("--"), part.inputs) for part in parts]
        documents = [word for part in words for word in part]
        if not documents or not all(Path(document).exists() for document in documents):
            folders = [word for corpus in corpora for word in ("--corpus", corpus.name)]
            return f"find them with {shlex.join(['clara', 'ask', '--search', question, *folders])}"
        ask = shlex.join(["clara", "ask", question, *documents, "--model", "smol"])
        return f"a model that reads text answers with {fetch_smol()}{ask}"

    def _encoder(self, how: AskOptions) -> EncodeQuestions:
        return self.clara.encoder(how.ratio)

    def answer_after(
        self,
        question: str,
        before: list[Answer],
        on_text: Callable[[str], None] | None = None,
        explain: bool = False,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """The answer to a question asked after others, read from memory."""
        how = self._how(explain, max_new_tokens=max_new_tokens)
        whole = completed(non_empty(question), before[-1] if before else None)
        (found,) = self.clara.find([whole], how)
        (answer,) = self._answer([replace(found, question=question)], how, on_text)
        return answer


class PassageSession(Session):
    """A session that finds passages; `answerer` reads them, and without one nothing is answered.
    `open_clara` loads the checkpoint of some corpora; it is called once a question needs one."""

    def __init__(
        self,
        search: PassageSearch,
        open_clara: Callable[[PassageSearch], Clara],
        answerer: LLMAnswerer | None,
        config: AskConfig,
        report: Report,
    ) -> None:
        super().__init__(config, report)
        self._search, self._open_clara, self._answerer = search, open_clara, answerer
        self._clara: Clara | None = None
        self._loading = threading.Lock()

    @property
    def passage_search(self) -> PassageSearch:
        """The corpora."""
        return self._search

    @property
    def clara(self) -> Clara:
        """The corpora with their checkpoint, loaded the first time it is asked for."""
        with self._loading:
            if self._clara is None:
                self._clara = self._open_clara(self._search)
            return self._clara

    def read_at(self, ratio: int) -> None:
        """Compare questions and passages at another ratio from now on."""
        self.clara.memory_tokens_for(ratio)
        self.ratio = ratio

    def change_corpus(self, folders: list[Path]) -> None:
        """Search other corpora from now on; on an error the present ones stay."""
        search = PassageSearch([Retriever.open(folder) for folder in folders])
        refuse_empty(search)
        self._search, self._clara = search, None

    def check_question(self, question: str) -> None:
        """Raise UsageError for a question that is no text."""
        refuse_odd_text(question)

    def ask_all(self, questions: list[str]) -> list[Answer]:
        """Answer questions that have nothing to do with each other, in their order."""
        answerer, how = self.answerer, self._how()
        rankings = self.passage_search.rank(
            [non_empty(question) for question in questions], how, self._encoder(how)
        )
        return answerer.answer([LLMQuestion(ranking) for ranking in rankings], how)

    @property
    def answerer(self) -> LLMAnswerer:
        """What reads the passages; raises UsageError where nothing does."""
        if self._answerer is None:
            raise UsageError("--search finds passages and answers nothing", "omit --search")
        return self._answerer

    def _encoder(self, how: AskOptions) -> EncodeQuestions:
        return lambda questions: self.clara.encoder(how.ratio)(questions)

    def answer_after(
        self,
        question: str,
        before: list[Answer],
        on_text: Callable[[str], None] | None = None,
        explain: bool = False,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """The answer of the language model to a question asked after others.

        Raises:
            UsageError: where there is no model, or memory is to explain what it read as text.
        """
        if explain:
            hint = "ask without --llm to see how memory matched"
            raise UsageError("a language model read the text: no memory explains it", hint)
        answerer, how = self.answerer, self._how(max_new_tokens=max_new_tokens)
        last = before[-1] if before else None
        whole = completed(non_empty(question), last)
        (ranking,) = self.passage_search.rank([whole], how, self._encoder(how))
        llm_question = LLMQuestion(
            replace(ranking, question=question), last if whole != question else None
        )
        return answerer.answer([llm_question], how, on_text)[0]


def non_empty(question: str) -> str:
    """The question; raises UsageError for an empty one."""
    if not question.strip():
        raise UsageError("the question is empty", "write a question")
    return question


def refuse_empty(search: PassageSearch) -> None:
    """Raise ArtefactError for a corpus without passages."""
    for retriever in search.retrievers:
        if not len(retriever.corpus):
            name = retriever.corpus.name
            raise ArtefactError(f"{name}: no passages in it", "compress some documents")


def refuse_unreadable(clara: Clara, config: AskConfig, report: Report) -> None:
    """Corpora need passages; what a reader may want to know of them and the checkpoint is said."""
    refuse_empty(clara.passage_search)
    for retriever in clara.retrievers:
        corpus = retriever.corpus
        why = "grew since it was indexed" if retriever.outgrown else "has no index"
        indexed = (corpus.folder / INDEX).exists() and not retriever.outgrown
        if not indexed and not config.documents:
            again = f"clara index {shell_word(corpus.name)}"
            report.note(f"{corpus.name} {why}: every passage is scanned ({again})")
    if clara.query_role == "compressor" and config.task is None:
        stage = config.first_stage
        words = clara.has_text and stage in ("auto", "bm25")
        how = "found by their words (BM25)" if words else "ranked by the compressor reading it"
        if stage == "auto" and words:
            how += ", else by the compressor reading the question"
        report.note(f"this checkpoint has no query reasoner: passages are {how}")
    memory_tokens = clara.memory_tokens_for(config.ratio)
    if any(one.index and one.scans(memory_tokens) for one in clara.retrievers):
        scanned = f"a graph is of another ratio than {memory_tokens} memory tokens"
        report.note(f"{scanned}: memory is scanned")
