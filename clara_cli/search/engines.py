"""The engines of an index: what each one has to do, and which there are.

A new one is a class with the methods of `Graph` in a file of its own (hnsw, milvus), and a line in
`open_graph`.

Tensor letters: B queries, N keys, F key width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clara_cli.search.hnsw import HnswGraph
from clara_cli.search.milvus import MilvusGraph
from clara_cli.storage.versions import Version


class Graph(Protocol):
    """Finds the labels of near keys, by cosine."""

    engine: str

    def add(self, keys: np.ndarray, labels: list[int]) -> None:
        """Put in new keys [N, F] under new labels."""

    def anew(self, name: str, width: int, most: int) -> Graph:
        """An empty graph of the same settings, for keys of a width and at most so many labels;
        `name` tells it from others."""

    def hide(self, labels: list[int]) -> None:
        """Give these labels no more."""

    def nearest(self, keys: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels [B, wanted] and cosines, best first; `wanted` is at most the number of labels that
        are not hidden. Raises ClaraError where fewer are reached."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Make the graph last, and describe where it is, for `open_graph`."""


def open_graph(version: Version) -> Graph:
    """The graph of a stored index, by the engine it names. Raises ArtefactError."""
    engine = version.fields.get("engine", str)
    if engine == HnswGraph.engine:
        return HnswGraph.load(version)
    if engine == MilvusGraph.engine:
        return MilvusGraph.load(version.fields.object("graph"), version.fields.count("labels"))
    raise version.fields.wrong("engine", f"{engine[:60]!r}, known: hnsw, milvus")
