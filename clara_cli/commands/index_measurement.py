"""What `clara index` measured of a corpus, kept in the user's cache, so that an index that is still
as it was then is not measured again.

It never lies beside the index: what comes with a corpus may be somebody else's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from clara_cli import __version__
from clara_cli.answering.engine import named_model
from clara_cli.answering.retriever import FIELDS, INDEX, WORDS
from clara_cli.config import IndexConfig
from clara_cli.core.checkpoint import LoadOptions, find_stored
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ClaraError
from clara_cli.records import IndexResult
from clara_cli.search import bm25, field_table, graph_index
from clara_cli.storage.artefact import Fields, encode, read_object
from clara_cli.storage.cache import cache_folder, private, private_folder
from clara_cli.storage.files import sha256_bytes, sha256_file, write_atomic

FOLDER = "measurements"
OPTIONS = ("engine", "uri", "top_k", "candidates", "backbone", "device", "dtype", "load_in", "seed")
HINT = "run clara index again"


def measurement_key(config: IndexConfig, corpus: Corpus) -> str | None:
    """The name of what a command measures: the digest of everything that decides it. None where
    the checkpoint is not here, or does not say its weights' digests."""
    name, ratio = named_model(corpus, config.model), corpus.manifest.identity.ratio
    try:
        info = find_stored(LoadOptions.of(config, name, ratio)).info
    except ClaraError:
        return None
    if not info.weights:
        return None
    decides: dict[str, Any] = {option: getattr(config, option) for option in OPTIONS}
    decides |= {"clara": __version__, "corpus": corpus.manifest.sha256, "weights": info.weights}
    decides |= {"backbone_digest": info.backbone_digest}
    if config.queries is not None:
        if not config.queries.is_file():  # reading it says so
            return None
        decides["queries"] = sha256_file(config.queries)
    return sha256_bytes(encode(decides))


def read_measurement(key: str, corpus: Corpus) -> IndexResult | None:
    """What was measured before, where every file of the index is as it was then; None else."""
    try:
        fields = read_object(cache_folder() / FOLDER / key, HINT)
        if fields is None or fields.list_of("index", str) != _sidecars(corpus.folder):
            return None
        _load_index(corpus)
        return _result(fields.object("result"), corpus)
    except ClaraError:  # damaged, or a server of keys is away: measured again
        return None


def keep_measurement(key: str, corpus: Corpus, result: IndexResult) -> None:
    """Keep what was measured; where the cache cannot be written, it is measured again next time."""
    record = {"index": _sidecars(corpus.folder), "result": dataclasses.asdict(result)}
    with contextlib.suppress(ClaraError, OSError), private():
        write_atomic(private_folder(FOLDER), key, encode(record))


def _sidecars(folder: Path) -> tuple[str, ...]:
    """Digests of the descriptions of graph, words and fields, which name every file of theirs."""
    described = ((INDEX, graph_index.SIDECAR), (WORDS, bm25.SIDECAR), (FIELDS, field_table.SIDECAR))
    files = [folder / place / sidecar for place, sidecar in described]
    return tuple(sha256_file(file) if file.is_file() else "" for file in files)


def _load_index(corpus: Corpus) -> None:
    """Raise ArtefactError where a file of the index is damaged."""
    states = corpus.manifest.states
    graph_index.GraphIndex.load(corpus.folder / INDEX, states)
    bm25.BM25.load(corpus.folder / WORDS, states)
    field_table.FieldTable.load(corpus.folder / FIELDS, states)


def _result(fields: Fields, corpus: Corpus) -> IndexResult:
    recall = None if fields.values.get("recall_at_k") is None else fields.number("recall_at_k", 1)
    return IndexResult(
        corpus=str(corpus.folder),
        engine=fields.get("engine", str),
        vectors=len(corpus),
        dim=fields.count("dim"),
        recall_at_k=recall,
        k=fields.count("k"),
        queries=fields.count("queries"),
        seconds=0.0,
        bytes=fields.count("bytes"),
    )
