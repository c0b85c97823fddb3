"""Milvus, run embedded: the same index over another engine, and its failures in one sentence."""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clara_cli.errors import ArtefactError, ClaraError, UsageError
from clara_cli.search.graph_index import SIDECAR, GraphIndex
from clara_cli.search.milvus import MOST, MilvusGraph, full_uri
from clara_cli.storage.artefact import Fields

needs_milvus = pytest.mark.skipif(
    find_spec("pymilvus") is None or find_spec("milvus_lite") is None,
    reason="pymilvus and milvus-lite are not installed: the extra clara-cli[milvus]",
)
CORPUS = "c" * 64


def unit(count: int, seed: int = 0) -> Tensor:
    keys_NF = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(keys_NF)


def build(uri: Path, *chunks: Tensor) -> GraphIndex:
    return GraphIndex.build(
        chunks,
        lambda width, most: MilvusGraph.new(width, str(uri), "clara_test"),
        rows=sum(map(len, chunks)),
        rule="mean",
        state={},
        corpus_sha256=CORPUS,
        candidates_per_k=7,
    )


@needs_milvus
def test_saved_and_loaded_it_finds_the_nearest_with_duplicates_joined(tmp_path: Path) -> None:
    keys_NF = torch.cat([unit(60), unit(60)[:1].expand(5, -1)])
    built = build(tmp_path / "keys.db", keys_NF[:40], keys_NF[40:])
    assert (len(built), built.labels, built.engine) == (65, 60, "milvus")
    size = built.save(tmp_path / "index")
    assert size == sum(p.stat().st_size for p in (tmp_path / "index").rglob("*") if p.is_file())
    loaded = GraphIndex.load(tmp_path / "index", {65: CORPUS})
    assert loaded is not None and loaded.candidates_per_k == 7
    queries_BF = unit(4, seed=1)
    for index in (built, loaded):
        scores_BN, rows_BN = index.search(queries_BF, 3)
        cosines_BN = queries_BF @ keys_NF.T
        torch.testing.assert_close(scores_BN, cosines_BN.topk(3).values, rtol=0, atol=1e-5)
        torch.testing.assert_close(cosines_BN.gather(1, rows_BN), scores_BN, rtol=0, atol=1e-5)
    assert loaded.search(keys_NF[:1], 6)[1].tolist() == [[0, 60, 61, 62, 63, 64]]
    assert sorted(loaded.search(keys_NF[:1], 99)[1][0].tolist()) == list(range(65))
    told: list[str] = []
    MilvusGraph.new(8, str(tmp_path / "keys.db"), "clara_other", lambda: told.append("new"))
    MilvusGraph.new(8, str(tmp_path / "keys.db"), "clara_test", lambda: told.append("again"))
    assert told == ["again"]  # only where one of the same name is dropped
    again = build(tmp_path / "keys.db", unit(3, seed=5))  # written anew, not added to
    assert len(again.search(queries_BF, 99)[1][0]) == 3


@needs_milvus
def test_a_lost_collection_and_a_server_away_are_named(tmp_path: Path) -> None:
    build(tmp_path / "keys.db", unit(5)).save(tmp_path / "index")
    path = tmp_path / "index" / SIDECAR
    described = json.loads(path.read_text())
    described["graph"]["collection"] = "gone"
    path.write_text(json.dumps(described))
    lost = GraphIndex.load(tmp_path / "index", {5: CORPUS})
    assert lost is not None
    with pytest.raises(ClaraError, match=r"keys\.db: .*gone"):
        lost.search(unit(1), 2)
    with pytest.raises(ClaraError, match="http://127.0.0.1:9: ") as caught:
        MilvusGraph.new(8, "http://127.0.0.1:9", "clara_test")
    assert "--uri" in caught.value.hint


def test_a_uri_is_an_address_or_a_db_file(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_uri("http://host:19530") == "http://host:19530"
    with pytest.raises(UsageError, match=r"--uri \.\.\.@host:19530: a password in it") as caught:
        full_uri("http://root:Secret@host:19530")
    assert "Secret" not in caught.value.message and "MILVUS_TOKEN" in caught.value.hint
    assert full_uri("keys.db") == str(tmp_path / "keys.db")
    with pytest.raises(UsageError, match="--uri keys: neither"):
        full_uri("keys")


def test_more_than_milvus_gives_is_refused_and_a_sidecar_is_checked() -> None:
    graph = MilvusGraph.load(Fields({"uri": "x.db", "collection": "c"}, "index.json", ""), 3)
    with pytest.raises(UsageError, match="at most 16,384"):
        graph.nearest(unit(1).numpy(), MOST + 1)
    with pytest.raises(ArtefactError, match="key 'uri'"):
        MilvusGraph.load(Fields({"collection": "c"}, "index.json", ""), 3)


def test_without_pymilvus_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ClaraError, match="--engine milvus") as caught:
        MilvusGraph.new(8, "http://127.0.0.1:9", "c")
    assert "[milvus]" in caught.value.hint


@needs_milvus
def test_many_candidates_are_the_nearest_once_the_graph_is_built(tmp_path: Path) -> None:
    """milvus-lite searches 64 wide however many are wanted, unless it is told."""
    keys = unit(425, seed=2).numpy()
    graph = MilvusGraph.new(8, str(tmp_path / "keys.db"), "many")
    graph.add(keys, list(range(425)))
    graph.save(tmp_path)
    with graph._client() as client:
        for _ in range(100):  # built in the background
            rows = client.search("many", data=keys[:1].tolist(), anns_field="key", limit=425)
            if len(rows[0]) < 425:
                break
            time.sleep(0.1)
        else:
            pytest.skip("the graph of milvus-lite was not built in ten seconds")
    labels, _ = graph.nearest(keys[:50], 200)
    best = (-(keys[:50] @ keys.T)).argsort(1)[:, :200]
    shares = [len(set(ours) & set(theirs)) / 200 for ours, theirs in zip(labels, best, strict=True)]
    assert sum(shares) / 50 > 0.995
