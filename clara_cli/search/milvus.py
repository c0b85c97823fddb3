"""Keys kept in Milvus: a `.db` path runs embedded, an address is a server or a cluster. The only
importer of pymilvus, which comes with the extra `milvus`.

Keys are checked, and equal ones joined, before they come here (graph.py). A server's token is read
from $MILVUS_TOKEN and stored nowhere. Knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clara_cli.errors import ClaraError, UsageError
from clara_cli.extras import install_command
from clara_cli.search.errors import REBUILD
from clara_cli.storage.artefact import Fields

_INSERT = 1000  # keys a request carries: 16 MB at the widest, servers take 64
_EMBEDDED_EF = 64  # how widely milvus-lite searches, however many are wanted, unless told
MOST = 16_384  # results Milvus gives to one query


def full_uri(uri: str) -> str:
    """An address as it is, a file by its full path. Raises UsageError for another kind of file, and
    for an address with a password in it: the index would keep it."""
    if "://" in uri:
        if "@" in uri:
            shown = uri.rpartition("@")[2]
            raise UsageError(f"--uri ...@{shown}: a password in it", "put it into $MILVUS_TOKEN")
        return uri
    if not uri.endswith(".db"):
        raise UsageError(
            f"--uri {uri}: neither an address nor a .db file", "like http://host:19530"
        )
    return str(Path(uri).absolute())


class MilvusGraph:
    """One collection, searched by cosine with Milvus's own choice of index."""

    engine = "milvus"

    def __init__(self, uri: str, collection: str, labels: int = 0) -> None:
        """`labels` is how many the collection had when it was described: others may come later."""
        self.uri, self.collection, self._labels = uri, collection, labels
        self._hidden: list[int] = []
        self._connected: Any = None

    @classmethod
    def new(
        cls,
        width: int,
        uri: str,
        collection: str,
        before_dropping: Callable[[], object] = lambda: None,
    ) -> MilvusGraph:
        """An empty collection for keys of a width; one of the same name is dropped first, once
        whoever points to it was told."""
        graph = cls(full_uri(uri), collection)
        with graph._client() as client:
            from pymilvus import DataType

            if client.has_collection(collection):
                before_dropping()
                client.drop_collection(collection)
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("label", DataType.INT64, is_primary=True)
            schema.add_field("key", DataType.FLOAT_VECTOR, dim=width)
            index = client.prepare_index_params()
            index.add_index("key", index_type="AUTOINDEX", metric_type="COSINE")
            client.create_collection(collection, schema=schema, index_params=index)
        return graph

    @classmethod
    def load(cls, entry: Fields, labels: int) -> MilvusGraph:
        """The collection that `save` described, with so many labels; the first question
        connects."""
        return cls(entry.get("uri", str), entry.get("collection", str), labels)

    def add(self, keys: np.ndarray, labels: list[int]) -> None:
        """Put in new keys [N, F] under new labels, or again: a process that was killed may have
        put them in and told nobody."""
        rows = [{"label": n, "key": key} for n, key in zip(labels, keys.tolist(), strict=True)]
        with self._client() as client:
            for start in range(0, len(rows), _INSERT):
                client.upsert(self.collection, rows[start : start + _INSERT])
        self._labels = max(self._labels, *(label + 1 for label in labels))

    def anew(self, name: str, width: int, most: int) -> MilvusGraph:
        """An empty collection beside this one; a reader may still ask that."""
        return MilvusGraph.new(width, self.uri, f"clara_{name[:16]}_anew")

    def hide(self, labels: list[int]) -> None:
        """Give these labels no more."""
        self._hidden = labels

    def nearest(self, keys: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels [B, wanted] and cosines, best first. Raises ClaraError where Milvus gives fewer
        or may not be asked for so many."""
        if wanted > MOST:
            what = f"{wanted:,} candidates: Milvus gives at most {MOST:,}"
            raise UsageError(what, "lower --candidates")
        # a filter thins out what its graph reaches: a few hidden ones are left out here
        leaves_out = wanted + len(self._hidden) <= MOST
        limit = wanted + len(self._hidden) if leaves_out else wanted
        is_embedded = "://" not in self.uri
        breadth = max(_EMBEDDED_EF, 2 * limit) if is_embedded else 0
        while True:
            listed = self._given(keys, limit, breadth, [] if leaves_out else self._hidden)
            fewest = min(map(len, listed))
            if fewest >= wanted:
                break
            if breadth > 2 * min(MOST, self._labels):
                where = f"{self.uri}: collection {self.collection}"
                raise ClaraError(f"{where} gave {fewest} of {wanted} labels", REBUILD)
            breadth = 4 * max(limit, breadth)
        labels = np.array([[label for label, _ in pairs[:wanted]] for pairs in listed], np.int64)
        cosines = [[cosine for _, cosine in pairs[:wanted]] for pairs in listed]
        return labels, np.array(cosines, np.float32)

    def _given(
        self, keys: np.ndarray, limit: int, breadth: int, leave_out: list[int]
    ) -> list[list[tuple[int, float]]]:
        """The labels that are not hidden with their cosines, of the best `limit` for each key, its
        graph searched as widely as is usual, or so widely (ef)."""
        how = {"search_params": {"params": {"ef": breadth}}} if breadth else {}
        with self._client() as client:
            results = client.search(
                self.collection,
                data=keys.tolist(),
                anns_field="key",
                filter=self._filter(leave_out),
                limit=limit,
                output_fields=["label"],
                consistency_level="Strong",
                **how,
            )
        hidden = set(self._hidden)
        scored = ([(hit["label"], hit["distance"]) for hit in hits] for hits in results)
        return [[pair for pair in pairs if pair[0] not in hidden] for pairs in scored]

    def _filter(self, leave_out: list[int]) -> str:
        """Which labels may be given: those of this index, of which the collection may have more."""
        rest = f" and label not in {leave_out}" if leave_out else ""
        return f"label < {self._labels}{rest}"

    def save(self, folder: Path) -> dict[str, Any]:
        """Make the collection last; returns where it is."""
        with self._client() as client:
            client.flush(self.collection)
        return {"uri": self.uri, "collection": self.collection}

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """The connection; what goes wrong on it is one sentence naming the address."""
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise ClaraError(f"--engine milvus: {error}", install_command("milvus")) from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it also raises
        try:
            if self._connected is None:
                token = os.environ.get("MILVUS_TOKEN", "")
                self._connected = MilvusClient(uri=self.uri, token=token)
                if self._connected.has_collection(self.collection):
                    self._connected.load_collection(self.collection)
            yield self._connected
        except MilvusException as error:
            reason = error.message or "it gave no reason"
            hint = "check --uri and $MILVUS_TOKEN, or index again with another --engine"
            raise ClaraError(f"{self.uri}: {reason}", hint) from error
