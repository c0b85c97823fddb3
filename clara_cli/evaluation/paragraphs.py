"""What a question may be answered from: paragraphs as given, and the passages they are cut into.

A paragraph keeps the id it was given by, however it is cut. Knows text and tokens, nothing of
memory or answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import CountTokens, model_text, split_document
from clara_cli.records import Document, PoolPassage, Question
from clara_cli.search.bm25 import BM25


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage as the model reads it: the id of the paragraph it was given in, the row its memory
    has, and the title that is the first line of its text, if there is one."""

    given: str
    text: str
    tokens: int
    row: int
    title: str = ""


@dataclass(frozen=True)
class Pool:
    """Passages in order; `whole` marks a corpus's worth of them, all its rows.

    `excluded` are the ids of paragraphs that the question is not to be given: they stay among the
    `pieces` of a whole corpus, whose index (of `shared`) serves every question, and a ranking of
    positions or rows becomes passages by `at_positions` and `at_rows`, which pass over them.
    """

    pieces: tuple[Piece, ...]
    whole: bool = False
    excluded: frozenset[str] = frozenset()
    shared: Pool | None = None

    def without(self, excluded: Iterable[str]) -> Pool:
        """The same passages for a question that is not to be given these paragraphs."""
        ids = frozenset(excluded)
        if not ids:
            return self
        if self.whole:
            return Pool(self.pieces, True, ids, self)
        return Pool(tuple(piece for piece in self.pieces if piece.given not in ids))

    @cached_property
    def spare(self) -> int:
        """How many more passages to rank than are wanted, so that enough stay."""
        counts = (self.shared or self)._counts
        return sum(counts[key] for key in self.excluded)

    def at_positions(self, positions: Iterable[int], count: int) -> tuple[Piece, ...]:
        """The first `count` passages of a ranking of positions in `pieces`."""
        ranked = (self.pieces[position] for position in positions)
        return tuple(piece for piece in ranked if piece.given not in self.excluded)[:count]

    def at_rows(self, rows: Iterable[int], count: int) -> tuple[Piece, ...]:
        """The first `count` passages of a ranking of rows; equal passages share a row."""
        by_row = (self.shared or self)._by_row
        ranked = (piece for row in rows for piece in by_row.get(row, ()))
        return tuple(piece for piece in ranked if piece.given not in self.excluded)[:count]

    def bm25(self, question: str, count: int) -> tuple[Piece, ...]:
        """The passages BM25 ranks highest, best first; fewer where too few share a word."""
        index = (self.shared or self)._bm25
        return self.at_positions(index.search(question, count + self.spare)[1], count)

    @cached_property
    def _bm25(self) -> BM25:
        return BM25.build(piece.text for piece in self.pieces)

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(piece.given for piece in self.pieces)

    @cached_property
    def _by_row(self) -> dict[int, list[Piece]]:
        by_row: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            by_row.setdefault(piece.row, []).append(piece)
        return by_row


@dataclass(frozen=True)
class Case:
    """A question with what it is answered from: `pool` for systems that choose, `given` for those
    that read what they get; `gold` are ids of paragraphs."""

    question: Question
    pool: Pool
    given: Pool
    gold: tuple[str, ...]


class Library:
    """Cuts paragraphs into passages as `clara compress` does. Equal passages share a row, rows
    are numbered in the order of first sight."""

    def __init__(self, max_tokens: int, count_tokens: CountTokens) -> None:
        self.texts: list[str] = []
        self._max_tokens, self._count_tokens = max_tokens, count_tokens
        self._rows: dict[str, int] = {}
        self._cut: dict[tuple[str, str], list[tuple[str, int, int]]] = {}

    def pool(self, paragraphs: Iterable[PoolPassage], *, whole: bool = False) -> Pool:
        """The passages of paragraphs, in order."""
        pieces = (piece for paragraph in paragraphs for piece in self._pieces(paragraph))
        return Pool(tuple(pieces), whole)

    def _pieces(self, paragraph: PoolPassage) -> list[Piece]:
        key = (paragraph.title, paragraph.text)
        if key not in self._cut:
            document = Document(paragraph.id, paragraph.text, paragraph.title)
            limit, count = self._max_tokens, self._count_tokens
            passages = split_document(document, limit, count, "sentences", with_title=True)
            texts = [(model_text(p.title, p.text or ""), p.tokens) for p in passages]
            self._cut[key] = [(text, tokens, self._row(text)) for text, tokens in texts]
        return [Piece(paragraph.id, *cut, paragraph.title) for cut in self._cut[key]]

    def _row(self, text: str) -> int:
        if text not in self._rows:
            self._rows[text] = len(self.texts)
            self.texts.append(text)
        return self._rows[text]


def stored_pool(corpus: Corpus, *, by_page: bool) -> Pool:
    """All passages of a compressed corpus under their documents' ids or, `by_page`, under their
    titles, for data that names gold pages where the corpus has several documents of a page."""
    passages = enumerate(corpus.passages())
    return Pool(
        tuple(
            Piece(
                (by_page and p.title) or p.document_id,
                model_text(p.title, p.text or ""),
                p.tokens,
                row,
                p.title,
            )
            for row, p in passages
        ),
        whole=True,
    )


def several_documents_a_title(corpus: Corpus) -> bool:
    """Whether two documents of a compressed corpus have one title."""
    owners: dict[str, str] = {}
    titled = ((p.title, p.document_id) for p in corpus.passages() if p.title)
    return any(owners.setdefault(title, document) != document for title, document in titled)


@dataclass(frozen=True)
class Collection:
    """All paragraphs of a dataset, each once, and the id each question's paragraphs have there."""

    paragraphs: tuple[PoolPassage, ...]
    kept_ids: bool

    def identify(self, paragraphs: Iterable[PoolPassage]) -> tuple[str, ...]:
        """Ids of these paragraphs in the collection, each once."""
        if self.kept_ids:
            return tuple(dict.fromkeys(p.id for p in paragraphs))
        return tuple(dict.fromkeys(self._by_content[p.title, p.text] for p in paragraphs))

    @cached_property
    def _by_content(self) -> dict[tuple[str, str], str]:
        return {(p.title, p.text): p.id for p in self.paragraphs}


def collect(questions: Sequence[Question], more: Sequence[PoolPassage]) -> Collection:
    """Every paragraph once. Ids stay where each names one text throughout; where the same id
    names different ones (positions in a pool do), all become positions in the collection."""
    every = [*more, *(p for question in questions for p in question.pool)]
    by_id: dict[str, tuple[str, str]] = {}
    if all(by_id.setdefault(p.id, (p.title, p.text)) == (p.title, p.text) for p in every):
        texts = ((key, content) for key, content in by_id.items())
        return Collection(tuple(PoolPassage(key, *content) for key, content in texts), True)
    contents = dict.fromkeys((p.title, p.text) for p in every)
    numbered = (PoolPassage(str(n), *content) for n, content in enumerate(contents))
    return Collection(tuple(numbered), False)
