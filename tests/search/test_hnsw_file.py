"""hnswlib's file, checked before hnswlib reads it: a recorder stands in hnswlib's place, so that no
number that hnswlib would follow ever reaches it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.graphs import CORPUS, build, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.errors import ArtefactError
from clara_cli.search import hnsw
from clara_cli.search.graph_index import SIDECAR, GraphIndex
from clara_cli.search.hnsw import GRAPH
from clara_cli.search.hnsw_file import HEADER, GraphFileError, check_graph, node_layout

NODES, WIDTH, LINKS = 200, 8, 4
NODE = node_layout(LINKS, WIDTH)
ABOVE = HEADER.itemsize + NODES * NODE.itemsize


class Recorder:
    """Stands in hnswlib's place: says what it was asked to read, and reads nothing."""

    asked: list[str] = []  # noqa: RUF012

    def __init__(self, space: str, dim: int) -> None:
        pass

    def load_index(self, name: str, max_elements: int) -> None:
        self.asked.append(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    build(unit(NODES, WIDTH), links=LINKS).save(folder)
    return folder


@pytest.fixture()
def recorder(monkeypatch) -> list[str]:
    monkeypatch.setattr(hnsw.hnswlib, "Index", Recorder)
    monkeypatch.setattr(Recorder, "asked", [])
    return Recorder.asked


def graph_of(folder: Path) -> Path:
    (path,) = folder.rglob(GRAPH)
    return path


def rewrite(whole: Path, folder: Path, change: Callable[[bytearray], object]) -> None:
    """A copy of an index in the earlier layout, whose graph was changed, its recorded sum and size
    made to fit."""
    for path in whole.rglob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / GRAPH).read_bytes())
    change(data)
    (folder / GRAPH).write_bytes(data)
    described = json.loads((folder / SIDECAR).read_text())
    del described["folder"]
    described["graph"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / SIDECAR).write_text(json.dumps(described))


def put_header(name: str, value: float) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        np.frombuffer(data, HEADER, 1)[name] = value

    return change


def put_node(node: int, name: str, value: float, place: int | None = None) -> Callable:
    def change(data: bytearray) -> None:
        field = np.frombuffer(data, NODE, NODES, HEADER.itemsize)[name]
        field[node if place is None else (node, place)] = value

    return change


def put_above(pick: Callable[[np.ndarray], int], value: int, add: int = 0) -> Callable:
    """Change a number of the lists above level 0: `pick` says where the first list's size is."""

    def change(data: bytearray) -> None:
        above = np.frombuffer(data, "<u4", -1, ABOVE)
        above[pick(above) + add] = value

    return change


def first_size(above: np.ndarray) -> int:
    return int(np.flatnonzero(above)[0])


DAMAGE = {
    "offset": (put_header("offset_level0", 64), "offset_level0 64, not 0"),
    "nodes": (put_header("nodes", NODES + 1), "has nodes 201, not 200"),
    "many nodes": (put_header("nodes", 2**63), "has nodes 9223372036854775808, not 200"),
    "room": (put_header("room", NODES - 1), "room 199 for 200 keys"),
    "node bytes": (put_header("node_bytes", 8), "node_bytes 8, not"),
    "label offset": (put_header("label_offset", 2**40), "label_offset 1099511627776, not"),
    "key offset": (put_header("key_offset", 2**40), "key_offset 1099511627776, not"),
    "links": (put_header("links", 2**20), "links 1048576, not 4"),
    "links level 0": (put_header("links_level0", 2**20), "links_level0 1048576, not 8"),
    "links again": (put_header("links_again", 0), "links_again 0, not 4"),
    "factor": (put_header("level_factor", 0.0), "level_factor 0.0"),
    "factor nan": (put_header("level_factor", float("nan")), "level_factor nan"),
    "candidates": (put_header("ef_construction", 2**50), "ef_construction 1125899906842624"),
    "top": (put_header("top_level", 2**31 - 1), "top_level 2147483647"),
    "top below": (put_header("top_level", -1), "top_level -1"),
    "top too low": (put_header("top_level", 0), "bytes of lists above level 0"),
    "top too high": (put_header("top_level", 60), "the top is 60"),
    "entry": (put_header("entry_node", NODES), "entry_node 200 of 200"),
    "count": (put_node(7, "count", 9), "node 7 has more links than there is room"),
    "deleted": (put_node(8, "deleted", 1), "node 8 has a mark of deletion"),
    "neighbour": (put_node(9, "links", NODES, 0), "node 9 has a link to none of 200"),
    "far neighbour": (put_node(9, "links", 2**32 - 1, 0), "node 9 has a link to none of 200"),
    "key": (put_node(10, "key", float("nan"), 3), "node 10 has a key that is not finite"),
    "label": (put_node(11, "label", 2**63), "node 11 has a label that is none of 200"),
    "label twice": (put_node(11, "label", 3), "label 11 is missing, another comes twice"),
    "list bytes": (put_above(first_size, 21), "has 21 bytes of lists above level 0"),
    "list too long": (put_above(first_size, 20 * 63), "bytes of lists above level 0"),
    "list missing": (put_above(first_size, 0), "above level 0"),
    "list count": (put_above(first_size, 5, 1), "has too many links on level 1"),
    "list mark": (put_above(first_size, 2**16, 1), "has too many links on level 1"),
    "list neighbour": (put_above(first_size, NODES, 2), "has a lost link on level 1"),
    "cut": (lambda data: data.__delitem__(slice(-4, None)), "end at node 199 of 200|of lists"),
    "cut keys": (lambda data: data.__delitem__(slice(ABOVE, None)), "too few for 200 keys"),
    "longer": (lambda data: data.extend(bytes(4)), "end at node 200 of 200"),
    "odd": (lambda data: data.extend(b"x"), "bytes of lists above level 0"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_that_fits_its_checksum_never_reaches_hnswlib(whole, tmp_path, recorder, name):
    change, words = DAMAGE[name]
    rewrite(whole, tmp_path, change)
    with pytest.raises(ArtefactError, match=rf"{GRAPH}: .*({words})") as caught:
        GraphIndex.load(tmp_path, {NODES: CORPUS})
    assert "clara index" in caught.value.hint and recorder == []


def test_a_link_to_a_node_that_is_not_on_that_level_never_reaches_hnswlib(
    whole, tmp_path, recorder
):
    def change(data: bytearray) -> None:
        above = np.frombuffer(data, "<u4", -1, ABOVE)
        words = int(above[0]) // 4
        assert words > 0 and above[1 + words] == 0  # node 0 is on level 1, node 1 is not
        above[2] = 1

    rewrite(whole, tmp_path, change)
    with pytest.raises(ArtefactError, match="has a lost link on level 1"):
        GraphIndex.load(tmp_path, {NODES: CORPUS})
    assert recorder == []


def test_a_whole_graph_does_reach_it(whole, recorder):
    assert GraphIndex.load(whole, {NODES: CORPUS}) is not None
    assert recorder == [str(graph_of(whole))]


@pytest.mark.parametrize("setting", ["links", "ef_construction", "ef"])
@pytest.mark.parametrize("value", [0, -1, 2**40])
def test_settings_that_no_graph_has_are_refused(whole, tmp_path, recorder, setting, value):
    rewrite(whole, tmp_path, bytes)
    described = json.loads((tmp_path / SIDECAR).read_text())
    described["graph"][setting] = value
    (tmp_path / SIDECAR).write_text(json.dumps(described))
    with pytest.raises(ArtefactError):
        GraphIndex.load(tmp_path, {NODES: CORPUS})
    assert recorder == []


@pytest.mark.parametrize(("nodes", "links"), [(1, 2), (2, 2), (40, 3), (9000, 16)])
def test_what_hnswlib_writes_is_accepted(tmp_path, nodes, links):
    build(unit(nodes, 4), links=links, ef_construction=20).save(tmp_path)
    check_graph(graph_of(tmp_path), 4, nodes, links, 20)
    loaded = GraphIndex.load(tmp_path, {nodes: CORPUS})
    assert loaded is not None
    assert loaded.search(unit(nodes, 4)[:1], 1)[1].tolist() == [[0]]


@settings(max_examples=200, deadline=None)
@given(
    at=st.integers(0, 10**9),
    value=st.integers(1, 255),
)
def test_a_changed_byte_is_named_or_changes_no_number_that_is_followed(whole, at, value):
    """Keys may take any finite value and unused room any at all; all other bytes are fixed."""
    data = bytearray(graph_of(whole).read_bytes())
    at %= len(data)
    data[at] ^= value
    changed = whole.parent / "changed.bin"
    changed.write_bytes(data)
    try:
        check_graph(changed, WIDTH, NODES, LINKS, 200)
    except GraphFileError:
        return
    header = np.frombuffer(data, HEADER, 1)[0]
    nodes = np.frombuffer(data, NODE, NODES, HEADER.itemsize)
    used = np.arange(2 * LINKS) < nodes["count"][:, None]
    assert header["nodes"] == NODES and header["entry_node"] < NODES
    assert (nodes["links"][used] < NODES).all() and np.isfinite(nodes["key"]).all()
    assert sorted(nodes["label"].tolist()) == list(range(NODES))


def test_rows_behind_labels_are_checked_too(tmp_path):
    for wrong in (
        {"starts": torch.tensor([0, 1, 1, 3])},
        {"rows": torch.tensor([0, 1, 3])},
        {"rows": torch.tensor([0, 0, 1])},
        {"rows": torch.tensor([0.0, 1.0, 2.0])},
        {"starts": torch.tensor([0, 1, 2])},
    ):
        index = build(unit(3))
        index._tables.update(wrong)
        index.save(tmp_path)
        with pytest.raises(ArtefactError, match=r"tables\.safetensors: (not one label|tensor)"):
            GraphIndex.load(tmp_path, {3: CORPUS})
