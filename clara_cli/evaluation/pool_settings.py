"""Which passages each question comes with: gold, oracle, normal or corpus.

Fixed before any system answers, so that all of them get the same. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import html
from functools import cached_property
from typing import Literal

from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import model_text
from clara_cli.errors import DataError, UsageError
from clara_cli.evaluation.data.datasets import Dataset
from clara_cli.evaluation.paragraphs import (
    Case,
    Collection,
    Library,
    Pool,
    collect,
    several_documents_a_title,
    stored_pool,
)
from clara_cli.records import GoldName, PoolPassage, Question
from clara_cli.search.bm25 import BM25

Setting = Literal["gold", "oracle", "normal", "corpus"]
FIRST_STAGE = 20  # passages BM25 proposes in `normal`, and to systems that cannot read a corpus


class Cases:
    """The first `limit` questions of a dataset in one setting."""

    def __init__(
        self,
        dataset: Dataset,
        setting: Setting,
        limit: int | None,
        library: Library,
        stored: Corpus | None = None,
    ) -> None:
        if stored is not None and setting in ("gold", "oracle"):
            raise UsageError(
                f"--corpus is not read with --setting {setting}",
                "use --setting corpus or normal, or omit --corpus",
            )
        self.questions, self.setting = dataset.questions[:limit], setting
        self._dataset, self._library, self._stored = dataset, library, stored
        _check(dataset, self.questions, setting, has_corpus=stored is not None)
        if setting in ("normal", "corpus"):
            self._everything  # noqa: B018  (rows follow the collection, not the questions)

    def __len__(self) -> int:
        return len(self.questions)

    def case(self, number: int) -> Case:
        """The n-th question with its passages."""
        question = self.questions[number]
        if self.setting == "corpus" or (self.setting == "normal" and self._stored is not None):
            everything = self._everything.without(self._own(question))
            first_stage = Pool(everything.bm25(question.question, FIRST_STAGE))
            pool = everything if self.setting == "corpus" else first_stage
            return Case(question, pool, first_stage, self._gold(question))
        pool = self._library.pool(self.paragraphs(number))
        return Case(question, pool, pool, self._gold(question))

    def paragraphs(self, number: int) -> list[PoolPassage]:
        """The paragraphs the n-th question comes with, gold ones flagged (not of a corpus)."""
        question = self.questions[number]
        if self.setting != "normal":
            pool = (p for p in question.pool if p.gold or self.setting == "oracle")
            return [p for p in pool if p.id != question.own_passage]
        gold, own = set(self._gold(question)), set(self._own(question))
        rows = self._paragraph_bm25.search(question.question, FIRST_STAGE + len(own))[1]
        ranked = (self._collection.paragraphs[row] for row in rows)
        kept = [p for p in ranked if p.id not in own][:FIRST_STAGE]
        return [dataclasses.replace(p, gold=p.id in gold) for p in kept]

    def _gold(self, question: Question) -> tuple[str, ...]:
        """Ids of the gold paragraphs, those named without a text as well."""
        gold = [p for p in question.pool if p.gold]
        if self.setting in ("gold", "oracle"):
            ids = [p.id for p in gold]
        elif self._stored is None:
            ids = list(self._collection.identify(gold))
        else:
            ids = [self._stored_id(p) for p in gold]
        return tuple(dict.fromkeys([*ids, *map(self._named, question.named_gold)]))

    def _named(self, name: GoldName) -> str:
        """The id of a gold paragraph that is named: that of the corpus's where it has it, else one
        that no paragraph has."""
        if self.setting in ("normal", "corpus"):
            if name.id and name.id in self._ids:
                return name.id
            if (page := page_title(name.title)) in self._titles:
                return self._titles[page]
        return f"title:{name.title}" if name.title else name.id

    def _own(self, question: Question) -> tuple[str, ...]:
        """The id, in the corpus searched, of the passage that is the question itself."""
        if question.own_passage is None:
            return ()
        if self._stored is None:
            return (question.own_passage,)
        return (self._stored_id(self._given_passages[question.own_passage]),)

    def _stored_id(self, passage: PoolPassage) -> str:
        """What a stored corpus calls a passage, found by its text."""
        return self._stored_names.get(model_text(passage.title, passage.text), passage.id)

    @cached_property
    def donors(self) -> list[str]:
        """The first answer of every question of the dataset, each once."""
        return list(dict.fromkeys(q.answers[0] for q in self._dataset.questions if q.answers))

    @cached_property
    def _collection(self) -> Collection:
        return collect(self._dataset.questions, self._dataset.paragraphs)

    @cached_property
    def _given_passages(self) -> dict[str, PoolPassage]:
        return {p.id: p for p in self._dataset.paragraphs}

    @cached_property
    def _ids(self) -> set[str]:
        """Ids of everything searched."""
        if self._stored is not None:
            return {piece.given for piece in self._everything.pieces}
        return {p.id for p in self._collection.paragraphs} if self._collection.kept_ids else set()

    @cached_property
    def _titles(self) -> dict[str, str]:
        """The id of what has each title, in everything searched; the first where several do."""
        if self._stored is None:
            titled = [(p.title, p.id) for p in self._collection.paragraphs]
        elif self._by_page:
            titled = [(p.title, p.title) for p in self._stored.passages()]
        else:
            titled = [(p.title, p.document_id) for p in self._stored.passages()]
        return {page_title(title): key for title, key in reversed(titled) if title}

    @cached_property
    def _by_page(self) -> bool:
        """Whether a stored corpus is read by page: gold is named by title, and it has several
        documents of one title."""
        named = any(name.title for q in self._dataset.questions for name in q.named_gold)
        return named and self._stored is not None and several_documents_a_title(self._stored)

    @cached_property
    def _paragraph_bm25(self) -> BM25:
        return BM25.build(model_text(p.title, p.text) for p in self._collection.paragraphs)

    @cached_property
    def _everything(self) -> Pool:
        if self._stored is not None:
            return stored_pool(self._stored, by_page=self._by_page)
        return self._library.pool(self._collection.paragraphs, whole=True)

    @cached_property
    def _stored_names(self) -> dict[str, str]:
        """Document ids of a stored corpus by the text of passages that are whole paragraphs."""
        return {piece.text: piece.given for piece in reversed(self._everything.pieces)}

    @cached_property
    def unknown_gold(self) -> int:
        """Gold paragraphs of these questions that a stored corpus does not hold."""
        if self._stored is None:
            return 0
        held = {piece.given for piece in self._everything.pieces}
        return sum(name not in held for q in self.questions for name in self._gold(q))


def page_title(title: str) -> str:
    """A page's title as data sets that write it in different ways agree on it."""
    return html.unescape(title).replace("_", " ").strip()


def _check(
    dataset: Dataset, questions: tuple[Question, ...], setting: str, *, has_corpus: bool
) -> None:
    """Refuse a setting the dataset cannot be read in, naming the first question that shows it."""
    has_any = bool(dataset.paragraphs) or any(q.pool for q in dataset.questions)
    if setting in ("normal", "corpus"):
        if not has_corpus and not has_any:
            hint = "give --corpus a folder made by clara compress, or a data set with paragraphs"
            raise DataError(f"{dataset.name}: its questions come without paragraphs", hint)
        return
    if setting == "oracle" and not dataset.pooled:
        what = f"{dataset.name}: its questions have no pools, only gold passages"
        raise DataError(what, "use --setting normal, corpus or gold")
    for question in questions:
        if not question.pool and not dataset.lists_pools:
            what = f"{question.source}: question {question.id!r} has no paragraphs"
            raise DataError(
                what, "use --setting corpus, and give --corpus a folder made by clara compress"
            )
        if setting == "gold" and not (any(p.gold for p in question.pool) or question.named_gold):
            what = f"{question.source}: question {question.id!r} has no gold paragraph"
            raise DataError(what, "flag them (gold or pos_index), or use --setting oracle")
