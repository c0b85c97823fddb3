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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clara_cli.errors import ArtefactError
from clara_cli.search import sidecar

SIDECAR, TABLES = "bm25.json", "bm25.safetensors"
_ASCII = re.compile(r"\w+")
_FORMAT, _VERSION = "clara-bm25", 1
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
            found = data[where]
            if idf is not None:
                found = found * (idf[word] / inverse_frequency(self._rows, len(found)))
            scores_N[indices[where]] += found
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
        indptr, found = self._tables["indptr"], {}
        for word in dict.fromkeys(words(question)):
            column = self._vocabulary.get(word)
            if column is not None:
                found[word] = slice(int(indptr[column]), int(indptr[column + 1]))
        return found

    def save(self, folder: Path, corpus_sha256: str = "") -> int:
        """Write the index, its description last; returns its bytes. Raises ClaraError."""
        from safetensors.numpy import save

        path = folder / SIDECAR
        with sidecar.writing(folder):
            path.unlink(missing_ok=True)
            encoded = save(self._tables)
            tables = sidecar.save_file(folder / TABLES, lambda n: Path(n).write_bytes(encoded))
            described: dict[str, Any] = {
                "format": _FORMAT, "version": _VERSION, "rows": self._rows, "tables": tables,
                "corpus_sha256": corpus_sha256, "vocabulary": list(self._vocabulary),
            }  # fmt: skip
            sidecar.save_json(path, described)
            return int(tables["bytes"] + path.stat().st_size)

    @classmethod
    def load(cls, folder: Path, corpus_sha256: str, rows: int) -> BM25 | None:
        """The saved index of a corpus of so many rows, None where there is none. Raises
        ArtefactError where it is damaged or of another corpus."""
        path = folder / SIDECAR
        described = sidecar.read_json(path, _FORMAT, _VERSION)
        if described is None:
            return None
        found = sidecar.field(path, described, "corpus_sha256", str)
        if found != corpus_sha256:
            message = f"{path} indexes corpus {found[:12]}, this corpus is {corpus_sha256[:12]}"
            raise ArtefactError(message, sidecar.REBUILD)
        if sidecar.field(path, described, "rows", int) != rows:
            message = f"{path}: {described['rows']} texts, the corpus has {rows}"
            raise ArtefactError(message, sidecar.REBUILD)
        listed = sidecar.field(path, described, "vocabulary", list)
        vocabulary = {word: n for n, word in enumerate(listed) if isinstance(word, str)}
        if len(vocabulary) != len(listed):
            raise ArtefactError(f"{path}: key 'vocabulary' is no list of words", sidecar.REBUILD)
        tables_path = sidecar.check_file(folder, path, described.get("tables"), TABLES)
        tables = _load_tables(tables_path)
        if not _whole(tables, rows, len(vocabulary)):
            raise ArtefactError(f"{tables_path}: no scores of {rows} texts", sidecar.REBUILD)
        return cls(tables, vocabulary, rows)


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


def _load_tables(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tables = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: {error}", sidecar.REBUILD) from error
    if not set(_FOUND_BY) <= tables.keys():
        raise ArtefactError(f"{path}: no tensors {', '.join(_FOUND_BY)}", sidecar.REBUILD)
    return tables


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
