"""hnswlib behind checks it does not make itself. The only importer of hnswlib.

It loads a file under any width or space, follows any number in it, forgets ef, answers NaN and
raises where k is more than it reaches: sums in the sidecar, every number of the file checked
(hnsw_file.py), one fixed space, and a search that widens answer that; keys are checked, and equal
ones joined, before they come here (graph.py). Knows nothing of rows.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.search.errors import REBUILD
from clara_cli.search.hnsw_file import GraphFileError, check_graph
from clara_cli.storage import versions
from clara_cli.storage.versions import Version

GRAPH = "graph.bin"
_SPACE = "cosine"
_MOST_CANDIDATES = 2**31 - 1
_EXACT = "use the exact scan: the same command with --engine exact"


@dataclass(frozen=True, slots=True)
class HnswSettings:
    """How the graph is built and searched: `links` is hnswlib's M, `ef_construction` and `ef`
    the candidate lists while building and searching, `seed` the level generator's."""

    links: int = 16
    ef_construction: int = 100
    ef: int = 64
    seed: int = 0


class HnswGraph:
    """A graph over keys of one width, in one thread: the same keys give the same graph."""

    engine = "hnsw"

    def __init__(self, graph: Any, settings: HnswSettings) -> None:
        self._graph, self._settings = graph, settings

    @classmethod
    def new(cls, width: int, most: int, settings: HnswSettings) -> HnswGraph:
        """An empty graph for at most so many labels."""
        graph: Any = hnswlib.Index(space=_SPACE, dim=width)
        graph.init_index(
            max_elements=most,
            M=settings.links,
            ef_construction=settings.ef_construction,
            random_seed=settings.seed,
        )
        return cls(graph, settings)

    def add(self, keys: np.ndarray, labels: list[int]) -> None:
        """Put in new keys [N, F] under new labels."""
        needed = self._graph.get_current_count() + len(labels)
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(needed)
        self._graph.add_items(keys, labels, num_threads=1)

    def anew(self, name: str, width: int, most: int) -> HnswGraph:
        """An empty graph of the same settings; its file needs no name."""
        return HnswGraph.new(width, most, self._settings)

    def hide(self, labels: list[int]) -> None:
        """Give these labels no more: searches still go through them."""
        for label in labels:
            self._graph.mark_deleted(label)

    def nearest(self, keys: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels [B, wanted] and cosines, best first. A graph that reaches fewer is searched more
        widely. Raises ClaraError where the widest search reaches too few."""
        total = self._graph.get_current_count()
        ef = max(self._settings.ef, wanted)
        while True:
            self._graph.set_ef(ef)
            try:
                labels, distances = self._graph.knn_query(keys, k=wanted, num_threads=1)
            except RuntimeError as error:
                if ef >= total:
                    message = f"the index reaches fewer than {wanted} of {total} keys"
                    raise ClaraError(message, _EXACT) from error
                ef = min(total, ef * 4)
            else:
                return labels.astype(np.int64), 1 - distances.astype(np.float32)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the graph's file; returns its description with the settings."""
        return versions.save_file(folder, GRAPH, self._save) | asdict(self._settings)

    def _save(self, name: str) -> None:
        """hnswlib's own save, which tells neither of a full disk nor why it cannot open."""
        try:
            self._graph.save_index(name)
        except RuntimeError as error:
            raise OSError(errno.EACCES, str(error), name) from error
        if Path(name).stat().st_size != self._graph.index_file_size():
            raise OSError(errno.ENOSPC, "no space left on device", name)

    @classmethod
    def load(cls, version: Version) -> HnswGraph:
        """The graph that `save` described, checked before hnswlib reads it.

        Raises ArtefactError where it is missing, damaged, or holds another number of keys.
        """
        path, entry = version.file("graph", GRAPH), version.fields.object("graph")
        settings = HnswSettings(
            links=entry.count("links"),
            ef_construction=entry.count("ef_construction"),
            ef=entry.count("ef", 1, _MOST_CANDIDATES),
            seed=entry.count("seed"),
        )
        width, labels = version.fields.count("width"), version.fields.count("labels")
        try:
            check_graph(path, width, labels, settings.links, settings.ef_construction)
            graph: Any = hnswlib.Index(space=_SPACE, dim=width)
            graph.load_index(str(path), max_elements=labels)
        except (OSError, GraphFileError, RuntimeError) as error:
            raise ArtefactError(f"{path}: {error}", REBUILD) from error
        return cls(graph, settings)
