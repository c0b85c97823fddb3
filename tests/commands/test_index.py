"""index: both engines, the recall they are measured at, and damage that is found and named."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.engine import Clara
from clara_cli.commands import ask, compress, index
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, ClaraError, DataError, UsageError
from clara_cli.search.exact import scan
from clara_cli.search.graph_index import GraphIndex
from clara_cli.search.key_selection import Key, MeasuredKey, choose_engine
from clara_cli.search.keys import make_key

KEYS = [
    *["corpus", "engine", "vectors", "dim", "recall_at_k", "k", "queries", "seconds", "bytes"],
]


@pytest.fixture
def corpus(works, tmp_path) -> Path:
    """A copy of the shared corpus, to index or damage."""
    return Path(shutil.copytree(works.corpus, tmp_path / "copy.clara"))


@pytest.mark.parametrize("engine", ["exact", "hnsw", "auto"])
def test_every_engine_is_measured_and_used(works, report, corpus, engine):
    result = index.run(tiny_world.index(corpus, engine=engine), report)
    rows = len(Corpus.open(corpus))
    assert list(dataclasses.asdict(result)) == KEYS
    assert result.engine == ("exact" if engine == "auto" else engine)  # a small corpus
    assert (result.vectors, result.k) == (rows, 5) and 0 < result.dim <= 128
    assert 0 <= result.recall_at_k <= 1 and 0 < result.queries <= rows
    written = [p for p in (corpus / "index").rglob("*") if p.is_file()]
    assert result.bytes == sum(path.stat().st_size for path in written)
    found = GraphIndex.load(corpus / "index", Corpus.open(corpus).manifest.states)
    assert (found is not None) == (engine == "hnsw")
    assert report.notes and result.engine in report.notes[-1]
    assert report.begun == {"questions", "scan", "keys", "index"}
    assert report.steps >= result.queries + 3


def test_recall_is_the_share_of_the_exact_top_k(works, report, corpus):
    """Every key has its say over all candidates; over four, the share is counted by hand."""
    whole = index.run(tiny_world.index(corpus), report)
    assert whole.recall_at_k == 1.0
    result = index.run(tiny_world.index(corpus, engine="hnsw", top_k=4, candidates=4), report)
    clara = Clara.open(corpus, device="cpu")
    built, found = clara.retriever.index, []
    for question in index.questions_to_measure(None, clara.corpus):
        with contextlib.suppress(UsageError):
            query_MD = clara.query(question, 16)
            best_K = scan(query_MD, clara.corpus.memory_chunks(), 4)[1]
            key_1F = make_key(built.rule, query_MD[None], built.state)
            found.append(torch.isin(best_K, built.search(key_1F, 4)[1][0]).float().mean().item())
    assert (result.k, result.queries) == (4, len(found))
    assert result.recall_at_k == pytest.approx(sum(found) / len(found), abs=1e-4)
    assert built.candidates_per_k == 1


@pytest.mark.parametrize(
    ("passages", "candidates", "found", "engine"),
    [
        (20_000, 20, 0.98, "hnsw"),
        (20_000, 20, 0.9799, "exact"),  # the graph misses too many
        (20_000, 20, None, "exact"),  # nothing was measured
        (20_000, 1000, 0.99, "hnsw"),
        (20_000, 1001, 0.99, "exact"),  # more than 5 %
        (1_000, 20, 1.0, "exact"),  # scanning so few is quicker
    ],
)
def test_auto_takes_the_graph_only_where_it_finds_enough_and_reads_less(
    passages, candidates, found, engine
):
    pair = MeasuredKey(Key("pca", 64, {}), candidates, found or 0.0)
    assert choose_engine(pair, found, passages, 4096, 64) == engine


def test_recall_is_measured_with_the_users_questions(works, report, corpus):
    result = index.run(tiny_world.index(corpus, queries=works.questions), report)
    assert result.queries == len(tiny_world.questions())


def test_a_question_file_without_questions_is_bad_data(works, report, corpus, tmp_path):
    with pytest.raises(DataError, match=r"q\.jsonl:1: question is missing"):
        index.run(
            tiny_world.index(
                corpus, queries=tiny_world.write_jsonl(tmp_path / "q.jsonl", [{"q": "?"}])
            ),
            report,
        )


def test_questions_that_are_too_long_are_not_counted(works, report, corpus, tmp_path):
    records = [{"question": "Why " * 40}, {"question": "Who?"}]
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", records)
    assert index.run(tiny_world.index(corpus, queries=data), report).queries == 1
    only = tiny_world.write_jsonl(tmp_path / "long.jsonl", records[:1])
    result = index.run(tiny_world.index(corpus, queries=only), report)
    assert (result.recall_at_k, result.queries) == (None, 0)


def test_a_corpus_without_text_is_indexed_and_not_measured(works, report, tmp_path):
    out = tmp_path / "mute.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, out, text=False), report)
    result = index.run(tiny_world.index(out), report)
    assert (result.recall_at_k, result.queries) == (None, 0)
    assert not (out / "index" / "bm25").exists()
    report.notes.clear()
    next(ask.run(tiny_world.ask("Who?", out), report))
    assert not any("no index" in note for note in report.notes)


def test_the_same_index_is_built_twice_and_the_seed_is_heard(works, report, corpus):
    graphs = []
    for seed in (0, 0, 5):
        index.run(tiny_world.index(corpus, engine="hnsw", seed=seed), report)
        graphs.append(tiny_world.files(corpus / "index"))
    assert graphs[0] == graphs[1] != graphs[2]


def test_exact_leaves_no_graph_of_an_earlier_index(works, report, corpus):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    index.run(tiny_world.index(corpus, engine="exact"), report)
    assert {path.name for path in (corpus / "index").iterdir()} == {"bm25", "fields"}


# --- health ---


def test_check_finds_a_sound_corpus_sound(works, report, corpus):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    before = tiny_world.files(corpus)
    result = index.run(tiny_world.index(corpus, check=True), report)
    assert (result.engine, result.vectors) == ("check", len(Corpus.open(corpus)))
    assert tiny_world.files(corpus) == before


FILES = [
    "shards/00000.safetensors",
    "passages/00000.jsonl.gz",
    "index/*/graph.bin",
    "index/*/tables.safetensors",
    "index/bm25/*/bm25.safetensors",
]


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The sizes of the corpora that were measured from now on."""
    corpora: list[int] = []
    make = index.make

    def count(corpus, *rest):
        corpora.append(len(corpus))
        return make(corpus, *rest)

    monkeypatch.setattr(index, "make", count)
    return corpora


@pytest.mark.parametrize("engine", ["auto", "hnsw"])
def test_an_index_is_not_measured_again_where_nothing_changed(
    works, report, corpus, measured, engine
):
    first = index.run(tiny_world.index(corpus, engine=engine), report)
    before = tiny_world.files(corpus)
    report.notes.clear()
    again = index.run(tiny_world.index(corpus, engine=engine), report)
    assert len(measured) == 1 and tiny_world.files(corpus) == before
    assert report.notes == [f"{corpus}: nothing changed since this was measured"]
    assert dataclasses.replace(again, seconds=first.seconds) == first and again.seconds > 0


def test_an_index_is_measured_again_where_anything_changed(
    works, report, corpus, measured, tmp_path, monkeypatch
):
    def run(**changes):
        before = len(measured)
        index.run(tiny_world.index(corpus, engine="hnsw", **changes), report)
        return len(measured) - before

    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who is mayor of Pinewick?"}\n')
    assert [run(), run(), run(top_k=3), run(candidates=4)] == [1, 0, 1, 1]
    assert [run(queries=questions), run(queries=questions)] == [1, 0]
    questions.write_text('{"question": "Who is mayor of Frostmouth?"}\n')
    assert run(queries=questions) == 1
    assert [run(candidates=4), run(), run()] == [1, 1, 0]  # another index stood there meanwhile
    (graph,) = corpus.glob("index/*/graph.bin")
    graph.write_bytes(graph.read_bytes()[:-1])
    assert [run(), run()] == [1, 0]  # damaged, and mended
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "another user's"))
    assert run() == 1  # what comes with a corpus is not believed


@pytest.mark.parametrize("name", FILES)
def test_check_names_the_file_with_a_flipped_bit(works, report, corpus, name):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    (path,) = corpus.glob(name)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError) as caught:
        index.run(tiny_world.index(corpus, check=True), report)
    assert caught.value.code == 3 and caught.value.hint
    assert str(path.relative_to(corpus)) in caught.value.message


@pytest.mark.parametrize("name", FILES[:2])
def test_check_names_a_missing_and_a_shorter_file(works, report, corpus, name):
    (corpus / name).write_bytes((corpus / name).read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=name):
        index.run(tiny_world.index(corpus, check=True), report)
    (corpus / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name}: missing"):
        index.run(tiny_world.index(corpus, check=True), report)


@pytest.mark.skipif(
    find_spec("pymilvus") is None or find_spec("milvus_lite") is None,
    reason="pymilvus and milvus-lite are not installed: the extra clara-cli[milvus]",
)
def test_milvus_gives_what_the_scan_gives(works, report, corpus, tmp_path):
    uri = str(tmp_path / "keys.db")
    result = index.run(tiny_world.index(corpus, engine="milvus", uri=uri), report)
    assert (result.engine, result.recall_at_k) == ("milvus", 1.0)
    asked = {"first_stage": "latent", "top_k": 3}
    found = next(ask.run(tiny_world.ask("Who?", corpus, **asked), report))
    assert Clara.open(corpus, device="cpu").retriever.index.engine == "milvus"
    index.run(tiny_world.index(corpus, engine="exact"), report)
    scanned = next(ask.run(tiny_world.ask("Who?", corpus, **asked), report))
    assert [(hit.row, hit.score) for hit in found.sources] == [
        (hit.row, hit.score) for hit in scanned.sources
    ]


@pytest.mark.parametrize("what", ["extra", "model", "server"])
def test_an_index_stays_until_milvus_can_be_written(works, report, corpus, monkeypatch, what):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    before = tiny_world.files(corpus)
    if what == "extra":
        monkeypatch.setitem(sys.modules, "pymilvus", None)
    elif what == "server":
        pytest.importorskip("pymilvus")
    changes = {"model": str(works.scp)} if what == "model" else {}
    config = tiny_world.index(corpus, engine="milvus", uri="http://127.0.0.1:9", **changes)
    with pytest.raises(ClaraError):
        index.run(config, report)
    assert tiny_world.files(corpus) == before


def test_a_uri_goes_with_milvus_and_milvus_with_a_uri(corpus):
    with pytest.raises(UsageError, match="--engine milvus: no --uri"):
        tiny_world.index(corpus, engine="milvus")
    with pytest.raises(UsageError, match="--uri x.db was given with --engine hnsw"):
        tiny_world.index(corpus, engine="hnsw", uri="x.db")


def test_an_index_serves_its_own_ratio_only(works, report, corpus):
    """At a higher ratio memory is scanned, as if there were no graph, and that is said."""
    plain = next(ask.run(tiny_world.ask("Who?", corpus, first_stage="latent", ratio=16), report))
    index.run(tiny_world.index(corpus, engine="hnsw", candidates=1, top_k=1), report)
    report.notes.clear()
    asked = tiny_world.ask("Who?", corpus, first_stage="latent", ratio=16)
    graph = next(ask.run(asked, report))
    assert [hit.row for hit in graph.sources] == [hit.row for hit in plain.sources]
    assert [note for note in report.notes if "memory is scanned" in note]


def test_an_index_of_another_corpus_is_refused_and_can_be_repaired(works, report, tmp_path, corpus):
    other = tmp_path / "other.clara"
    records = tiny_world.write_jsonl(tmp_path / "other.jsonl", tiny_world.documents()[:5])
    compress.run(tiny_world.compress(records, works.e2e, other), report)
    index.run(tiny_world.index(other, engine="hnsw"), report)
    shutil.copytree(other / "index", corpus / "index")
    with pytest.raises(ArtefactError, match="indexes corpus") as caught:
        next(ask.run(tiny_world.ask("Who?", corpus), report))
    sums = [Corpus.open(folder).manifest.fingerprint[:12] for folder in (other, corpus)]
    assert all(each in caught.value.message for each in sums)
    assert "clara index" in caught.value.hint
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    next(ask.run(tiny_world.ask("Who?", corpus), report))


def test_a_damaged_index_is_refused_and_can_be_repaired(works, report, corpus):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    (corpus / "index" / "index.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"index\.json"):
        next(ask.run(tiny_world.ask("Who?", corpus), report))
    index.run(tiny_world.index(corpus, engine="exact"), report)
    next(ask.run(tiny_world.ask("Who?", corpus), report))


def test_a_corpus_of_another_checkpoint_is_refused(works, report, corpus):
    with pytest.raises(ArtefactError, match="was compressed by checkpoint"):
        index.run(tiny_world.index(corpus, model=str(works.scp)), report)


def test_a_place_without_a_corpus_is_named(works, report, tmp_path):
    with pytest.raises(ArtefactError, match="no such corpus") as caught:
        index.run(tiny_world.index(tmp_path / "none.clara"), report)
    assert "clara compress" in caught.value.hint
    with pytest.raises(ArtefactError, match="not a corpus"):
        index.run(tiny_world.index(tmp_path), report)
