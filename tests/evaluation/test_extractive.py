"""The extractive baseline: the best sentences, within the tokens that memory takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.mayors import MAYORS, question, sentence, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.documents.chunk import model_text
from clara_cli.evaluation.extractive import Extractive, PoolPicker, rank_sentences
from clara_cli.evaluation.paragraphs import Piece, Pool
from clara_cli.evaluation.systems import PooledQuestion


def words(text: str) -> list[tuple[int, int]]:
    """Tokens that are words."""
    spans, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        spans.append((start, at))
    return spans


def piece(number: int, text: str, title: str = "") -> Piece:
    whole = model_text(title, text)
    return Piece(f"p{number}", whole, len(words(whole)), number, title)


PIECES = [
    piece(0, "The town is old. Its mayor is Ann Lee. It has a port.", "Elmgate"),
    piece(1, "The town is new. Its mayor is Max Orme. It has a mill.", "Quarrel"),
    piece(2, "Bees make honey in summer. They sleep in winter."),
]


def kept(budget: int, asked: str, top_k: int = 5, pieces: list[Piece] = PIECES) -> dict[str, str]:
    extracts = Extractive(budget, top_k, words).compress(asked, pieces)
    assert all(extract.tokens == len(words(extract.text)) for extract in extracts)
    return {extract.pieces[0].given: extract.text for extract in extracts}


def test_the_sentence_of_the_passage_asked_about_is_kept_with_its_title() -> None:
    """Six words under a title of one: the budget of three passages at two words a passage... is
    six, at three it is nine."""
    assert kept(3, "Who is mayor of Quarrel?") == {"p1": "Quarrel\nIts mayor is Max Orme."}


def test_a_budget_for_everything_keeps_everything() -> None:
    texts = kept(50, "Who is mayor of Quarrel?")
    assert texts == {p.given: p.text for p in PIECES}
    assert next(iter(texts)) == "p1"  # the passage of the best sentence is read first


def test_what_is_kept_stands_in_the_order_of_its_passage() -> None:
    assert kept(5, "Has Elmgate a port, and is Elmgate old?")["p0"] == (
        "Elmgate\nThe town is old. It has a port."
    )


def test_a_best_sentence_longer_than_the_budget_is_cut() -> None:
    assert kept(1, "Who makes honey in summer, bees?", top_k=3) == {"p2": "Bees make honey"}


def test_top_k_bounds_the_budget_as_it_bounds_memory() -> None:
    """Twenty passages, of which memory would give two."""
    many = [piece(n, f"Bees number {n} make honey.") for n in range(20)]
    texts = kept(5, "Which bees make honey?", top_k=2, pieces=many)
    assert sum(len(words(text)) for text in texts.values()) == 10


def test_nothing_is_kept_of_nothing() -> None:
    assert kept(9, "Who?", pieces=[]) == {}
    assert kept(9, "Who?", pieces=[piece(0, "  ")]) == {}


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.text(alphabet="ab .\n", max_size=40), max_size=6),
    st.text(alphabet="ab ", min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_the_budget_is_never_exceeded(
    texts: list[str], asked: str, budget: int, top_k: int
) -> None:
    pieces = [piece(n, text, "a title" if n % 2 else "") for n, text in enumerate(texts)]
    extracts = Extractive(budget, top_k, words).compress(asked, pieces)
    assert sum(e.tokens for e in extracts) <= budget * min(top_k, len(pieces))
    ranked = rank_sentences(asked, pieces)
    assert len(set(ranked)) == len(ranked)


def test_a_whole_corpus_is_looked_through_by_bm25_first() -> None:
    many = [piece(n, f"Bees number {n} make honey.") for n in range(60)]
    asked = PooledQuestion("What of bees number 41?", Pool(tuple(many), whole=True))
    (picked,) = PoolPicker().pick([asked])
    assert (len(picked), picked[0].given) == (20, "p41")
    (left,) = PoolPicker().pick([PooledQuestion(asked.question, asked.pool.without({"p41"}))])
    assert (len(left), "p41" in {p.given for p in left}) == (20, False)


@pytest.mark.parametrize("setting", ["oracle", "corpus"])
def test_a_row_a_ratio_with_no_more_context_than_memory(
    setting: str, mayors: Path, checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    options = {"model": str(checkpoint), "device": "cpu", "dtype": "float32", "top_k": 3}
    options |= {"system": "clara,extractive", "ratio": "4,16", "max_new_tokens": 2}
    done = bench.run(
        BenchConfig(dataset=str(mayors), setting=setting, out=tmp_path / "o", **options), report
    )
    rows = {(card.name, card.ratio): card for card in done.systems}
    assert list(rows) == [("clara", 4), ("clara", 16), ("extractive", 4), ("extractive", 16)]
    for ratio in (4, 16):
        memory, text = rows["clara", ratio], rows["extractive", ratio]
        assert 0 < text.context_tokens <= memory.context_tokens == 3 * 64 / ratio
    assert rows["extractive", 4].recall["1"] == 1
    lines = map(json.loads, (tmp_path / "o" / "predictions.jsonl").read_text().splitlines())
    hits = {line["id"]: line["hits"] for line in lines if line["system"] == "extractive"}
    assert set(hits) == {f"q{n}" for n in range(len(MAYORS))}


def test_the_sentence_that_answers_is_what_the_backbone_reads(
    checkpoint: Path, tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clara_cli.evaluation import systems

    prompts: list[str] = []

    def read(self: Any, batch: Any) -> list[systems.Reading]:
        prompts.extend(text for _, texts in batch for text in texts)
        return [systems.Reading("x", len(texts)) for _, texts in batch]

    monkeypatch.setattr(systems.Reader, "read", read)
    data = write(tmp_path / "q.jsonl", [question(3)])
    options = {"model": str(checkpoint), "device": "cpu", "system": "extractive", "ratio": "4"}
    bench.run(BenchConfig(dataset=str(data), **options), report)
    assert prompts == [f"Quarrel\n{sentence('Quarrel', 'Max Orme')}"]
