"""The index of a corpus that is edited: it follows, and finds what a rebuilt one finds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from clara_cli.answering.index_update import update_index
from clara_cli.answering.retriever import (
    FIELDS,
    INDEX,
    WORDS,
    Retriever,
    passage_fields,
    passage_text,
)
from clara_cli.corpus.changes import deleted
from clara_cli.corpus.documents_table import Documents, StoredDocument, TableWriter
from clara_cli.corpus.manifest import Identity, read_manifest
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.vacuum import vacuum
from clara_cli.corpus.writer import CorpusWriter, open_writer
from clara_cli.records import Document, Passage
from clara_cli.search.bm25 import BM25
from clara_cli.search.exact import scan
from clara_cli.search.field_table import FieldTable
from clara_cli.search.graph_index import Graph, GraphIndex
from clara_cli.search.hnsw import HnswGraph, HnswSettings
from clara_cli.search.keys import make_key, make_state
from clara_cli.search.milvus import MilvusGraph

M, D = 2, 16
IDENTITY = Identity({"fingerprint": "f"}, M, D, 16, "float32", True, {})
COUNTS = dict.fromkeys(("empty", "skipped", "truncated", "text_tokens"), 0)
SHARD = 64


def memory_of(name: str) -> torch.Tensor:
    """A memory that the name decides, among 40 clusters."""
    number = int(name.removeprefix("d"))
    centre = torch.randn(M, D, generator=torch.Generator().manual_seed(number % 40))
    return centre + 0.5 * torch.randn(M, D, generator=torch.Generator().manual_seed(1000 + number))


def passage_of(name: str) -> Passage:
    text = f"word{int(name[1:]) % 7} of {name}"
    fields = {"kind": int(name[1:]) % 7, f"of{int(name[1:]) % 3}": [name, "some"]}
    return Passage(f"{name}#0", name, "", text, 0, len(text), 3, fields)


def write(folder: Path, names: list[str], removed: Sequence[StoredDocument] = ()) -> None:
    """Make a corpus of documents, or an edit that adds them and deletes others."""
    manifest = read_manifest(folder)
    part = len(manifest.parts) if manifest else 0
    edits = None
    if manifest:
        edits = deleted(Documents(Corpus(folder, manifest)), removed)
    with open_writer(folder, IDENTITY, part) as writer:
        table = TableWriter(folder, 99)
        table.begin(writer.first_row)
        for number, start in enumerate(range(0, len(names), SHARD)):
            some = names[start : start + SHARD]
            passages = [passage_of(name) for name in some]
            for name, passage in zip(some, passages, strict=True):
                table.add(Document(name, str(passage.text)), [passage])
            writer.write(number, passages, torch.stack([memory_of(name) for name in some]))
        counts = {**COUNTS, "documents": len(names), "passages": len(names)}
        counts["text_tokens"] = 3 * len(names)
        writer.finish(counts, "d", "", (), table.finish(), table.origins, edits)


def make_index(folder: Path, new_graph) -> None:
    corpus = Corpus.open(folder)
    sample_NMD = corpus.memory(range(len(corpus)))
    state = make_state("pca", sample_NMD, 8)
    index = GraphIndex.build(
        [make_key("pca", sample_NMD, state)],
        new_graph,
        rows=len(corpus),
        rule="pca",
        state=state,
        corpus_sha256=corpus.manifest.fingerprint,
        candidates_per_k=6,
    )
    stored = (corpus.stored_rows, corpus.manifest.rows)
    index.place(*stored)
    index.save(folder, INDEX)
    words = BM25.build(map(passage_text, corpus.passages())).placed(*stored)
    words.save(folder, corpus.manifest.fingerprint, WORDS)
    fields = FieldTable.build(map(passage_fields, corpus.passages())).placed(*stored)
    fields.save(folder, corpus.manifest.fingerprint, FIELDS)


@dataclass
class Searched:
    """What some questions find in a corpus."""

    recall: float
    exact: list[list[str]]
    words: list[tuple[list[str], list[float]]]
    filtered: list[list[str]]


def searched(folder: Path, indexed: bool = True) -> Searched:
    retriever = Retriever.open(folder)
    assert (retriever.index is not None) == indexed
    corpus = retriever.corpus
    names = [passage.document_id for passage in corpus.passages()]
    generator = torch.Generator().manual_seed(3)
    queries_BMD = torch.stack([
        memory_of(f"d{n}") + 0.3 * torch.randn(M, D, generator=generator) for n in range(100)
    ])  # fmt: skip
    best = scan(queries_BMD, corpus.memory_chunks(), 5)[1].tolist()
    shares = []
    for query_MD, wanted in zip(queries_BMD, best, strict=True):
        rows = [row for _, row in retriever.search("", query_MD, 5, "latent")]
        shares.append(len(set(rows) & set(wanted)) / len(wanted))
    words = []
    for question in ("word3", "word5 of d9", "d17"):
        scores, rows = retriever.bm25.search(question, 20)
        words.append(([names[row] for row in rows], scores))
    filters = ("kind=3", "of1=some and not kind<4", "document_id=d9 or of2=d17")
    rows_of = [retriever.rows_where(where) for where in filters]
    return Searched(
        recall=sum(shares) / len(shares),
        exact=[[names[row] for row in rows] for rows in best],
        words=words,
        filtered=[[names[row] for row in rows] for rows in rows_of],
    )


def hnsw(width: int, most: int) -> Graph:
    return HnswGraph.new(width, most, HnswSettings())


def assert_like_rebuilt(folder: Path, other: Path, new_graph) -> None:
    """An edited corpus is searched like one made of the same documents in the same order."""
    names = [passage.document_id for passage in Corpus.open(folder).passages()]
    write(other, names)
    make_index(other, new_graph)
    edited, rebuilt = searched(folder), searched(other)
    assert edited.exact == rebuilt.exact
    assert edited.words == rebuilt.words
    assert edited.filtered == rebuilt.filtered
    assert edited.recall >= rebuilt.recall - 0.005


def milvus(folder: Path):
    """What makes a collection of its own for each graph, embedded."""
    pytest.importorskip("milvus_lite", reason="the extra clara-cli[milvus] is not installed")
    numbers = count()
    return lambda width, most: MilvusGraph.new(width, f"{folder}/keys.db", f"n{next(numbers)}")


@pytest.mark.parametrize("engine", ["hnsw", "milvus"])
def test_after_any_edit_search_equals_a_rebuild(tmp_path: Path, engine: str) -> None:
    """Also after 90 % were deleted and came back."""
    new_graph = hnsw if engine == "hnsw" else milvus(tmp_path)
    folder, rng = tmp_path / "c.clara", random.Random(0)
    everything = [f"d{n}" for n in range(400)]
    write(folder, everything)
    make_index(folder, new_graph)
    live = set(everything)
    steps = [(0, 40), (30, 60), (450 * 9 // 10, 0), (0, 360), (20, 20)]
    for number, (gone, come) in enumerate(steps):
        documents = Documents(Corpus.open(folder))
        removed = rng.sample(sorted(live), min(gone, len(live) - 5))
        first = 1000 * (number + 1)
        added = [f"d{n}" for n in range(first, first + come)]
        write(folder, added, [documents.get(name) for name in removed])
        live = live - set(removed) | set(added)
        assert {p.document_id for p in Corpus.open(folder).passages()} == live
        if come:
            assert searched(folder, indexed=False).recall == 1  # scanned until it follows
        written = update_index(Corpus.open(folder))
        assert (written > 0) == (come > 0 or gone > 200)
        assert_like_rebuilt(folder, tmp_path / f"{number}.clara", new_graph)
    manifest = read_manifest(folder)
    vacuum(folder, manifest, SHARD)
    assert searched(folder, indexed=False).recall == 1
    assert update_index(Corpus.open(folder)) > 0
    assert_like_rebuilt(folder, tmp_path / "vacuum.clara", new_graph)


def test_equal_memories_share_a_label_however_they_came(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    write(folder, [f"d{n}" for n in range(50)])
    make_index(folder, hnsw)
    twin = "d4000"
    with open_writer(folder, IDENTITY, 1) as writer:
        writer.write(0, [passage_of(twin)], torch.stack([memory_of("d7")]))
        writer.finish({**COUNTS, "documents": 1, "passages": 1}, "d")
    update_index(Corpus.open(folder))
    retriever = Retriever.open(folder)
    assert retriever.index is not None and retriever.index.labels == 50
    ranked = retriever.search("", memory_of("d7"), 2, "latent")
    assert sorted(row for _, row in ranked) == [7, 50]
    documents = Documents(retriever.corpus)
    write(folder, [], [documents.get("d7")])
    retriever = Retriever.open(folder)
    (_, row), _ = retriever.search("", memory_of("d7"), 2, "latent")
    assert retriever.corpus.passage(row).document_id == twin


def test_a_corpus_that_lost_everything_finds_nothing_and_may_grow_again(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    write(folder, ["d1", "d2"])
    make_index(folder, hnsw)
    write(folder, [], list(Documents(Corpus.open(folder))))
    update_index(Corpus.open(folder))
    retriever = Retriever.open(folder)
    assert len(retriever.corpus) == 0 and retriever.bm25.search("word1", 5) == ([], [])
    write(folder, ["d3"])
    update_index(Corpus.open(folder))
    assert Retriever.open(folder).bm25.search("d3", 5)[1] == [0]
    assert CorpusWriter(folder, IDENTITY, 9).first_row == 3


def test_emptied_and_vacuumed_it_may_grow_again(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    write(folder, ["d1", "d2"])
    make_index(folder, hnsw)
    write(folder, [], list(Documents(Corpus.open(folder))))
    vacuum(folder, read_manifest(folder), SHARD)
    update_index(Corpus.open(folder))
    write(folder, ["d3", "d10"])
    update_index(Corpus.open(folder))
    retriever = Retriever.open(folder)
    assert retriever.bm25.search("d3", 5)[1] == [0] and retriever.rows_where("kind=3") == [0, 1]
