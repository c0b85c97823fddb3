"""The words' first stage: BM25 over passages' text, for any language.

How often each word stands in each text is kept, not its score: what a word is worth depends on all
texts, and these come and go. Letters: N texts, P pairs of a word and a text that holds it. Words
are runs of letters, digits and marks, compatibility-normalised and case-folded; scripts without
spaces go character by character. No stemming, no stop words: both would favour a language. Knows
nothing of passages' memory.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from clara_cli.errors import ArtefactError
from clara_cli.search.errors import REBUILD, refuse_other_corpus
from clara_cli.storage import versions
from clara_cli.storage.tensors import read_tensors, save_tensors
from clara_cli.storage.versions import Version

SIDECAR, TABLES = "bm25.json", "bm25.safetensors"
_ASCII = re.compile(r"\w+")
_FORM = ("clara-bm25", 2)
_OLDER = (1,)  # scores, of bm25s
# counts_P in texts_P, those of word w at starts[w]:starts[w + 1]; lengths_N in words
_TABLES = ("counts", "texts", "starts", "lengths")
_DTYPES = ("torch.int32", "torch.int64")
_K1, _B = 1.5, 0.75  # how soon more of a word counts no more, and how much length counts
# Han, kana, Thai, Lao, Myanmar, Khmer: no spaces between words.
_SPACELESS = (
    "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff"
    "\\uf900-\\ufaff\\U00020000-\\U0003ffff"
)


def words(text: str) -> list[str]:
    """The words BM25 compares, in order."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return (_ASCII if text.isascii() else _pattern()).findall(text)


@cache
def _pattern() -> re.Pattern[str]:
    """A word: one character of a script without spaces, or a run of others; combining marks
    belong to the character before, which Python's \\w alone does not say."""
    marks = "".join(
        re.escape(chr(code))
        for code in range(0x10000)
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    return re.compile(rf"[{_SPACELESS}][{marks}]*|(?:(?![{_SPACELESS}])[\w{marks}])+")


class BM25:
    """BM25 (Lucene's) over texts; row r is the r-th text given to `build`."""

    def __init__(self, tables: dict[str, np.ndarray], vocabulary: dict[str, int]) -> None:
        self._tables, self._vocabulary = tables, vocabulary

    @classmethod
    def build(cls, texts: Iterable[str]) -> BM25:
        """Count the words of each text (title and text together, one string a passage).
        No texts, or texts without words, give an index that finds nothing."""
        vocabulary: dict[str, int] = {}
        return cls(_counted(texts, vocabulary), vocabulary)

    def extended(self, texts: Iterable[str]) -> BM25:
        """The index with more texts behind those it has."""
        vocabulary = dict(self._vocabulary)
        more = _counted(texts, vocabulary)
        words_P = np.concatenate([_words_of(self._tables), _words_of(more)])
        texts_P = np.concatenate([self._tables["texts"], more["texts"] + len(self)])
        counts_P = np.concatenate([self._tables["counts"], more["counts"]])
        lengths_N = np.concatenate([self._tables["lengths"], more["lengths"]])
        order_P = np.argsort(words_P, kind="stable")
        tables = _tables(words_P[order_P], texts_P[order_P], counts_P[order_P], lengths_N)
        return BM25(_widened(tables, len(vocabulary)), vocabulary)

    def kept(self, rows: np.ndarray) -> BM25:
        """The index of some of its texts alone, sorted rows: they are numbered anew."""
        new_N = np.full(len(self), -1)
        new_N[rows] = np.arange(len(rows))
        texts_P = new_N[self._tables["texts"]]
        kept_P = texts_P >= 0
        words_P, counts_P = _words_of(self._tables)[kept_P], self._tables["counts"][kept_P]
        tables = _tables(words_P, texts_P[kept_P], counts_P, self._tables["lengths"][rows])
        return BM25(_widened(tables, len(self._vocabulary)), self._vocabulary)

    def placed(self, rows: np.ndarray, total: int) -> BM25:
        """The index with its texts at these sorted rows of `total`; the others are empty."""
        lengths_N = np.zeros(total, np.int32)
        lengths_N[rows] = self._tables["lengths"]
        texts_P = rows[self._tables["texts"]].astype(np.int32)
        return BM25({**self._tables, "texts": texts_P, "lengths": lengths_N}, self._vocabulary)

    def __len__(self) -> int:
        return len(self._tables["lengths"])

    def search(
        self,
        question: str,
        k: int,
        rows: Sequence[int] | None = None,
        idf: Mapping[str, float] | None = None,
    ) -> tuple[list[float], list[int]]:
        """The k best rows for a question and their scores, best first, ties to the lower row.
        Only rows that share a word with it: fewer than k, or none, may come back. A word that
        the question repeats counts once. `rows` leaves out all others; scores stay as they are.
        `idf` (`pooled_idf`) takes the place of each word's own, so that scores of several indexes
        compare."""
        lengths_N = self._tables["lengths"]
        scores_N, mean = np.zeros(len(self)), max(1e-9, float(lengths_N.mean() if len(self) else 0))
        for word, where in self._postings(question).items():
            texts_P, counts_P = self._tables["texts"][where], self._tables["counts"][where]
            worth = idf[word] if idf else inverse_frequency(len(self), len(texts_P))
            norm_P = _K1 * (1 - _B + _B * lengths_N[texts_P] / mean)
            scores_N[texts_P] += worth * counts_P / (counts_P + norm_P)
        scores_N = scores_N.astype(np.float32)
        kept_N = scores_N > 0
        if rows is not None:
            kept_N &= np.isin(np.arange(len(self)), rows)
        sharing = np.flatnonzero(kept_N)
        order = sharing[np.argsort(-scores_N[sharing], kind="stable")][:k]
        return [float(score) for score in scores_N[order]], [int(row) for row in order]

    def frequencies(self, question: str) -> dict[str, int]:
        """How many texts hold each of the question's words, those that some text holds."""
        return {word: at.stop - at.start for word, at in self._postings(question).items()}

    def _postings(self, question: str) -> dict[str, slice]:
        """Where the tables list the texts of each known word, those that some text holds."""
        starts, postings = self._tables["starts"], {}
        for word in dict.fromkeys(words(question)):
            number = self._vocabulary.get(word)
            if number is not None and starts[number] < starts[number + 1]:
                postings[word] = slice(int(starts[number]), int(starts[number + 1]))
        return postings

    def save(self, root: Path, corpus_sha256: str = "", place: str = "") -> int:
        """Put the index in place of the one at `root / place`, at once; returns its bytes. Raises
        ClaraError; then the one before stays."""
        import torch

        tensors = {name: torch.from_numpy(table) for name, table in self._tables.items()}

        def fill(folder: Path) -> dict[str, Any]:
            encode = partial(save_tensors, tensors=tensors)
            return {
                "format": _FORM[0], "version": _FORM[1], "rows": len(self),
                "corpus_sha256": corpus_sha256, "vocabulary": list(self._vocabulary),
                "tables": versions.save_file(folder, TABLES, encode),
            }  # fmt: skip

        return versions.publish(root, place, SIDECAR, (TABLES,), fill)

    @classmethod
    def load(cls, folder: Path, states: Mapping[int, str]) -> BM25 | None:
        """The saved index of a corpus that had these `states` (fingerprints by rows), None where
        there is none of this version. Raises ArtefactError where it is damaged or of another
        corpus."""

        def use(version: Version) -> BM25:
            fields = version.fields
            rows = refuse_other_corpus(fields, states)
            listed = fields.list_of("vocabulary", str)
            vocabulary = {word: n for n, word in enumerate(listed)}
            if len(vocabulary) != len(listed):
                raise fields.wrong("vocabulary", "a word stands in it twice")
            path = version.file("tables", TABLES)
            stored = read_tensors(path, REBUILD)
            if not all(str(getattr(stored.get(n), "dtype", "")) in _DTYPES for n in _TABLES):
                names, dtypes = ", ".join(_TABLES), ", ".join(_DTYPES)
                raise ArtefactError(f"{path}: no tensors {names} of {dtypes}", REBUILD)
            tables = {name: stored[name].numpy() for name in _TABLES}
            if not _whole(tables, rows, len(vocabulary)):
                raise ArtefactError(f"{path}: no counts of {rows} texts", REBUILD)
            return cls(tables, vocabulary)

        return versions.read(folder, SIDECAR, _FORM, REBUILD, use, _OLDER)


def _counted(texts: Iterable[str], vocabulary: dict[str, int]) -> dict[str, np.ndarray]:
    """The tables of texts; words that are not in the vocabulary come into it."""
    ids, lengths = array("i"), array("i")
    for text in texts:
        text_words = words(text)
        ids.extend(vocabulary.setdefault(word, len(vocabulary)) for word in text_words)
        lengths.append(len(text_words))
    lengths_N = np.array(lengths, np.int32)
    text_of = np.repeat(np.arange(len(lengths_N)), lengths_N)
    pairs, counts_P = np.unique(
        np.array(ids, np.int64) * len(lengths_N) + text_of, return_counts=True
    )
    words_P, texts_P = np.divmod(pairs, max(1, len(lengths_N)))
    return _widened(_tables(words_P, texts_P, counts_P, lengths_N), len(vocabulary))


def _tables(
    words_P: np.ndarray, texts_P: np.ndarray, counts_P: np.ndarray, lengths_N: np.ndarray
) -> dict[str, np.ndarray]:
    """Tables from pairs in the order of their words; `starts` up to the last word that comes."""
    return {
        "counts": counts_P.astype(np.int32),
        "texts": texts_P.astype(np.int32),
        "starts": np.concatenate([[0], np.cumsum(np.bincount(words_P))]).astype(np.int64),
        "lengths": lengths_N.astype(np.int32),
    }


def _widened(tables: dict[str, np.ndarray], words: int) -> dict[str, np.ndarray]:
    """The same tables for a vocabulary of so many words."""
    starts = tables["starts"]
    last = np.full(words + 1 - len(starts), starts[-1])
    return {**tables, "starts": np.concatenate([starts, last]).astype(np.int64)}


def _words_of(tables: Mapping[str, np.ndarray]) -> np.ndarray:
    """The word of each pair [P]."""
    return np.repeat(np.arange(len(tables["starts"]) - 1), np.diff(tables["starts"]))


def inverse_frequency(texts: int, holding: int) -> float:
    """Lucene's idf of a word that `holding` of so many texts hold."""
    return math.log1p((texts - holding + 0.5) / (holding + 0.5))


def pooled_idf(indexes: Sequence[BM25], question: str) -> dict[str, float]:
    """The idf of a question's words over the texts of several indexes taken together."""
    holding: Counter[str] = Counter()
    for index in indexes:
        holding.update(index.frequencies(question))
    texts = sum(map(len, indexes))
    return {word: inverse_frequency(texts, count) for word, count in holding.items()}


def _whole(tables: Mapping[str, np.ndarray], rows: int, words: int) -> bool:
    """Whether the tables list, for each word, texts of `rows` with counts of at least one."""
    counts, texts, starts, lengths = (tables[name] for name in _TABLES)
    if any(table.ndim != 1 for table in tables.values()) or len(starts) != words + 1:
        return False
    ordered = starts[0] == 0 and (np.diff(starts) >= 0).all() and starts[-1] == len(texts)
    inside = (texts >= 0).all() and (texts < max(1, rows)).all() and (counts > 0).all()
    fits = len(counts) == len(texts) and len(lengths) == rows and (lengths >= 0).all()
    return bool(ordered and inside and fits)
