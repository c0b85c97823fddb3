"""The graph index: every hnswlib trap has its test."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from helpers.graphs import CORPUS, build, build_of, unit

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.search.graph_index import SIDECAR, TABLES, GraphIndex, forget
from clara_cli.search.hnsw import GRAPH, HnswGraph, HnswSettings
from clara_cli.search.keys import make_key, make_state


def test_finds_the_nearest_keys() -> None:
    keys_NF, queries_BF = unit(400), unit(20, seed=1)
    scores_BN, rows_BN = build(keys_NF, ef=200).search(queries_BF, 10)
    wanted = (queries_BF @ keys_NF.T).topk(10)
    found = sum(len(set(a) & set(b)) for a, b in zip(rows_BN.tolist(), wanted.indices.tolist(),
                                                     strict=True))  # fmt: skip
    assert found >= 196  # of 200
    assert rows_BN.shape == (20, 10) and rows_BN.dtype == torch.int64
    torch.testing.assert_close(
        scores_BN, (queries_BF @ keys_NF.T).gather(1, rows_BN), rtol=0, atol=1e-5
    )
    assert bool((scores_BN.diff(dim=1) <= 0).all())


def test_duplicates_do_not_starve_the_distinct() -> None:
    distinct_NF = unit(300, 32)
    keys_NF = torch.cat([distinct_NF[:1].expand(500, -1), distinct_NF])
    index = build(keys_NF, ef=50)
    assert (len(index), index.labels) == (800, 300)
    rows_BN = index.search(distinct_NF, 1)[1]
    assert rows_BN[0].tolist() == [0]
    hits = (rows_BN[1:, 0] == torch.arange(501, 800)).float().mean()
    assert hits >= 0.98
    scores_BN, rows_BN = index.search(distinct_NF[:1], 7)
    assert rows_BN[0].tolist() == list(range(7))
    assert index.search(distinct_NF[:1], 10_000)[1].shape == (1, 800)
    assert sorted(index.search(distinct_NF[:1], 800)[1][0].tolist()) == list(range(800))


def test_all_the_same_and_negative_zero() -> None:
    keys_NF = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]])
    index = build(keys_NF)
    assert index.labels == 1
    scores_BN, rows_BN = index.search(keys_NF[:1], 5)
    assert rows_BN.tolist() == [[0, 1, 2]] and scores_BN[0].tolist() == pytest.approx([1, 1, 1])
    assert build(torch.zeros(1, 4)).search(torch.zeros(1, 4), 3)[1].tolist() == [[0]]


def test_k_and_ef_are_clamped() -> None:
    index = build(unit(5), ef=1)
    assert sorted(index.search(unit(1, seed=2), 50)[1][0].tolist()) == list(range(5))
    assert index.search(torch.empty(0, 16), 3)[1].shape == (0, 3)


def test_the_same_keys_give_the_same_bytes(tmp_path: Path) -> None:
    keys_NF = unit(300)
    for name, chunk in (("a", 64), ("b", 7)):
        build(keys_NF, chunk).save(tmp_path / name)
    written = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in "ab"]
    assert written[0] == written[1] and len(written[0]) == 4
    for file in written[0]:
        one, other = tmp_path / "a" / file, tmp_path / "b" / file
        assert one.is_dir() or one.read_bytes() == other.read_bytes()


def test_saved_and_loaded_it_answers_alike(tmp_path: Path) -> None:
    memory_NMD = torch.randn(200, 2, 8, generator=torch.Generator().manual_seed(0))
    state = make_state("projection", memory_NMD, width=12)
    keys_NF = make_key("projection", memory_NMD, state)
    built = GraphIndex.build(
        [keys_NF],
        lambda width, most: HnswGraph.new(width, most, HnswSettings(ef=150)),
        rows=200,
        rule="projection",
        state=state,
        corpus_sha256=CORPUS,
        candidates_per_k=4,
    )
    size = built.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    assert sorted(path.name for path in files) == [GRAPH, SIDECAR, TABLES]
    loaded = GraphIndex.load(tmp_path, {200: CORPUS})
    assert loaded is not None
    assert (loaded.rule, loaded.width, len(loaded)) == ("projection", 12, 200)
    assert loaded.candidates_per_k == 4
    assert torch.equal(loaded.state["projection_PF"], state["projection_PF"])
    for before, after in zip(built.search(keys_NF, 20), loaded.search(keys_NF, 20), strict=True):
        assert torch.equal(before, after)
    # ef travels with the index: at hnswlib's own 10 a width-150 list could not be this complete
    assert (loaded.search(keys_NF, 1)[1][:, 0] == torch.arange(200)).all()


def test_no_index_is_none(tmp_path: Path) -> None:
    assert GraphIndex.load(tmp_path / "index", {10: CORPUS}) is None


def test_what_is_not_finite_or_of_another_width_is_refused() -> None:
    index = build(unit(10))
    with pytest.raises(ClaraError, match="not finite"):
        index.search(torch.full((1, 16), float("nan")), 3)
    with pytest.raises(ArtefactError, match="query keys are 8 wide, the index 16"):
        index.search(unit(1, 8), 3)
    with pytest.raises(ClaraError, match="not finite"):
        build(torch.full((3, 16), float("inf")))
    with pytest.raises(ClaraError, match="0 keys for 0 passages"):
        build(torch.empty(0, 16))
    with pytest.raises(ClaraError, match="more keys than the 1 passages"):
        build_of(1, unit(2))
    with pytest.raises(ClaraError, match="1 keys for 2 passages"):
        build_of(2, unit(1))


def test_another_corpus_is_refused_with_both_sums(tmp_path: Path) -> None:
    build(unit(10)).save(tmp_path)
    with pytest.raises(ArtefactError, match="cccccccccccc, this corpus is dddddddddddd") as caught:
        GraphIndex.load(tmp_path, {10: "d" * 64})
    assert "clara index" in caught.value.hint


@pytest.mark.parametrize("file", [GRAPH, TABLES])
def test_damaged_files_are_refused_before_hnswlib_sees_them(tmp_path: Path, file: str) -> None:
    build(unit(30)).save(tmp_path)
    (path,) = tmp_path.rglob(file)
    whole = path.read_bytes()
    for content in (whole[:-8], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b""):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=f"{file}: damaged"):
            GraphIndex.load(tmp_path, {30: CORPUS})
    path.unlink()
    with pytest.raises(ArtefactError, match=f"{file}: No such file"):
        GraphIndex.load(tmp_path, {30: CORPUS})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "x", "key 'format': not 'clara-index'"),
        ("version", 9, "key 'version': 9, this program reads 2 and 1"),
        ("width", "16", "key 'width': '16', not of type int"),
        ("engine", "annoy", "key 'engine': 'annoy', known: hnsw"),
        ("labels", 29, "not one label for each|not int64"),
        ("rows", 31, "key 'rows': 31 passages, the corpus has 30"),
        ("width", 15, r"graph.bin: its header has node_bytes"),
        ("width", 2**40, r"graph.bin: .* are too few for 30 keys"),
        ("labels", 0, "key 'labels': 0, the least is 1"),
        ("key", "median", "key 'key': 'median', known: mean, means"),
        ("key", "pca", "rule pca needs one tensor 'projection_PF'"),
        ("graph", {"file": "../x", "sha256": ""}, "key 'graph.file': '../x', not 'graph.bin'"),
    ],
)
def test_a_wrong_description_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    build(unit(30)).save(tmp_path)
    path = tmp_path / SIDECAR
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ArtefactError, match=words):
        GraphIndex.load(tmp_path, {30: CORPUS})


def test_a_full_disk_leaves_the_index_before_and_no_rubbish(tmp_path: Path, monkeypatch) -> None:
    build(unit(10)).save(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ClaraError, match="graph.bin: no space left"):
        build(unit(11)).save(tmp_path)
    loaded = GraphIndex.load(tmp_path, {10: CORPUS})
    assert loaded is not None and len(loaded) == 10
    assert sorted(tmp_path.rglob("*")) == before


def flatten(folder: Path) -> None:
    """Make of an index one of the earlier layout: all files beside their description."""
    path = folder / SIDECAR
    described = json.loads(path.read_text())
    version = folder / described.pop("folder")
    for file in version.iterdir():
        file.rename(folder / file.name)
    version.rmdir()
    path.write_text(json.dumps(described))


def test_an_index_of_the_earlier_layout_is_read_and_replaced(tmp_path: Path) -> None:
    build(unit(10)).save(tmp_path)
    flatten(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {SIDECAR, GRAPH, TABLES}
    loaded = GraphIndex.load(tmp_path, {10: CORPUS})
    assert loaded is not None and len(loaded) == 10
    build(unit(11)).save(tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
    loaded = GraphIndex.load(tmp_path, {11: CORPUS})
    assert loaded is not None and len(loaded) == 11
    flatten(tmp_path)
    forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damage_is_mended_by_the_same_index_again(tmp_path: Path) -> None:
    build(unit(10)).save(tmp_path)
    (path,) = tmp_path.rglob(GRAPH)
    path.write_bytes(b"")
    build(unit(10)).save(tmp_path)
    assert GraphIndex.load(tmp_path, {10: CORPUS}) is not None
    assert len(list(tmp_path.rglob("*"))) == 4


@pytest.mark.parametrize("name", ["../../x", "/etc", "", 3, "0123456789abcdeg"])
def test_a_description_names_no_folder_but_a_versions(tmp_path: Path, name: object) -> None:
    build(unit(10)).save(tmp_path)
    path = tmp_path / SIDECAR
    path.write_text(json.dumps({**json.loads(path.read_text()), "folder": name}))
    with pytest.raises(ArtefactError, match="key 'folder': "):
        GraphIndex.load(tmp_path, {10: CORPUS})
