"""Text compressors at the memory's budget, through tiny random models of the published classes."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import bert, t5

from clara_cli.bench_records import BenchResult
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.evaluation.paragraphs import Piece
from clara_cli.evaluation.rivals.compressors import LLMLingua2, RecompAbstractive, RecompExtractive
from clara_cli.evaluation.rivals.registry import parse_systems
from clara_cli.evaluation.rivals.retrievers import Embedder, VectorRule
from clara_cli.evaluation.rivals.weights import Weights, load
from clara_cli.extras import install_command

TEXTS = [
    "The mayor of Elmgate is Nora Velden. The mayor of Frostmouth is Ivo Sand.",
    "Who is the mayor of Pinewick? Una Holt is the mayor of Pinewick, a question of the passage.",
]


def words(text: str) -> int:
    return len(text.split())


PIECES = [Piece(str(n), text, words(text), n) for n, text in enumerate(TEXTS)]


def opened(name: str, task: Any) -> Weights:
    (spec,) = parse_systems(name)
    return load(spec, task, torch.device("cpu"))


# --- LLMLingua-2 ---


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    pytest.importorskip("llmlingua", reason="no llmlingua: pip install 'clara-cli[rivals]'")
    return bert(tmp_path / "tagger", "BertForTokenClassification", num_labels=2)


def test_llmlingua2_keeps_words_of_the_passage_in_their_order(tagger: Path) -> None:
    weights = opened(f"llmlingua2={tagger}", "label tokens")
    left = LLMLingua2(weights, 6, words).compress("Who?", PIECES)
    assert [extract.pieces for extract in left] == [(piece,) for piece in PIECES]
    for extract, piece in zip(left, PIECES, strict=True):
        rest = iter(re.findall(r"\w+|[.,?]", piece.text.lower()))
        kept = re.findall(r"\w+|[.,?]", extract.text)
        assert kept and all(word in rest for word in kept), extract.text
    assert 0 < sum(extract.tokens for extract in left) < sum(piece.tokens for piece in PIECES)


def test_llmlingua2_keeps_less_of_a_smaller_budget_and_all_of_a_large_one(tagger: Path) -> None:
    weights = opened(f"llmlingua2={tagger}", "label tokens")

    def kept(budget: int) -> int:
        return sum(e.tokens for e in LLMLingua2(weights, budget, words).compress("", PIECES))

    assert kept(3) < kept(9) < kept(100) == sum(piece.tokens for piece in PIECES)
    untouched = LLMLingua2(weights, 100, words).compress("", PIECES)
    assert [extract.text for extract in untouched] == TEXTS


def test_llmlingua2_reaches_for_no_network(tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own constructor fetches a vocabulary of OpenAI's."""
    tried: list[Any] = []

    def refuse(self: Any, address: Any) -> None:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: refuse(None, words))
    weights = opened(f"llmlingua2={tagger}", "label tokens")
    assert LLMLingua2(weights, 4, words).compress("Who?", PIECES)
    assert tried == []


# --- RECOMP ---


def test_recomp_chooses_sentences_by_inner_product_within_the_budget(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    embedder = Embedder(opened(f"recomp-extractive={folder}", "vectors"), VectorRule("mean"))
    sentences = [
        *["The mayor of Elmgate is Nora Velden.", "The mayor of Frostmouth is Ivo Sand."],
        *["Who is the mayor of Pinewick?"],
        "Una Holt is the mayor of Pinewick, a question of the passage.",
    ]
    question = "Who is the mayor of Pinewick?"
    scores = (embedder.raw(sentences) @ embedder.raw([question])[0]).tolist()
    best = sorted(range(4), key=lambda n: -scores[n])
    two = sum(words(sentences[n]) for n in best[:2])
    left = RecompExtractive(embedder, -(-two // 2), words).compress(question, PIECES)
    assert [extract.text for extract in left] == [sentences[n] for n in sorted(best[:2])]
    (one,) = RecompExtractive(embedder, 1, words).compress(question, PIECES)
    assert one.text == sentences[best[0]] and one.tokens == words(one.text)
    assert RecompExtractive(embedder, 9, words).compress(question, []) == []


def test_recomps_summary_stands_for_all_passages(tmp_path: Path) -> None:
    weights = opened(f"recomp-abstractive={t5(tmp_path)}", "rewrite")
    weights.tokenizer.decode = lambda ids, **more: " Una Holt "
    (summary,) = RecompAbstractive(weights, words, 8).compress("Who is mayor?", PIECES)
    assert (summary.text, summary.tokens, summary.pieces) == ("Una Holt", 2, tuple(PIECES))
    weights.tokenizer.decode = lambda ids, **more: "  "
    assert RecompAbstractive(weights, words, 8).compress("Who is mayor?", PIECES) == []


# --- as rows of bench ---


def test_they_are_rows_of_bench_one_a_ratio(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, tagger: Path
) -> None:
    encoder, writer = bert(tmp_path / "encoder"), t5(tmp_path / "writer")
    names = f"scp,text,llmlingua2={tagger},recomp-extractive={encoder}"
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "limit": 3}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 2, "ratio": "4,16"}
    settings["system"] = f"{names},recomp-abstractive={writer}"
    done = bench.run(BenchConfig(**settings, out=tmp_path / "o"), report)
    assert isinstance(done, BenchResult)
    rows = {(card.name, card.ratio): card for card in done.systems}
    assert list(rows) == [
        *[("scp", 4), ("scp", 16), ("text", None)],
        *[("llmlingua2=tagger", 4), ("llmlingua2=tagger", 16)],
        *[("recomp-extractive=encoder", 4), ("recomp-extractive=encoder", 16)],
        ("recomp-abstractive=writer", None),
    ]
    assert [card.error for card in done.systems] == [""] * 8
    text = rows["text", None].context_tokens or 0
    for name in ("llmlingua2=tagger", "recomp-extractive=encoder"):
        at_4, at_16 = (rows[name, ratio].context_tokens or 0 for ratio in (4, 16))
        assert 0 < at_16 <= at_4 < text, name
    lines = [json.loads(line) for line in (tmp_path / "o" / "predictions.jsonl").open()]
    read = [line["hits"] for line in lines if line["system"] == "llmlingua2=tagger"]
    assert read and all(read)


def test_without_the_package_the_row_says_what_to_install(
    mayors: Path, checkpoint: Path, tagger: Path, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llmlingua", None)
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "limit": 2}
    settings |= {"device": "cpu", "dtype": "float32", "system": f"text,llmlingua2={tagger}"}
    done = bench.run(BenchConfig(**settings, max_new_tokens=2), report)
    assert isinstance(done, BenchResult)
    text, other = done.systems
    assert other.error == f"llmlingua is not installed ({install_command('rivals')})"
    assert (other.em, text.error, other.unanswered) == (None, "", 2)
