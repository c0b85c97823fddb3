"""hnswlib's file, checked before hnswlib reads it, since it follows whatever number stands there.

The layout is hnswlib 0.8's (`hnswalg.h`, `saveIndex` and `loadIndex`), in little-endian numbers:

    header   offset of level 0 (0), room, nodes, bytes a node, offset of a node's label, offset of
             its key: u64; top level: i32; entry node: u32; links M, links of level 0, M again: u64;
             1 / log M: f64; ef_construction: u64
    level 0  a node: number of links u16, mark of deletion u8, u8, links u32 [2M], key f32 [F],
             label u64
    above    a node: bytes of its lists u32, then for each level from 1 a list: number of links u16,
             u16, links u32 [M]

Letters: N nodes, F key width, M links a level. Knows nothing of indexes or corpora.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clara_cli.storage.file_kinds import open_file

HEADER = np.dtype([
    ("offset_level0", "<u8"), ("room", "<u8"), ("nodes", "<u8"), ("node_bytes", "<u8"),
    ("label_offset", "<u8"), ("key_offset", "<u8"), ("top_level", "<i4"), ("entry_node", "<u4"),
    ("links", "<u8"), ("links_level0", "<u8"), ("links_again", "<u8"), ("level_factor", "<f8"),
    ("ef_construction", "<u8"),
])  # fmt: skip
MOST_LINKS = 10_000  # hnswlib's own cap on M
MOST_LEVELS = 64  # a level is drawn as -log(u) / log(M): 53 is the highest a double can give
_NODES_AT_ONCE = 8192


class GraphFileError(ValueError):
    """What is wrong with a graph's file, without its name."""


def node_layout(links: int, width: int) -> np.dtype:
    """One node of level 0, for M = `links` and keys of `width` numbers."""
    return np.dtype([
        ("count", "<u2"), ("deleted", "u1"), ("unused", "u1"), ("links", "<u4", (2 * links,)),
        ("key", "<f4", (width,)), ("label", "<u8"),
    ])  # fmt: skip


def check_graph(path: Path, width: int, nodes: int, links: int, ef_construction: int) -> None:
    """Check every number of a graph's file: header and sizes against what the graph was built with,
    labels (each of 0 to N - 1 once), keys (finite), levels, and all links.

    Raises GraphFileError saying what is wrong, and OSError where the file cannot be read. Holds
    8,192 nodes of level 0 and the lists above it in memory.
    """
    if not 2 <= links <= MOST_LINKS or width < 1 or nodes < 1 or ef_construction < 1:
        described = f"{nodes} keys of {width} numbers, {links} links, {ef_construction} candidates"
        raise GraphFileError(f"no graph has {described}")
    with open_file(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        if size < HEADER.itemsize + nodes * 4 * (2 * links + width + 4):
            raise GraphFileError(f"{size:,} bytes are too few for {nodes:,} keys")
        layout = node_layout(links, width)
        header = np.fromfile(stream, HEADER, 1)[0]
        _check_header(header, layout, nodes, links, ef_construction)
        _check_level_0(stream, layout, nodes)
        upper_bytes = size - stream.tell()
        if upper_bytes % 4 or upper_bytes > 4 * nodes * (1 + MOST_LEVELS * (links + 1)):
            raise GraphFileError(f"{upper_bytes:,} bytes of lists above level 0")
        upper = np.fromfile(stream, "<u4", upper_bytes // 4)
    starts, owners, levels_N = _lists_above(upper, nodes, links, int(header["top_level"]))
    _check_lists_above(upper, starts, owners, levels_N, links)
    top, entry = int(header["top_level"]), int(header["entry_node"])
    if levels_N[entry] != top or int(levels_N.max()) != top:
        raise GraphFileError(f"entry node {entry} is on level {levels_N[entry]}, the top is {top}")


def _check_header(
    header: np.void, layout: np.dtype, nodes: int, links: int, ef_construction: int
) -> None:
    assert layout.fields is not None
    wanted = {
        "offset_level0": 0,
        "nodes": nodes,
        "node_bytes": layout.itemsize,
        "label_offset": layout.fields["label"][1],
        "key_offset": layout.fields["key"][1],
        "links": links,
        "links_level0": 2 * links,
        "links_again": links,
        "ef_construction": max(ef_construction, links),
    }
    for name, value in wanted.items():
        if int(header[name]) != value:
            raise GraphFileError(f"its header has {name} {int(header[name])}, not {value}")
    if int(header["room"]) < nodes:
        raise GraphFileError(f"its header has room {int(header['room'])} for {nodes} keys")
    if not 0 <= int(header["top_level"]) <= MOST_LEVELS:
        raise GraphFileError(f"its header has top_level {int(header['top_level'])}")
    if int(header["entry_node"]) >= nodes:
        raise GraphFileError(f"its header has entry_node {int(header['entry_node'])} of {nodes}")
    if not math.isclose(float(header["level_factor"]), 1 / math.log(links), rel_tol=1e-6):
        raise GraphFileError(f"its header has level_factor {float(header['level_factor'])}")


def _check_level_0(stream: BinaryIO, layout: np.dtype, nodes: int) -> None:
    seen_N = np.zeros(nodes, bool)
    for first in range(0, nodes, _NODES_AT_ONCE):
        block = np.fromfile(stream, layout, min(_NODES_AT_ONCE, nodes - first))
        if len(block) != min(_NODES_AT_ONCE, nodes - first):
            raise GraphFileError("it became shorter while it was read")
        _refuse(block["count"] > block["links"].shape[1], first, "more links than there is room")
        marks = np.stack([block["deleted"], block["unused"]])
        _refuse(marks.any(0), first, "a mark of deletion")
        _refuse(~np.isfinite(block["key"]).all(1), first, "a key that is not finite")
        _refuse(block["label"] >= nodes, first, f"a label that is none of {nodes}")
        used = np.arange(block["links"].shape[1]) < block["count"][:, None]
        _refuse((used & (block["links"] >= nodes)).any(1), first, f"a link to none of {nodes}")
        seen_N[block["label"].astype(np.int64)] = True
    if not seen_N.all():
        raise GraphFileError(f"label {int(np.argmin(seen_N))} is missing, another comes twice")


def _refuse(wrong_B: np.ndarray | np.bool, first: int, what: str) -> None:
    if wrong_B.any():
        raise GraphFileError(f"node {first + int(np.argmax(wrong_B))} has {what}")


def _lists_above(
    upper: np.ndarray, nodes: int, links: int, top_level: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where every list above level 0 starts in `upper`, its node and level, and the levels [N].

    A list's level is its place among its node's: `owners` is [2, lists], node and level.
    """
    filled = np.flatnonzero(upper).tolist()
    starts: list[int] = []
    owners: list[tuple[int, int]] = []
    levels_N = np.zeros(nodes, np.int64)
    node = at = 0
    while node < nodes:
        place = bisect_left(filled, at)
        following = filled[place] if place < len(filled) else len(upper)
        zeros = min(following - at, nodes - node)
        node, at = node + zeros, at + zeros
        if node == nodes or at >= len(upper):
            break
        levels, rest = divmod(int(upper[at]), 4 * (links + 1))
        if rest or levels > top_level or at + 1 + levels * (links + 1) > len(upper):
            raise GraphFileError(f"node {node} has {int(upper[at])} bytes of lists above level 0")
        starts += [at + 1 + level * (links + 1) for level in range(levels)]
        owners += [(node, level + 1) for level in range(levels)]
        levels_N[node] = levels
        node, at = node + 1, at + 1 + levels * (links + 1)
    if node != nodes or at != len(upper):
        raise GraphFileError(f"the lists above level 0 end at node {node} of {nodes}")
    return np.array(starts, np.int64), np.array(owners, np.int64).reshape(-1, 2).T, levels_N


def _check_lists_above(
    upper: np.ndarray, starts: np.ndarray, owners: np.ndarray, levels_N: np.ndarray, links: int
) -> None:
    """Every link above level 0 leads to a node that is on that level."""
    for first in range(0, len(starts), _NODES_AT_ONCE):
        block = upper[starts[first : first + _NODES_AT_ONCE, None] + np.arange(links + 1)]
        nodes, levels = owners[:, first : first + _NODES_AT_ONCE]
        counts, targets = block[:, 0], block[:, 1:].astype(np.int64)
        used = np.arange(links) < counts[:, None]
        lost = used & (targets >= len(levels_N))
        lost |= used & (levels_N[np.where(lost | ~used, 0, targets)] < levels[:, None])
        for wrong_B, what in ((counts > links, "too many links"), (lost.any(1), "a lost link")):
            if wrong_B.any():
                place = int(np.argmax(wrong_B))
                raise GraphFileError(f"node {nodes[place]} has {what} on level {levels[place]}")
