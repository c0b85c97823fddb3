"""Corpora held open for questions: what `clara ask` answers with, and a conversation's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clara_cli.answering.answerer import Asking
from clara_cli.answering.followup import completed
from clara_cli.config import AskConfig
from clara_cli.engine import Clara
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import Answer, Report
from clara_cli.retrieval import Retriever


class Session:
    """Corpora held open, and a conversation over them; `top_k` and `ratio` may change between
    questions."""

    def __init__(self, clara: Clara, config: AskConfig, report: Report) -> None:
        self.clara, self.config, self._report = clara, config, report
        self.top_k, self.ratio = config.top_k, config.ratio
        self.said: list[Answer] = []

    @property
    def corpus_name(self) -> str:
        """The corpora as the user knows them."""
        return ", ".join(str(one.corpus.folder) for one in self.clara.retrievers)

    def read_at(self, ratio: int) -> None:
        """Read at another ratio from now on.

        Raises:
            UsageError: for one that checkpoint or corpus does not serve.
        """
        self.clara.slots(ratio)
        self.ratio = ratio

    def change_corpus(self, folders: list[Path]) -> None:
        """Ask other corpora from now on; on an error the present ones stay."""
        clara = Clara(self.clara.loaded, *(Retriever.open(folder) for folder in folders))
        refuse_unreadable(clara, self.config, self._report)
        clara.slots(self.ratio)
        self.clara = clara

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer one question, searching with what was said before where the question leans on
        it; `on_text` is told each piece of the answer as it comes."""
        answer = self._answer(question, self.said, on_text)
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
        self.said[-1] = self._answer(last.question, before, explain=True)
        return self.said[-1]

    def ask_all(self, questions: list[str]) -> list[Answer]:
        """Answer questions that have nothing to do with each other, in their order."""
        how = self._how()
        return self.clara.ask_all([asked(question) for question in questions], how)

    def _answer(
        self,
        question: str,
        before: list[Answer],
        on_text: Callable[[str], None] | None = None,
        explain: bool = False,
    ) -> Answer:
        """The answer to a question asked after others."""
        how = self._how(explain)
        whole = completed(asked(question), before[-1] if before else None)
        (found,) = self.clara.find([whole], how)
        (answer,) = self.clara.answer([replace(found, question=question)], how, on_text)
        return answer

    def _how(self, explain: bool = False) -> Asking:
        config = self.config
        return Asking(
            top_k=self.top_k,
            first_stage=None if config.first_stage == "auto" else config.first_stage,
            candidates=config.candidates,
            max_new_tokens=config.max_new_tokens,
            ratio=self.ratio,
            read=config.read,
            text_tokens=config.text_tokens,
            explain=explain or config.explain,
            where=config.where,
        )


def asked(question: str) -> str:
    """The question; raises UsageError for an empty one."""
    if not question.strip():
        raise UsageError("the question is empty", 'ask something: clara ask "Who ...?"')
    return question


def refuse_unreadable(clara: Clara, config: AskConfig, report: Report) -> None:
    """Corpora need passages; what a reader may want to know of them and the checkpoint is said."""
    for retriever in clara.retrievers:
        folder = retriever.corpus.folder
        if not len(retriever.corpus):
            raise ArtefactError(f"{folder}: no passages in it", "compress some documents")
        if not (folder / "index").exists() and not config.documents:
            report.note(f"{folder} has no index: every passage is scanned (clara index {folder})")
    if clara.query_role == "compressor" and config.task is None:
        stage = config.first_stage
        words = clara.has_text and stage in ("auto", "bm25")
        how = "found by their words (BM25)" if words else "ranked by the compressor reading it"
        if stage == "auto" and words:
            how += ", else by the compressor reading the question"
        report.note(f"this checkpoint has no query reasoner: passages are {how}")
    slots = clara.slots(config.ratio)
    if any(one.index and one.scans(slots) for one in clara.retrievers):
        report.note(f"a graph is of another ratio than {slots} memory tokens: memory is scanned")
