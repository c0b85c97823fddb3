"""The graph index: hnswlib behind checks it does not make itself. The only importer of hnswlib.

Tensor letters: B queries, N rows proposed, F key width.
hnswlib loads a file under any width or space, forgets ef, starves on duplicates, answers NaN and
raises where k is more than it reaches; here a sidecar with sums, one label per distinct key and
clamps answer that. Proposes candidates only: exact rescoring ranks them. Knows nothing of memory.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import torch
from torch import Tensor

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.search import sidecar

SIDECAR, GRAPH, TABLES = "index.json", "graph.bin", "tables.safetensors"
_FORMAT, _VERSION, _SPACE = "clara-hnsw", 2, "cosine"
_EXACT = "use the exact scan: clara index CORPUS --engine exact"


@dataclass(frozen=True, slots=True)
class HnswSettings:
    """How the graph is built and searched: `links` is hnswlib's M, `ef_construction` and `ef`
    the candidate lists while building and searching, `seed` the level generator's."""

    links: int = 16
    ef_construction: int = 200
    ef: int = 64
    seed: int = 0


class HnswIndex:
    """A graph over distinct keys. Label i stands for the rows `rows[starts[i]:starts[i + 1]]`."""

    def __init__(
        self,
        graph: Any,
        tables: dict[str, Tensor],
        described: dict[str, Any],
    ) -> None:
        self._graph = graph
        self._tables = tables
        self._described = described

    @classmethod
    def build(
        cls,
        key_chunks: Iterable[Tensor],
        *,
        rows: int,
        rule: str,
        state: Mapping[str, Tensor],
        corpus_sha256: str,
        candidates_per_k: int,
        settings: HnswSettings | None = None,
    ) -> HnswIndex:
        """Build from keys [N, F] in row order (`rows` in all), in one thread: the same keys give
        the same graph. `rule` and `state` say how keys are made (search/keys.py), `corpus_sha256`
        which corpus they are of, `candidates_per_k` how many rows to propose for each one wanted
        unless asked otherwise. Raises ClaraError where a key is not finite or there is none.
        """
        settings = settings or HnswSettings()
        graph: Any = None
        labels: dict[bytes, int] = {}
        label_of_row: list[int] = []
        for keys_NF in key_chunks:
            keys = _array(keys_NF)
            if len(label_of_row) + len(keys) > rows:
                raise ClaraError(f"more keys than the {rows} passages to index", _EXACT)
            if graph is None:
                graph = _new_graph(keys.shape[1], rows, settings)
            fresh, fresh_labels = _label(keys, labels, label_of_row)
            if fresh:
                graph.add_items(keys[fresh], fresh_labels, num_threads=1)
        if not rows or len(label_of_row) != rows:
            raise ClaraError(f"{len(label_of_row)} keys for {rows} passages to index", _EXACT)
        described = {
            "key": rule, "width": int(graph.dim), "space": _SPACE, "rows": rows,
            "labels": len(labels), "links": settings.links, "seed": settings.seed,
            "ef_construction": settings.ef_construction, "ef": settings.ef,
            "corpus_sha256": corpus_sha256, "engine": "hnsw",
            "candidates_per_k": candidates_per_k,
        }  # fmt: skip
        return cls(graph, {**_row_tables(label_of_row, len(labels)), **state}, described)

    @property
    def rule(self) -> str:
        """The name of the key rule queries must be made with."""
        return str(self._described["key"])

    @property
    def state(self) -> dict[str, Tensor]:
        """The key rule's frozen state."""
        return {name: t for name, t in self._tables.items() if name not in ("rows", "starts")}

    @property
    def width(self) -> int:
        """F, the length of a key."""
        return int(self._described["width"])

    @property
    def candidates_per_k(self) -> int:
        """Rows to propose for each one wanted, as measured when it was built."""
        return int(self._described["candidates_per_k"])

    @property
    def ef(self) -> int:
        """The list of candidates a search keeps, at least."""
        return int(self._described["ef"])

    @property
    def labels(self) -> int:
        """How many distinct keys the graph holds."""
        return int(self._described["labels"])

    def __len__(self) -> int:
        return int(self._described["rows"])

    def search(self, keys_BF: Tensor, count: int, ef: int | None = None) -> tuple[Tensor, Tensor]:
        """Propose `count` rows (all, if there are fewer) for each query key: cosines of the keys
        [B, N] float32 and rows [B, N] int64, best first, ties to the lower row.

        `ef` overrides the stored one; it is raised to the number of proposals at least. Raises
        ClaraError where a key is not finite, of another width, or the graph reaches too few.
        """
        keys = _array(keys_BF)
        if keys.shape[1] != self.width:
            message = f"query keys are {keys.shape[1]} wide, the index {self.width}"
            raise ArtefactError(message, sidecar.REBUILD)
        count = min(count, len(self))
        wanted = min(count, self.labels)
        labels, distances = self._query(keys, wanted, ef or self.ef)
        proposals = [self._rows_of(*pair, count) for pair in zip(labels, distances, strict=True)]
        if not proposals:
            return torch.empty(0, count), torch.empty(0, count, dtype=torch.long)
        scores, rows = zip(*proposals, strict=True)
        return torch.stack(scores), torch.stack(rows)

    def _query(self, keys: np.ndarray, wanted: int, ef: int) -> tuple[np.ndarray, np.ndarray]:
        """hnswlib's answer; a graph that reaches fewer than `wanted` is searched more widely."""
        ef = max(ef, wanted)
        while True:
            self._graph.set_ef(ef)
            try:
                labels, distances = self._graph.knn_query(keys, k=wanted, num_threads=1)
            except RuntimeError as error:
                if ef >= self.labels:
                    message = f"the index reaches fewer than {wanted} of {self.labels} keys"
                    raise ClaraError(message, _EXACT) from error
                ef = min(self.labels, ef * 4)
            else:
                return labels.astype(np.int64), distances

    def _rows_of(
        self, labels: np.ndarray, distances: np.ndarray, count: int
    ) -> tuple[Tensor, Tensor]:
        starts, rows = self._tables["starts"], self._tables["rows"]
        groups = [rows[int(starts[label]) : int(starts[label + 1])] for label in labels]
        scores_N = torch.repeat_interleave(
            1 - torch.from_numpy(distances.astype(np.float32)), torch.tensor(list(map(len, groups)))
        )
        rows_N = torch.cat(groups)
        by_row = torch.argsort(rows_N)
        order = by_row[torch.argsort(scores_N[by_row], descending=True, stable=True)][:count]
        return scores_N[order], rows_N[order]

    def save(self, folder: Path) -> int:
        """Write the index, its description last; returns its bytes. An index that was there is
        gone first, so that a crash leaves none rather than a mixture. Raises ClaraError."""
        from safetensors.torch import save

        path = folder / SIDECAR
        with sidecar.writing(folder):
            path.unlink(missing_ok=True)
            graph = sidecar.save_file(folder / GRAPH, self._save_graph)
            encoded = save(self._tables)
            tables = sidecar.save_file(folder / TABLES, lambda n: Path(n).write_bytes(encoded))
            sidecar.save_json(
                path,
                {"format": _FORMAT, "version": _VERSION, **self._described}
                | {"graph": graph, "tables": tables},
            )
            return int(graph["bytes"] + tables["bytes"] + path.stat().st_size)

    def _save_graph(self, name: str) -> None:
        """hnswlib's own save, which tells neither of a full disk nor why it cannot open."""
        try:
            self._graph.save_index(name)
        except RuntimeError as error:
            raise OSError(errno.EACCES, str(error), name) from error
        if Path(name).stat().st_size != self._graph.index_file_size():
            raise OSError(errno.ENOSPC, "no space left on device", name)

    @classmethod
    def load(cls, folder: Path, corpus_sha256: str) -> HnswIndex | None:
        """The index of a corpus, None where none was built.

        Raises ArtefactError where it is damaged or of another corpus (both sums named).
        """
        path = folder / SIDECAR
        described = sidecar.read_json(path, _FORMAT, _VERSION)
        if described is None:
            return None
        _check(path, described, corpus_sha256)
        graph_path = sidecar.check_file(folder, path, described.get("graph"), GRAPH)
        tables_path = sidecar.check_file(folder, path, described.get("tables"), TABLES)
        return cls(_load_graph(graph_path, described), _load_tables(tables_path), described)


def _check(path: Path, described: dict[str, Any], corpus_sha256: str) -> None:
    for key in ("width", "rows", "labels", "ef", "candidates_per_k"):
        sidecar.field(path, described, key, int)
    found = sidecar.field(path, described, "corpus_sha256", str)
    if found != corpus_sha256:
        message = f"{path} indexes corpus {found[:12]}, this corpus is {corpus_sha256[:12]}"
        raise ArtefactError(message, sidecar.REBUILD)
    space = sidecar.field(path, described, "space", str)
    sidecar.field(path, described, "key", str)
    if space != _SPACE:
        raise ArtefactError(f"{path}: key 'space' is {space!r}, not {_SPACE!r}", sidecar.REBUILD)


def _load_graph(path: Path, described: dict[str, Any]) -> Any:
    graph: Any = hnswlib.Index(space=_SPACE, dim=described["width"])
    try:
        graph.load_index(str(path), max_elements=described["labels"])
    except RuntimeError as error:
        raise ArtefactError(f"{path}: {error}", sidecar.REBUILD) from error
    if graph.get_current_count() != described["labels"]:
        found = graph.get_current_count()
        message = f"{path}: {found} keys, recorded {described['labels']}"
        raise ArtefactError(message, sidecar.REBUILD)
    return graph


def _load_tables(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tables = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: {error}", sidecar.REBUILD) from error
    if not {"rows", "starts"} <= tables.keys():
        raise ArtefactError(f"{path}: no tensors 'rows' and 'starts'", sidecar.REBUILD)
    return tables


def _new_graph(width: int, rows: int, settings: HnswSettings) -> Any:
    graph: Any = hnswlib.Index(space=_SPACE, dim=width)
    graph.init_index(
        max_elements=rows,
        M=settings.links,
        ef_construction=settings.ef_construction,
        random_seed=settings.seed,
    )
    return graph


def _array(keys_NF: Tensor) -> np.ndarray:
    if not bool(torch.isfinite(keys_NF).all()):
        raise ClaraError("a key has values that are not finite", "try --dtype float32")
    return np.ascontiguousarray(keys_NF.detach().cpu().to(torch.float32).numpy())


def _label(
    keys: np.ndarray, labels: dict[bytes, int], label_of_row: list[int]
) -> tuple[list[int], list[int]]:
    """Give each key its label, a new one where it was not seen; which keys are new, and theirs."""
    fresh: list[int] = []
    first_new = len(labels)
    for position, key in enumerate(keys + np.float32(0)):  # + 0: -0.0 becomes 0.0
        digest = hashlib.blake2b(key.tobytes(), digest_size=16).digest()
        if digest not in labels:
            labels[digest] = len(labels)
            fresh.append(position)
        label_of_row.append(labels[digest])
    return fresh, list(range(first_new, len(labels)))


def _row_tables(label_of_row: list[int], labels: int) -> dict[str, Tensor]:
    """Rows grouped by label, each group in row order, and where each group starts."""
    label_N = torch.tensor(label_of_row, dtype=torch.long)
    starts = torch.zeros(labels + 1, dtype=torch.long)
    starts[1:] = torch.bincount(label_N, minlength=labels).cumsum(0)
    return {"rows": torch.argsort(label_N, stable=True), "starts": starts}
