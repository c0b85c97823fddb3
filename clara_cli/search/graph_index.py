"""The index over narrow keys: rows behind labels, a sidecar, and a graph that finds labels.

It may grow with its corpus (`extend`), and may hold rows that the corpus lost (`keep` leaves them
out); the rule that makes keys stays as it was built with.

Tensor letters: B queries, N rows proposed, F key width.
Equal keys share one label, so that duplicates cannot crowd out the rest; `tables.safetensors` has
the rows of every label and the key rule's state, `index.json` what queries must be made with. The
graph is an engine's (hnsw, milvus). Proposes candidates only: exact rescoring ranks them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.search.engines import Graph, open_graph
from clara_cli.search.errors import REBUILD, refuse_other_corpus
from clara_cli.search.hnsw import GRAPH
from clara_cli.search.keys import KEY_RULES, wrong_state
from clara_cli.storage import versions
from clara_cli.storage.artefact import Fields
from clara_cli.storage.tensors import read_tensors, save_tensors
from clara_cli.storage.versions import Version

SIDECAR, TABLES = "index.json", "tables.safetensors"
FILES = (GRAPH, TABLES)
_FORM = ("clara-index", 2)
_OLDER = (1,)
_SAME = 1 - 1e-6  # the cosine, in float32, of equal keys
_EXACT = "use the exact scan: the same command with --engine exact"


class GraphIndex:
    """A graph over distinct keys. Label i stands for the rows `rows[starts[i]:starts[i + 1]]`."""

    def __init__(self, graph: Graph, tables: dict[str, Tensor], described: dict[str, Any]) -> None:
        self._graph = graph
        self._tables = tables
        self._described = described
        self._visible = int(described["labels"])

    @classmethod
    def build(
        cls,
        key_chunks: Iterable[Tensor],
        new_graph: Callable[[int, int], Graph],
        *,
        rows: int,
        rule: str,
        state: Mapping[str, Tensor],
        corpus_sha256: str,
        candidates_per_k: int,
        measured_rows: int | None = None,
    ) -> GraphIndex:
        """Build from keys [N, F] in row order, `rows` in all. `new_graph` makes an empty graph for
        keys of a width and at most so many labels. `rule` and `state` say how keys are made
        (search/keys.py), `corpus_sha256` which corpus they are of, `candidates_per_k` how many rows
        to propose for each one wanted unless asked otherwise, as measured of `measured_rows` if it
        was not these. Raises ClaraError where a key is not finite or there is none.
        """
        graph: Graph | None = None
        labels: dict[bytes, int] = {}
        label_of_row: list[int] = []
        width = 0
        for keys_NF in key_chunks:
            keys = _array(keys_NF)
            if len(label_of_row) + len(keys) > rows:
                raise ClaraError(f"more keys than the {rows} passages to index", _EXACT)
            if graph is None:
                width = keys.shape[1]
                graph = new_graph(width, rows)
            fresh, fresh_labels = _label(keys, labels, label_of_row)
            if fresh:
                graph.add(keys[fresh], fresh_labels)
        if graph is None or len(label_of_row) != rows or not rows:
            raise ClaraError(f"{len(label_of_row)} keys for {rows} passages to index", _EXACT)
        described = {
            "key": rule, "width": width, "rows": rows, "labels": len(labels),
            "corpus_sha256": corpus_sha256, "candidates_per_k": candidates_per_k, "built": rows,
            "measured_rows": measured_rows or rows,
        }  # fmt: skip
        return cls(graph, {**_row_tables(label_of_row, len(labels)), **state}, described)

    def place(self, stored_rows: np.ndarray, total: int) -> None:
        """Number the rows as a corpus stores them: row r is `stored_rows[r]` of `total`."""
        self._tables["rows"] = torch.from_numpy(stored_rows)[self._tables["rows"]]
        self._described["rows"] = total

    def keep(self, rows: np.ndarray) -> None:
        """Leave out all but these sorted rows, which are numbered anew; labels without any are
        hidden. It cannot be saved then."""
        new_N = torch.full((len(self),), -1, dtype=torch.long)
        new_N[torch.from_numpy(rows)] = torch.arange(len(rows))
        listed = new_N[self._tables["rows"]]
        label_of = torch.repeat_interleave(torch.arange(self.labels), self._tables["starts"].diff())
        sizes = torch.bincount(label_of[listed >= 0], minlength=self.labels)
        self._tables["rows"] = listed[listed >= 0]
        self._tables["starts"][1:] = sizes.cumsum(0)
        self._graph.hide((sizes == 0).nonzero()[:, 0].tolist())
        self._described["rows"], self._visible = len(rows), int((sizes > 0).sum())

    def extend(self, keys_NF: Tensor, corpus_sha256: str) -> None:
        """Put in the keys of rows behind those it has, which make the corpus's fingerprint this.
        A key that is there already joins its label."""
        keys = _array(keys_NF)
        labels, cosines = self._graph.nearest(keys, 1)
        label_of = {row: int(labels[row, 0]) for row in np.flatnonzero(cosines[:, 0] > _SAME)}
        new_labels: dict[bytes, int] = {}
        label_of_row: list[int] = []
        fresh = [row for row in range(len(keys)) if row not in label_of]
        new, numbers = _label(keys[fresh], new_labels, label_of_row)
        if new:
            labels_new = [self.labels + number for number in numbers]
            self._graph.add(keys[fresh][new], labels_new)
        added = dict(zip(fresh, (self.labels + label for label in label_of_row), strict=True))
        starts = self._tables["starts"]
        old_label = torch.repeat_interleave(torch.arange(self.labels), starts.diff())
        more = torch.tensor([(label_of | added)[row] for row in range(len(keys))], dtype=torch.long)
        rows = torch.cat([self._tables["rows"], torch.arange(len(self), len(self) + len(keys))])
        label_N = torch.cat([old_label, more])
        self._described["labels"] += len(new_labels)
        order = torch.argsort(label_N, stable=True)
        sizes = torch.bincount(label_N, minlength=self.labels)
        self._tables["rows"] = rows[order]
        self._tables["starts"] = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        self._described |= {"rows": len(self) + len(keys), "corpus_sha256": corpus_sha256}
        self._visible = self.labels

    def new_graph(self, name: str) -> Callable[[int, int], Graph]:
        """What makes an empty graph with this one's settings; `name` tells it from others."""
        return partial(self._graph.anew, name)

    @property
    def built(self) -> int:
        """Of how many rows it was built, before it grew."""
        return int(self._described["built"])

    @property
    def listed(self) -> int:
        """How many rows it has, those among them that the corpus lost."""
        return len(self._tables["rows"])

    @property
    def engine(self) -> str:
        """Who keeps the graph: hnsw or milvus."""
        return self._graph.engine

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

    def candidates_for(self, rows: int) -> int:
        """Rows to propose for each one wanted where there are so many rows: as many as were
        measured to be enough, and more of more rows, in proportion."""
        per_k, measured = int(self._described["candidates_per_k"]), self.measured_rows
        return math.ceil(per_k * max(1, rows / measured))

    @property
    def measured_rows(self) -> int:
        """Of how many rows the candidates were measured."""
        return int(self._described["measured_rows"])

    @property
    def candidates_per_k(self) -> int:
        """Rows to propose for each one wanted."""
        return self.candidates_for(len(self))

    @candidates_per_k.setter
    def candidates_per_k(self, number: int) -> None:
        """Propose so many from now on."""
        self._described["candidates_per_k"] = number

    @property
    def labels(self) -> int:
        """How many distinct keys the graph holds."""
        return int(self._described["labels"])

    def __len__(self) -> int:
        return int(self._described["rows"])

    def search(self, keys_BF: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Propose `count` rows (all, if there are fewer) for each query key: cosines of the keys
        [B, N] float32 and rows [B, N] int64, best first, ties to the lower row.

        Raises ClaraError where a key is not finite, of another width, or the graph reaches too
        few.
        """
        keys = _array(keys_BF)
        if keys.shape[1] != self.width:
            message = f"query keys are {keys.shape[1]} wide, the index {self.width}"
            raise ArtefactError(message, REBUILD)
        count = min(count, len(self))
        if not len(keys):
            return torch.empty(0, count), torch.empty(0, count, dtype=torch.long)
        labels, cosines = self._graph.nearest(keys, min(count, self._visible))
        if not ((labels >= 0) & (labels < self.labels)).all() or not np.isfinite(cosines).all():
            message = f"the {self.engine} index gives keys that are none of its {self.labels}"
            raise ArtefactError(message, REBUILD)
        proposals = [self._rows_of(*pair, count) for pair in zip(labels, cosines, strict=True)]
        scores, rows = zip(*proposals, strict=True)
        return torch.stack(scores), torch.stack(rows)

    def _rows_of(
        self, labels: np.ndarray, cosines: np.ndarray, count: int
    ) -> tuple[Tensor, Tensor]:
        starts, rows = self._tables["starts"], self._tables["rows"]
        groups = [rows[int(starts[label]) : int(starts[label + 1])] for label in labels]
        scores_N = torch.repeat_interleave(
            torch.from_numpy(cosines.astype(np.float32)), torch.tensor(list(map(len, groups)))
        )
        rows_N = torch.cat(groups)
        by_row = torch.argsort(rows_N)
        order = by_row[torch.argsort(scores_N[by_row], descending=True, stable=True)][:count]
        return scores_N[order], rows_N[order]

    def save(self, root: Path, place: str = "") -> int:
        """Put the index in place of the one at `root / place`, at once; returns its bytes there.
        Raises ClaraError; then the one before stays."""

        def fill(folder: Path) -> dict[str, Any]:
            described: dict[str, Any] = {"format": _FORM[0], "version": _FORM[1]}
            described |= {**self._described, "engine": self.engine}
            described["graph"] = self._graph.save(folder)
            encode = partial(save_tensors, tensors=self._tables)
            return {**described, "tables": versions.save_file(folder, TABLES, encode)}

        return versions.publish(root, place, SIDECAR, FILES, fill)

    @classmethod
    def load(cls, folder: Path, states: Mapping[int, str]) -> GraphIndex | None:
        """The index of a corpus that had these `states` (fingerprints by rows), None where there is
        none of this version.

        Raises ArtefactError where it is damaged or of another corpus (both sums named).
        """

        def use(version: Version) -> GraphIndex:
            described = _check(version.fields, states)
            path = version.file("tables", TABLES)
            tables = read_tensors(path, REBUILD)
            _check_tables(path, tables, described)
            return cls(open_graph(version), tables, described)

        return versions.read(folder, SIDECAR, _FORM, REBUILD, use, _OLDER)


def forget(root: Path, place: str = "") -> None:
    """Leave no graph there."""
    versions.withdraw(root, place, SIDECAR, FILES)


def _check(fields: Fields, states: Mapping[int, str]) -> dict[str, Any]:
    """The description, once it is of this corpus and may be believed."""
    rows = refuse_other_corpus(fields, states)
    for key in ("width", "candidates_per_k", "built", "measured_rows"):
        fields.count(key, 1)
    labels = fields.count("labels", 1)
    if labels > rows:
        counts = f"{labels} keys for {rows} passages"
        raise ArtefactError(f"{fields.file}: {counts}", REBUILD)
    if (rule := fields.get("key", str)) not in KEY_RULES:
        raise fields.wrong("key", f"{rule[:60]!r}, known: {', '.join(KEY_RULES)}")
    return fields.values


def _check_tables(path: Path, tables: dict[str, Tensor], described: dict[str, Any]) -> None:
    """Each row stands behind one label, each label has a row, and the key rule's state is whole."""
    if not {"rows", "starts"} <= tables.keys():
        raise ArtefactError(f"{path}: no tensors 'rows' and 'starts'", REBUILD)
    rows, labels = described["rows"], described["labels"]
    starts, listed = tables["starts"], tables["rows"]
    for name, tensor, count in (("starts", starts, labels + 1), ("rows", listed, len(listed))):
        if tensor.dtype != torch.int64 or tensor.shape != (count,):
            shape = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            message = f"{path}: tensor {name!r} is {shape}, not int64 [{count}]"
            raise ArtefactError(message, REBUILD)
    ordered = bool((starts.diff() > 0).all()) and bool((listed.sort().values.diff() > 0).all())
    inside = int(starts[0]) == 0 and int(starts[-1]) == len(listed)
    if not (ordered and inside) or int(listed.min()) < 0 or int(listed.max()) >= rows:
        raise ArtefactError(f"{path}: not one label for each row, of {rows}", REBUILD)
    state = {name: tensor for name, tensor in tables.items() if name not in ("rows", "starts")}
    if wrong := wrong_state(described["key"], state, described["width"]):
        raise ArtefactError(f"{path}: {wrong}", REBUILD)


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
