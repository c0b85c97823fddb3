"""Which passages each question comes with: gold, oracle, normal or corpus.

Fixed before any system answers, so that all of them get the same. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Literal

from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import model_text
from clara_cli.errors import DataError, UsageError
from clara_cli.evaluation.datasets import Dataset
from clara_cli.evaluation.pools import Case, Collection, Library, Pool, collect, stored_pool
from clara_cli.records import PoolPassage, Question
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
                "use --setting corpus or normal, or leave --corpus away",
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
        if self.setting == "corpus":
            given = Pool(self._everything.bm25(question.question, FIRST_STAGE))
            return Case(question, self._everything, given, self._gold(question))
        if self.setting == "normal" and self._stored is not None:
            pool = Pool(self._everything.bm25(question.question, FIRST_STAGE))
            return Case(question, pool, pool, self._gold(question))
        pool = self._library.pool(self.paragraphs(number))
        return Case(question, pool, pool, self._gold(question))

    def paragraphs(self, number: int) -> list[PoolPassage]:
        """The paragraphs the n-th question comes with, gold ones flagged (not of a corpus)."""
        question = self.questions[number]
        if self.setting != "normal":
            return [p for p in question.pool if p.gold or self.setting == "oracle"]
        gold, found = set(self._gold(question)), self._collection.paragraphs
        rows = self._paragraph_bm25.search(question.question, FIRST_STAGE)[1]
        return [dataclasses.replace(found[row], gold=found[row].id in gold) for row in rows]

    def _gold(self, question: Question) -> tuple[str, ...]:
        gold = [p for p in question.pool if p.gold]
        if self.setting in ("gold", "oracle"):
            return tuple(dict.fromkeys(p.id for p in gold))
        if self._stored is None:
            return self._collection.identify(gold)
        names = self._stored_names
        found = (names.get(model_text(p.title, p.text), p.id) for p in gold)
        return tuple(dict.fromkeys(found))

    @cached_property
    def donors(self) -> list[str]:
        """The first answer of every question of the dataset, each once."""
        return list(dict.fromkeys(q.answers[0] for q in self._dataset.questions if q.answers))

    @cached_property
    def _collection(self) -> Collection:
        return collect(self._dataset.questions, self._dataset.paragraphs)

    @cached_property
    def _paragraph_bm25(self) -> BM25:
        return BM25.build(model_text(p.title, p.text) for p in self._collection.paragraphs)

    @cached_property
    def _everything(self) -> Pool:
        if self._stored is not None:
            return stored_pool(self._stored)
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


def _check(
    dataset: Dataset, questions: tuple[Question, ...], setting: str, *, has_corpus: bool
) -> None:
    """Refuse a setting the dataset cannot be read in, naming the first question that shows it."""
    has_any = bool(dataset.paragraphs) or any(q.pool for q in dataset.questions)
    if setting in ("normal", "corpus"):
        if not has_corpus and not has_any:
            hint = "give a compressed corpus with --corpus DIR, or a dataset with paragraphs"
            raise DataError(f"{dataset.name}: its questions come without paragraphs", hint)
        return
    if setting == "oracle" and not dataset.pooled:
        what = f"{dataset.name}: its questions have no pools, only gold passages"
        raise DataError(what, "use --setting normal, corpus or gold")
    for question in questions:
        if not question.pool:
            what = f"{question.source}: question {question.id!r} has no paragraphs"
            raise DataError(what, "use --setting corpus with --corpus DIR")
        if setting == "gold" and not any(p.gold for p in question.pool):
            what = f"{question.source}: question {question.id!r} has no gold paragraph"
            raise DataError(what, "flag them (gold or pos_index), or use --setting oracle")
