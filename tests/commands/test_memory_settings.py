"""Memory of another kind, from the command line: trained, compressed, indexed and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.engine import Clara
from clara_cli.commands import compress, index, pretrain, train
from clara_cli.core.checkpoint import read_info
from clara_cli.corpus.manifest import read_manifest
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.memory_layout import MemoryLayout, coarsen

POOLED: dict[str, Any] = {
    "memory_source": "pooled",
    "memory_positions": "spread",
    "memory_layer": 1,
    "ratios": (2, 4, 8, 16),
}


@pytest.fixture(scope="module")
def pooled(works, heard, tmp_path_factory) -> Path:
    """A folder with a run of every stage and a corpus, memory pooled throughout."""
    folder = tmp_path_factory.mktemp("pooled")
    scp = tiny_world.scp(works.pairs, works.backbone, folder / "scp", **POOLED)
    pretrain.run(scp, heard())
    for stage, init in (("instruct", "scp"), ("e2e", "instruct")):
        run = tiny_world.train(works.questions, folder / init, folder / stage, stage)
        train.run(run, heard())
    documents = tiny_world.compress(works.documents, folder / "e2e", folder / "world.clara")
    compress.run(documents, heard())
    return folder


def test_checkpoints_and_corpora_say_how_their_memory_is_made(pooled, works) -> None:
    for run in ("scp", "instruct", "e2e"):
        info = read_info(pooled / run / "checkpoint")
        assert (info.version, info.layout) == (3, MemoryLayout("pooled", "spread", 1))
    stored = json.loads((pooled / "world.clara" / "manifest.json").read_text())
    assert stored["version"] == 3
    assert stored["checkpoint"]["memory"] == {"source": "pooled", "positions": "spread", "layer": 1}
    published = json.loads((works.corpus / "manifest.json").read_text())
    assert published["version"] == 2 and "memory" not in published["checkpoint"]


def test_a_higher_ratio_reads_the_means_of_stored_memory(pooled, works, report, tmp_path) -> None:
    """What is asked at 16 of a corpus at 4 is what a corpus at 16 holds."""
    sixteen = tmp_path / "sixteen.clara"
    compress.run(tiny_world.compress(works.documents, pooled / "e2e", sixteen, ratio=16), report)
    corpus, coarse = Corpus.open(pooled / "world.clara"), Corpus.open(sixteen)
    rows = range(len(corpus))
    means = coarsen(corpus.memory(rows), 4, "mean")
    assert (means - corpus.memory(rows, 4)).abs().max() == 0
    assert (corpus.memory(rows, 4) - coarse.memory(rows)).abs().max() < 1e-5
    chunks = torch.cat([memory for _, memory in corpus.memory_chunks(3, 4)])
    assert torch.equal(chunks, corpus.memory(rows, 4))
    for stage in ("latent", "bm25"):
        nested, direct = (
            answer_of(folder, ratio=16, first_stage=stage) for folder in (corpus.folder, sixteen)
        )
        assert nested == direct


def answer_of(corpus: Path, **how: Any) -> tuple[str, list[int]]:
    """The answer to a question and the passages it was read from."""
    clara = Clara.open(corpus, device="cpu", dtype="float32")
    answer = clara.ask("Who is mayor of Pinewick?", top_k=2, max_new_tokens=8, **how)
    return answer.answer, [source.row for source in answer.sources]


def test_an_index_finds_in_it_what_a_scan_does(pooled, heard, tmp_path) -> None:
    corpus = tmp_path / "world.clara"
    shutil.copytree(pooled / "world.clara", corpus)
    before = answer_of(corpus, first_stage="latent")
    index.run(tiny_world.index(corpus, engine="exact"), heard())
    assert answer_of(corpus, first_stage="latent") == before


def test_another_layout_begins_memory_anew_on_the_same_generator(works, heard, tmp_path) -> None:
    config = tiny_world.scp(
        works.pairs, None, tmp_path / "new", init=str(works.e2e), steps=0, **POOLED
    )
    pretrain.run(config, heard())
    info, before = (read_info(run / "checkpoint") for run in (tmp_path / "new", works.e2e))
    assert (info.roles, info.ratios) == (("compressor", "generator"), (2, 4, 8, 16))
    assert info.memory_tokens == 32
    assert info.weights["generator"] == before.weights["generator"]
    assert info.weights["compressor"] != before.weights["compressor"]
    assert info.fingerprint != before.fingerprint


def test_a_layer_the_backbone_lacks_is_refused_before_anything_is_written(
    works, heard, tmp_path
) -> None:
    settings = {**POOLED, "memory_layer": 9}
    config = tiny_world.scp(works.pairs, works.backbone, tmp_path / "run", **settings)
    with pytest.raises(UsageError, match="memory_layer is 9"):
        pretrain.run(config, heard())
    assert not (tmp_path / "run").exists()


def test_only_what_compresses_learns_from_the_passages_themselves(works, heard, tmp_path) -> None:
    for stage in ("e2e", "retrieval"):
        for setting in ("reconstruction", "distillation"):
            config = tiny_world.train(
                works.questions, works.instruct, tmp_path / stage, stage, **{setting: 0.5}
            )
            with pytest.raises(UsageError, match=f"{setting} is 0.5, but {stage}"):
                train.run(config, heard())


def test_a_manifest_with_a_layout_that_is_not_known_is_refused(pooled, tmp_path) -> None:
    corpus = tmp_path / "world.clara"
    shutil.copytree(pooled / "world.clara", corpus)
    manifest = json.loads((corpus / "manifest.json").read_text())
    for memory in ({"source": "sums"}, {"layer": -1}, {"positions": None}, {"mean": 1}, 3):
        manifest["checkpoint"]["memory"] = memory
        (corpus / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtefactError, match=r"checkpoint\.memory"):
            read_manifest(corpus)


def test_memory_of_one_layout_is_not_read_by_another(pooled, works) -> None:
    with pytest.raises(ArtefactError, match="was compressed by checkpoint"):
        Clara.open(pooled / "world.clara", model=str(works.e2e), device="cpu", dtype="float32")
