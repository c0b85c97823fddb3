"""BM25: the formula by hand, words of any language, and nothing found where nothing is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.errors import ArtefactError
from clara_cli.search.bm25 import BM25, SIDECAR, TABLES, pooled_idf, words

TEXTS = ["the cat sat", "a dog barked", "", "the cat and the dog ran", "Cat"]


def lucene(texts: list[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """BM25 as Lucene has it, straight from the formula."""
    split = [words(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = [0.0] * len(texts)
    for word in set(words(question)):
        containing = sum(word in text for text in split)
        idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        for row, text in enumerate(split):
            count = text.count(word)
            if count:
                scores[row] += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
    return scores


@pytest.mark.parametrize("question", ["cat", "the dog", "CAT, dog?", "the the the"])
def test_scores_are_the_formula(question: str) -> None:
    scores, rows = BM25.build(TEXTS).search(question, 9)
    wanted = lucene(TEXTS, question)
    assert scores == pytest.approx([wanted[row] for row in rows], rel=1e-5)
    assert set(rows) == {row for row, score in enumerate(wanted) if score > 0}
    assert scores == sorted(scores, reverse=True)


def test_ties_go_to_the_lower_row_and_k_cuts() -> None:
    index = BM25.build(["x y"] * 50 + ["x x"])
    assert index.search("y", 4)[1] == [0, 1, 2, 3]
    assert index.search("x", 1)[1] == [50]


def test_nothing_to_find() -> None:
    for texts in ([], ["", "  "], TEXTS):
        index = BM25.build(texts)
        assert len(index) == len(texts)
        for question in ("", "?!", "zebra"):
            assert index.search(question, 5) == ([], [])


def test_words_of_many_languages() -> None:
    assert words("Café CAFE\u0301 — 3.14 x_1") == ["café", "café", "3", "14", "x_1"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("北京2008 ＡＢ") == ["北", "京", "2008", "ab"]
    assert words("Straße STRASSE") == ["strasse"] * 2
    assert words("Ёлка мороз") == ["ёлка", "мороз"]
    index = BM25.build(["东京是日本的首都", "北京是中国的首都", "Paris is in France"])
    assert index.search("北京在哪里", 3)[1][0] == 1


def test_saved_and_loaded(tmp_path: Path) -> None:
    index = BM25.build(TEXTS)
    size = index.save(tmp_path / "bm25", "c" * 64)
    files = [tmp_path / "bm25" / SIDECAR, *(tmp_path / "bm25").rglob(TABLES)]
    assert len(files) == 2 and len(list((tmp_path / "bm25").rglob("*"))) == 3
    assert size == sum(path.stat().st_size for path in files)
    loaded = BM25.load(tmp_path / "bm25", {5: "c" * 64})
    assert loaded is not None and len(loaded) == 5
    assert loaded.search("the cat", 9) == index.search("the cat", 9)
    with pytest.raises(ArtefactError, match="indexes corpus cccccccccccc, this corpus is dddd"):
        BM25.load(tmp_path / "bm25", {5: "d" * 64})
    files[1].write_bytes(b"")
    with pytest.raises(ArtefactError, match="damaged"):
        BM25.load(tmp_path / "bm25", {5: "c" * 64})
    assert BM25.load(tmp_path / "none", {0: ""}) is None
    BM25.build([]).save(tmp_path / "empty")
    assert BM25.load(tmp_path / "empty", {0: ""}).search("a", 1) == ([], [])


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("texts", lambda t: t + 5),
        ("texts", lambda t: t - 1),
        ("starts", lambda t: t[::-1].copy()),
        ("starts", lambda t: t * 2),
        ("starts", lambda t: t[:-1]),
        ("counts", lambda t: t - 1),
        ("counts", lambda t: t[:-1]),
        ("counts", lambda t: t[:, None]),
        ("lengths", lambda t: -t),
        ("lengths", lambda t: t[:-1]),
        ("starts", lambda t: t.astype(np.float32)),
    ],
)
def test_tables_that_fit_their_checksum_but_no_corpus_are_refused(tmp_path, table, change) -> None:
    index = BM25.build(TEXTS)
    index._tables[table] = change(index._tables[table])
    index.save(tmp_path, "c" * 64)
    with pytest.raises(ArtefactError, match=rf"{TABLES}: no (counts of 5 texts|tensors)|5 texts|4"):
        BM25.load(tmp_path, {5: "c" * 64})


def test_a_vocabulary_or_a_count_that_cannot_be_is_refused(tmp_path: Path) -> None:
    BM25.build(TEXTS).save(tmp_path, "c" * 64)
    with pytest.raises(ArtefactError, match="5 passages, the corpus has 6"):
        BM25.load(tmp_path, {6: "c" * 64})
    path = tmp_path / SIDECAR
    described = json.loads(path.read_text())
    for words_ in ([1, *described["vocabulary"][1:]], ["a"] * len(described["vocabulary"]), [[]]):
        path.write_text(json.dumps({**described, "vocabulary": words_}))
        with pytest.raises(ArtefactError, match="key 'vocabulary': "):
            BM25.load(tmp_path, {5: "c" * 64})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab é北", max_size=12), max_size=6), st.text(alphabet="ab é北"))
def test_any_texts_agree_with_the_formula(texts: list[str], question: str) -> None:
    scores, rows = BM25.build(texts).search(question, 3)
    wanted = lucene(texts, question) if any(words(text) for text in texts) else [0.0] * len(texts)
    assert scores == pytest.approx([wanted[row] for row in rows], rel=1e-4)
    assert len(rows) == min(3, sum(score > 0 for score in wanted))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab é北", max_size=12), max_size=6), st.data())
def test_an_index_that_grew_and_lost_texts_is_one_of_those_left(texts, data) -> None:
    """The idf and the mean length are those of the texts that are left; to the bit."""
    cut = data.draw(st.integers(0, len(texts)))
    rows = sorted(data.draw(st.sets(st.integers(0, max(0, len(texts) - 1)), max_size=len(texts))))
    rows = np.array(rows[: len(texts)], np.int64)
    grown = BM25.build(texts[:cut]).extended(texts[cut:])
    assert len(grown) == len(texts)
    left = [texts[row] for row in rows]
    placed = BM25.build(left).placed(rows, len(texts))
    question = data.draw(st.text(alphabet="ab é北"))
    wanted = BM25.build(left).search(question, 9)
    assert grown.kept(rows).search(question, 9) == wanted
    assert placed.kept(rows).search(question, 9) == wanted


def test_a_grown_index_is_saved_and_one_of_an_older_version_is_none(tmp_path: Path) -> None:
    grown = BM25.build(TEXTS[:2]).extended(TEXTS[2:])
    grown.save(tmp_path, "c" * 64)
    states = {2: "b" * 64, 5: "c" * 64}
    assert BM25.load(tmp_path, states).search("the cat", 9) == grown.search("the cat", 9)
    BM25.build(TEXTS[:2]).save(tmp_path, "b" * 64)  # of the earlier state
    assert len(BM25.load(tmp_path, states)) == 2
    described = json.loads((tmp_path / SIDECAR).read_text())
    (tmp_path / SIDECAR).write_text(json.dumps({**described, "version": 1}))
    assert BM25.load(tmp_path, states) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", min_size=4, max_size=4), min_size=2, max_size=12), st.data()
)
def test_indexes_of_parts_score_as_one_of_all(texts: list[str], data: st.DataObject) -> None:
    """With texts of one length, which leaves the mean length as it is."""
    texts = [" ".join(text) for text in texts]
    cut = data.draw(st.integers(0, len(texts)))
    parts = [BM25.build(texts[:cut]), BM25.build(texts[cut:])]
    question = data.draw(st.text(alphabet="abcd ", max_size=6))
    idf = pooled_idf(parts, question)
    scores, rows = BM25.build(texts).search(question, len(texts))
    together = {}
    for first, part in zip((0, cut), parts, strict=True):
        own = part.search(question, len(texts), None, idf)
        together |= {first + row: score for score, row in zip(*own, strict=True)}
    assert together == pytest.approx(dict(zip(rows, scores, strict=True)), rel=1e-4)
