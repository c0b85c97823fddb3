"""Readers beside `clara index` and `clara compress --into`: an open never fails.

`CLARA_OPENS=100000 pytest tests/search/test_readers_beside_a_writer.py` is the long form. Run as a
program, the file is the writer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clara_cli.answering.retriever import INDEX, WORDS, Retriever, passage_text
from clara_cli.corpus.manifest import Identity, read_manifest
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import open_writer
from clara_cli.errors import ArtefactError
from clara_cli.records import Passage
from clara_cli.search.bm25 import BM25
from clara_cli.search.graph_index import GraphIndex, forget
from clara_cli.search.hnsw import HnswGraph, HnswSettings

ROOT = Path(__file__).parent.parent.parent
OPENS = int(os.environ.get("CLARA_OPENS", "300"))
ROWS, PARTS = 20, 8
IDENTITY = Identity({"fingerprint": "f"}, 2, 4, 16, "float32", True, {})


def grow(folder: Path, part: int) -> None:
    """Make the corpus (part 0), or add a part to it."""
    passages = [Passage(f"{part}#{n}", f"{part}-{n}", "", f"word{n}", 0, 5, 5) for n in range(ROWS)]
    memory_NMD = torch.randn(ROWS, 2, 4, generator=torch.Generator().manual_seed(part))
    counts = dict.fromkeys(("empty", "skipped", "truncated", "text_tokens"), 0)
    with open_writer(folder, IDENTITY, part=part) as writer:
        writer.write(0, passages, memory_NMD)
        writer.finish({**counts, "documents": ROWS, "passages": ROWS}, "d", passages[0].document_id)


def make_index(folder: Path, seed: int) -> None:
    """Index the corpus as it is; another seed gives another graph."""
    corpus = Corpus.open(folder)
    keys_NF = torch.cat([memory.flatten(1) for _, memory in corpus.memory_chunks()])
    index = GraphIndex.build(
        [keys_NF],
        lambda width, most: HnswGraph.new(width, most, HnswSettings(seed=seed)),
        rows=len(corpus),
        rule="mean",
        state={},
        corpus_sha256=corpus.manifest.fingerprint,
        candidates_per_k=4,
    )
    index.save(folder, INDEX)
    BM25.build(map(passage_text, corpus.passages())).save(
        folder, corpus.manifest.fingerprint, WORDS
    )


def write_for_ever(folder: Path) -> None:
    """Index again and again, now and then after an addition or after leaving no graph."""
    for turn in range(10**9):
        if turn % 25 == 24 and turn // 25 < PARTS:
            grow(folder, 1 + turn // 25)
        if turn % 25 == 12:
            forget(folder, INDEX)
        make_index(folder, turn)


def test_an_open_beside_a_writer_never_fails(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    grow(folder, 0)
    make_index(folder, 0)
    states, graphs = set(), 0
    writer = subprocess.Popen([sys.executable, __file__, str(folder)], cwd=ROOT)
    try:
        opens = 0
        while opens < OPENS or len(states) < 2:
            retriever = Retriever.open(folder)
            assert retriever.index is None or len(retriever.index) == len(retriever.corpus)
            assert len(retriever.bm25) == len(retriever.corpus)
            graphs += retriever.index is not None
            states.add(len(retriever.corpus))
            opens += 1
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert graphs > opens / 2


def test_a_corpus_that_grew_is_scanned_until_it_is_indexed_again(tmp_path: Path) -> None:
    folder = tmp_path / "c.clara"
    grow(folder, 0)
    make_index(folder, 0)
    before = Retriever.open(folder)
    assert before.index is not None and not before.outgrown
    grow(folder, 1)
    grow(folder, 2)
    retriever = Retriever.open(folder)
    assert retriever.index is None and retriever.outgrown
    assert len(retriever.bm25) == 3 * ROWS
    assert len(before.bm25) == ROWS  # opened before: it goes on as it was
    make_index(folder, 0)
    retriever = Retriever.open(folder)
    assert retriever.index is not None and not retriever.outgrown
    assert len(before.bm25) == ROWS
    (tmp_path / "other").mkdir()
    grow(tmp_path / "other/c.clara", 9 - 9)
    (folder / "index").rename(tmp_path / "other/c.clara/index")
    with pytest.raises(ArtefactError, match="indexes corpus"):
        Retriever.open(tmp_path / "other/c.clara")
    assert read_manifest(folder) is not None


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
