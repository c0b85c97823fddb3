"""A folder of 203 files of seven kinds, by six packages: compressed, edited, pruned and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_world
from helpers.mixed_files import NEEDED, WRITERS, fact

from clara_cli.commands import ask, compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.store import Corpus
from clara_cli.records import NullReport

EACH = 29


def into(corpus: Path, folder: Path, **changes) -> CompressConfig:
    return CompressConfig(
        **tiny_world.MACHINE, inputs=(str(folder),), into=corpus, skip_bad=True, **changes
    )


@pytest.mark.slow
def test_two_hundred_mixed_files_are_compressed_edited_pruned_and_asked(works, tmp_path):
    for module in NEEDED:
        pytest.importorskip(module, reason="the extras clara-cli[documents,dev] are not installed")
    folder, corpus = tmp_path / "mixed", tmp_path / "mixed.clara"
    folder.mkdir()
    for kind, writer in WRITERS.items():
        for number in range(EACH):
            writer(folder / f"{kind}{number}.{kind}", fact(kind, number))
    assert len(list(folder.iterdir())) == 203
    made = compress.run(tiny_world.compress(folder, works.e2e, corpus), NullReport())
    assert (made.documents, made.skipped) == (203, 0)
    index.run(tiny_world.index(corpus, engine="hnsw"), NullReport())

    for kind, writer in WRITERS.items():
        writer(folder / f"{kind}0.{kind}", f"The {kind} of Town 0 was sold to Buyer{kind}.")
        (folder / f"{kind}1.{kind}").unlink()
    (folder / "docx2.docx").write_bytes(b"no longer a document")
    same = compress.run(into(corpus, folder), NullReport())
    assert (same.replaced, same.added, same.deleted, same.skipped) == (7, 0, 0, 1)
    assert same.computed == 7 and same.documents == 203
    pruned = compress.run(into(corpus, folder, prune=True, yes=True), NullReport())
    assert (pruned.deleted, pruned.documents, pruned.computed) == (7, 196, 0)

    texts = {p.document_id: p.text for p in Corpus.open(corpus).passages()}
    assert "docx2.docx" in texts  # it could not be read: kept
    for kind in WRITERS:
        name = "parquet0" if kind == "parquet" else f"{kind}0.{kind}"
        assert f"Buyer{kind}" in texts[name]
        question = f"Buyer{kind}"
        (result,) = ask.run(tiny_world.ask(question, corpus, search=True, top_k=1), NullReport())
        assert result.sources[0].passage.document_id == name
        assert result.sources[0].sentence is not None
    (answer,) = ask.run(tiny_world.ask("Who bought Town 0?", corpus), NullReport())
    assert answer.sources and {hit.passage.document_id for hit in answer.sources} <= texts.keys()
    gone = json.dumps(sorted(texts))
    assert not any(f'"{kind}1.' in gone for kind in WRITERS)
