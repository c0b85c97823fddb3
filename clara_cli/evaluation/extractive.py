"""The extractive baseline: no model chooses what is read, and it takes no more tokens than memory.

The sentences of the pool that share the most informative words with the question, by BM25 with
their passage's title, up to the tokens that the memory of as many passages takes. The strongest
cheap rival of compressed memory: what that adds must be more than this keeps. Knows text and
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clara_cli.documents.chunk import model_text, sentence_spans
from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.systems import Extract, PooledQuestion
from clara_cli.search.bm25 import BM25

CANDIDATES = 20  # passages of a whole corpus whose sentences are looked at

Offsets = Callable[[str], Sequence[tuple[int, int]]]
"""The (start, end) of each of the reader's tokens of a text."""


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence of the pool: its passage and its place there, by number."""

    passage: int
    place: int
    text: str


class PoolPicker:
    """Every passage of the pool; of a whole corpus the 20 best by BM25."""

    chooses = True

    def pick(self, batch: Sequence[PooledQuestion]) -> list[Sequence[Piece]]:
        """The passages to look for sentences in."""
        return [
            asked.pool.bm25(asked.question, CANDIDATES) if asked.pool.whole else asked.pool.pieces
            for asked in batch
        ]


class Extractive:
    """The best sentences of a question's passages within `budget` tokens a passage that memory
    would give (`top_k` of them at most). A passage's title stands before its sentences and counts;
    the best sentence is cut where it alone is longer than the budget."""

    asks = True

    def __init__(self, budget: int, top_k: int, offsets: Offsets) -> None:
        self._budget, self._top_k, self._offsets = budget, top_k, offsets

    def compress(self, question: str, pieces: Sequence[Piece]) -> list[Extract]:
        """What is kept of the passages, the one of the best sentence first."""
        budget = self._budget * min(self._top_k, len(pieces))
        ranked = rank_sentences(question, pieces)
        chosen = self._fitting(pieces, ranked, budget)
        while chosen:  # joined, sentences may take a token more than each alone
            extracts = [
                Extract((pieces[number],), text, self._count(text))
                for number, text in passage_texts(pieces, chosen)
            ]
            if sum(extract.tokens for extract in extracts) <= budget:
                return extracts
            chosen.pop()
        return self._cut(pieces[ranked[0].passage], ranked[0].text, budget) if ranked else []

    def _fitting(
        self, pieces: Sequence[Piece], ranked: Sequence[ScoredSentence], budget: int
    ) -> list[ScoredSentence]:
        """The sentences that fit one after the other, best first; none where the best does not."""
        chosen: list[ScoredSentence] = []
        left, titled = budget, set[int]()
        for sentence in ranked:
            tokens = self._count(sentence.text)
            if sentence.passage not in titled:
                tokens += self._count(pieces[sentence.passage].title)
            if tokens <= left:
                chosen.append(sentence)
                titled.add(sentence.passage)
                left -= tokens
            elif not chosen:
                break
        return chosen

    def _count(self, text: str) -> int:
        return len(self._offsets(text))

    def _cut(self, piece: Piece, sentence: str, budget: int) -> list[Extract]:
        """The beginning of a sentence that does not fit whole."""
        offsets = self._offsets(sentence)[:budget]
        text = sentence[: offsets[-1][1]] if offsets else ""
        return [Extract((piece,), text, len(offsets))] if text else []


def rank_sentences(question: str, pieces: Sequence[Piece]) -> list[ScoredSentence]:
    """The sentences of passages, best first by BM25 of title and sentence; then those that share no
    word with the question, those of the best passages first."""
    sentences = [s for number, piece in enumerate(pieces) for s in _sentences(number, piece)]
    texts = (model_text(pieces[s.passage].title, s.text) for s in sentences)
    matches = BM25.build(texts).search(question, len(sentences))[1]
    passages = list(dict.fromkeys(sentences[row].passage for row in matches))
    places = {number: place for place, number in enumerate(passages)}
    rest = [s for row, s in enumerate(sentences) if row not in set(matches)]
    rest.sort(key=lambda s: places.get(s.passage, len(places) + s.passage))
    return [*(sentences[row] for row in matches), *rest]


def _sentences(number: int, piece: Piece) -> Iterable[ScoredSentence]:
    body = piece.text.removeprefix(f"{piece.title}\n") if piece.title else piece.text
    for place, (start, end) in enumerate(sentence_spans(body)):
        yield ScoredSentence(number, place, body[start:end])


def passage_texts(
    pieces: Sequence[Piece], chosen: Sequence[ScoredSentence]
) -> list[tuple[int, str]]:
    """(passage, its title and chosen sentences in their order), in the order of best sentences."""
    texts = []
    for number in dict.fromkeys(sentence.passage for sentence in chosen):
        own = sorted((s for s in chosen if s.passage == number), key=lambda s: s.place)
        text = " ".join(sentence.text for sentence in own)
        texts.append((number, model_text(pieces[number].title, text)))
    return texts
