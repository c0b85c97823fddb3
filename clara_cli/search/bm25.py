"""The words' first stage: BM25 over passages' text, by bm25s, for any language.

Letters: B texts, N passages found. Words are runs of letters, digits and marks, compatibility-
normalised and case-folded; scripts without spaces go character by character. No stemming, no stop
words: both would favour a language. Knows nothing of passages' memory.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from clara_cli.errors import ArtefactError
from clara_cli.search.errors import REBUILD, OtherCorpusError
from clara_cli.storage import versions
from clara_cli.storage.tensors import read_tensors, save_tensors
from clara_cli.storage.versions import Version

SIDECAR, TABLES = "bm25.json", "bm25.safetensors"
_ASCII = re.compile(r"\w+")
_FORMAT, _VERSION = "clara-bm25", 1
_DTYPES = ("torch.float32", "torch.int32", "torch.int64")
_FOUND_BY = ("data", "indices", "indptr")  # bm25s's sparse matrix of scores, a column a word
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
    """BM25 over texts; row r is the r-th text given to `build`."""

    def __init__(
        self, tables: dict[str, np.ndarray], vocabulary: dict[str, int], rows: int
    ) -> None:
        self._tables = tables
        self._vocabulary = vocabulary
        self._rows = rows

    @classmethod
    def build(cls, texts: Iterable[str]) -> BM25:
        """Count the words of each text (title and text together, one string a passage).
        No texts, or texts without words, give an index that finds nothing."""
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(w, len(vocabulary)) for w in words(text)] for text in texts]
        if not vocabulary:
            return cls({name: np.zeros(1, np.int32) for name in _FOUND_BY}, {}, len(ids))
        import bm25s

        model = bm25s.BM25(method="lucene")
        model.index((ids, dict(vocabulary)), create_empty_token=False, show_progress=False)
        tables = {name: np.asarray(model.scores[name]) for name in _FOUND_BY}
        return cls(tables, vocabulary, len(ids))

    def __len__(self) -> int:
        return self._rows

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
        scores_N = np.zeros(self._rows, np.float32)
        data, indices, _ = (self._tables[name] for name in _FOUND_BY)
        for word, where in self._postings(question).items():
            weights = data[where]
            if idf is not None:
                weights = weights * (idf[word] / inverse_frequency(self._rows, len(weights)))
            scores_N[indices[where]] += weights
        kept_N = scores_N > 0
        if rows is not None:
            kept_N &= np.isin(np.arange(self._rows), rows)
        sharing = np.flatnonzero(kept_N)
        order = sharing[np.argsort(-scores_N[sharing], kind="stable")][:k]
        return [float(score) for score in scores_N[order]], [int(row) for row in order]

    def frequencies(self, question: str) -> dict[str, int]:
        """How many texts hold each of the question's words, those that some text holds."""
        return {word: at.stop - at.start for word, at in self._postings(question).items()}

    def _postings(self, question: str) -> dict[str, slice]:
        """Where the tables list the texts of each known word."""
        indptr, postings = self._tables["indptr"], {}
        for word in dict.fromkeys(words(question)):
            column = self._vocabulary.get(word)
            if column is not None:
                postings[word] = slice(int(indptr[column]), int(indptr[column + 1]))
        return postings

    def save(self, root: Path, corpus_sha256: str = "", place: str = "") -> int:
        """Put the index in place of the one at `root / place`, at once; returns its bytes. Raises
        ClaraError; then the one before stays."""
        import torch

        tensors = {name: torch.from_numpy(table) for name, table in self._tables.items()}

        def fill(folder: Path) -> dict[str, Any]:
            encode = partial(save_tensors, tensors=tensors)
            return {
                "format": _FORMAT, "version": _VERSION, "rows": self._rows,
                "corpus_sha256": corpus_sha256, "vocabulary": list(self._vocabulary),
                "tables": versions.save_file(folder, TABLES, encode),
            }  # fmt: skip

        return versions.publish(root, place, SIDECAR, (TABLES,), fill)

    @classmethod
    def load(cls, folder: Path, corpus_sha256: str, rows: int) -> BM25 | None:
        """The saved index of a corpus of so many rows, None where there is none. Raises
        ArtefactError where it is damaged or of another corpus."""

        def use(version: Version) -> BM25:
            fields = version.fields
            if (indexed := fields.get("corpus_sha256", str)) != corpus_sha256:
                raise OtherCorpusError(fields.file, indexed, corpus_sha256)
            if (texts := fields.count("rows")) != rows:
                raise fields.wrong("rows", f"{texts} texts, the corpus has {rows}")
            listed = fields.list_of("vocabulary", str)
            vocabulary = {word: n for n, word in enumerate(listed)}
            if len(vocabulary) != len(listed):
                raise fields.wrong("vocabulary", "a word stands in it twice")
            path = version.file("tables", TABLES)
            stored = read_tensors(path, REBUILD)
            if not all(str(getattr(stored.get(n), "dtype", "")) in _DTYPES for n in _FOUND_BY):
                names, dtypes = ", ".join(_FOUND_BY), ", ".join(_DTYPES)
                raise ArtefactError(f"{path}: no tensors {names} of {dtypes}", REBUILD)
            tables = {name: stored[name].numpy() for name in _FOUND_BY}
            if not _whole(tables, rows, len(vocabulary)):
                raise ArtefactError(f"{path}: no scores of {rows} texts", REBUILD)
            return cls(tables, vocabulary, rows)

        return versions.read(folder, SIDECAR, (_FORMAT, _VERSION), REBUILD, use)


def inverse_frequency(texts: int, holding: int) -> float:
    """Lucene's idf of a word that `holding` of so many texts hold: the one in bm25s's scores."""
    return math.log1p((texts - holding + 0.5) / (holding + 0.5))


def pooled_idf(indexes: Sequence[BM25], question: str) -> dict[str, float]:
    """The idf of a question's words over the texts of several indexes taken together."""
    holding: Counter[str] = Counter()
    for index in indexes:
        holding.update(index.frequencies(question))
    texts = sum(map(len, indexes))
    return {word: inverse_frequency(texts, count) for word, count in holding.items()}


def _whole(tables: Mapping[str, np.ndarray], rows: int, words: int) -> bool:
    """Whether the tables are a matrix of finite scores with `rows` rows and a column a word."""
    data, indices, indptr = (tables[name] for name in _FOUND_BY)
    if any(table.ndim != 1 for table in (data, indices, indptr)) or len(indptr) != words + 1:
        return False
    if not all(np.issubdtype(table.dtype, np.integer) for table in (indices, indptr)):
        return False
    ordered = indptr[0] == 0 and (np.diff(indptr) >= 0).all() and indptr[-1] <= len(data)
    inside = (indices >= 0).all() and (indices < max(1, rows)).all()
    return bool(len(data) == len(indices) and ordered and inside and np.isfinite(data).all())
