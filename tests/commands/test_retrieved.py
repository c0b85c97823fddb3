"""Pools retrieved from a corpus: no label is read, and a resumed run reads the same ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.retriever import Retriever
from clara_cli.commands import compress, train
from clara_cli.core import stage_losses
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.model import ClaraModel
from clara_cli.corpus.store import Corpus
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.examples import read_questions
from clara_cli.errors import ArtefactError, Interrupted, UsageError
from clara_cli.training.end_to_end import EndToEnd

BY = ("bm25", "query")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's questions with their answers alone."""
    bare = [{"question": r["question"], "answer": r["answer"]} for r in tiny_world.questions()]
    return tiny_world.write_jsonl(tmp_path_factory.mktemp("asked") / "q.jsonl", bare)


def config(works, asked: Path, out: Path, **changes: Any):
    """End to end from the shared instruct checkpoint on the shared corpus (compressed at 4 with
    the e2e checkpoint, which has the same memory space)."""
    settings = {"pool": "retrieved", "corpus": works.corpus, "steps": 6, "pool_size": 4, **changes}
    stage = settings.pop("stage", "e2e")
    init = settings.pop("init", works.instruct)
    return tiny_world.train(asked, init, out, stage, **settings)


def by(how: str) -> dict[str, Any]:
    return {"pool_by": how, **({"refresh_every": 2} if how == "query" else {})}


@pytest.mark.parametrize("how", BY)
def test_the_mode_is_said_in_the_log_and_in_the_checkpoint(works, asked, report, tmp_path, how):
    result = train.run(config(works, asked, tmp_path / "run", steps=1, **by(how)), report)
    entry = read_info(Path(result.checkpoint)).provenance[-1]
    assert (entry["pool"], entry["pool_by"], entry["init_stage"]) == ("retrieved", how, "instruct")
    assert entry["corpus"] == "world.clara" and entry.get("refresh_every") == by(how).get(
        "refresh_every"
    )
    who = "BM25" if how == "bm25" else "the query reasoner every 2 steps"
    said = f"pools: retrieved from world.clara by {who}; no relevance label is read"
    assert said in report.notes


def test_labelled_pools_are_said_too(works, report, tmp_path):
    result = train.run(
        tiny_world.train(works.questions, works.scp, tmp_path / "run", "e2e", steps=1), report
    )
    entry = read_info(Path(result.checkpoint)).provenance[-1]
    assert (entry["pool"], entry["init_stage"]) == ("labelled", "scp")
    assert "pools: labelled, gold passages included" in report.notes


@pytest.mark.parametrize("how", BY)
def test_labels_and_given_pools_change_nothing(works, asked, report, tmp_path, how):
    """Questions with pools and golds train as the same questions without."""
    for name, data in (("bare", asked), ("labelled", works.questions)):
        train.run(config(works, data, tmp_path / name, steps=3, **by(how)), report)
    assert tiny_world.numbers(tmp_path / "bare") == tiny_world.numbers(tmp_path / "labelled")
    assert tiny_world.same(tmp_path / "bare" / "checkpoint", tmp_path / "labelled" / "checkpoint")


@pytest.mark.parametrize("how", BY)
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_interrupted_between_refreshes_goes_on_to_the_bit(
    works, asked, heard, report, tmp_path, how, stop
):
    """Refreshes before steps 1, 3 and 5; interrupted after a whole window and within one."""
    changes = {"learning_rate": 0.1, **by(how)}
    train.run(config(works, asked, tmp_path / "whole", **changes), report)
    with pytest.raises(Interrupted, match=f"{stop} of 6"):
        train.run(config(works, asked, tmp_path / "run", **changes), Steps(stop))
    train.run(config(works, asked, tmp_path / "run", **changes), report)
    assert tiny_world.numbers(tmp_path / "run") == tiny_world.numbers(tmp_path / "whole")
    assert tiny_world.same(tmp_path / "run" / "checkpoint", tmp_path / "whole" / "checkpoint")


class Steps:
    """A report that interrupts after a number of training steps."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def progress(self, progress: Any) -> None:
        if progress.task == "train" and progress.done == self.stop:
            raise KeyboardInterrupt

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def test_the_query_reasoners_pools_are_anew_at_every_refresh(works, asked, report, tmp_path):
    """At a rate that moves it, so that the pools of the same question differ between refreshes."""
    changes = {"learning_rate": 0.5, "batch_size": 8, "pool_size": 2, "top_k": 1}
    train.run(config(works, asked, tmp_path / "run", **changes, **by("query")), report)
    kept = sorted((tmp_path / "run" / "pools").iterdir())
    assert [file.name for file in kept] == ["00000000.json", "00000002.json", "00000004.json"]
    pools = [json.loads(file.read_text()) for file in kept]
    assert all(set(found) == {str(n) for n in range(8)} for found in pools)
    assert all(len(rows) == 2 for found in pools for rows in found.values())
    assert pools[0] != pools[1]


def test_pools_that_are_lost_or_damaged_are_named(works, asked, report, tmp_path):
    with pytest.raises(Interrupted):
        train.run(config(works, asked, tmp_path / "run", **by("query")), Steps(3))
    (tmp_path / "run" / "pools" / "00000002.json").write_text("[]")
    with pytest.raises(ArtefactError, match=r"00000002.json: not an object"):
        train.run(config(works, asked, tmp_path / "run", **by("query")), report)


def test_nothing_is_compressed_and_what_is_read_is_the_corpus(
    works, asked, report, tmp_path, monkeypatch
):
    """The compressor is never run; the memory a step reads is the corpus's, to the bit."""
    encode, read, ranked = ClaraModel.encode, [], []

    def spy(model, rows, role, memory_tokens=None):
        read.append(role)
        return encode(model, rows, role, memory_tokens)

    rank = stage_losses.rank_pools

    def keep(model, batch, stored=None):
        ranked.append((batch.stored, stored))
        return rank(model, batch, stored)

    monkeypatch.setattr(ClaraModel, "encode", spy)
    monkeypatch.setattr(stage_losses, "rank_pools", keep)
    train.run(config(works, asked, tmp_path / "run", ratios=(16,), **by("query")), report)
    assert set(read) == {"query_reasoner"}
    corpus = Corpus.open(works.corpus)
    for rows, memory in ranked:
        assert len(set(rows)) == len(rows)
        assert torch.equal(memory, corpus.memory(rows)[:, :4])


def test_bm25_pools_are_its_ranking_made_up_to_top_k(works, asked, report, tmp_path):
    """A question that shares a word with too few passages gets others at random."""
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", [{"question": "Xyzzy?", "answer": "no"}])
    settings = config(works, data, tmp_path / "run", top_k=3)
    loaded = load(LoadOptions(str(works.e2e), device="cpu", dtype="float32"))
    stage = EndToEnd(settings, loaded, list(read_questions([str(data)])), Ranks(), report)
    (batch,) = stage.batches(0)
    assert len(set(batch.pools[0])) == 3 == batch.picks[0] and not batch.passages
    assert batch.stored == stage.batches(0)[0].stored
    questions = list(read_questions([str(asked)]))
    stage = EndToEnd(config(works, asked, tmp_path / "run"), loaded, questions, Ranks(), report)
    (batch,) = stage.batches(0)
    ranking = Retriever.open(works.corpus).bm25
    by_source = {question.source: question.question for question in questions}
    assert {questions[n].source for n in stage.visits(0)} == set(batch.sources)
    for source, pool in zip(batch.sources, batch.pools, strict=True):
        rows = [batch.stored[place] for place in pool]
        assert rows == ranking.search(by_source[source], 4)[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": None}, "without --corpus"),
        ({"stage": "instruct"}, "retrieved goes with --stage e2e"),
        ({"stage": "retrieval"}, "retrieved goes with --stage e2e"),
        ({"pool": "corpus"}, "corpus goes with --stage retrieval"),
        ({"pool": "corpus", "stage": "retrieval", "corpus": None}, "without --corpus"),
        ({"pool": "corpus", "stage": "retrieval", "pool_by": "bm25"}, "pool_by is bm25"),
        ({"train_memory": True}, "train_memory"),
        ({"refresh_every": 5}, "BM25's pools never change"),
        ({"pool": "labelled"}, "--corpus is .*labelled add --pool retrieved, or omit"),
        ({"pool": "labelled", "stage": "retrieval"}, "labelled add --pool corpus, or omit"),
        ({"pool": "labelled", "stage": "instruct"}, "labelled omit it"),
        ({"pool": "labelled", "corpus": None, "pool_by": "bm25"}, "pool_by is bm25"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(works, asked, report, tmp_path, changes, words):
    settings = config(works, asked, tmp_path / "run", **changes)
    with pytest.raises(UsageError) as caught:
        train.run(settings, report)
    assert re.search(words, f"{caught.value.message} {caught.value.hint}")
    assert not (tmp_path / "run").exists()


def corpus_that_names(works, folder: Path, model: Any) -> Path:
    """The corpus with another `checkpoint.model`, and a checkpoint inside it."""
    shutil.copytree(works.corpus, folder)
    shutil.copytree(works.e2e, folder / "mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checkpoint"]["model"] = str(folder / "mine") if model == "its own" else model
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("model", [{"a": 1}, 3, "", "its own", "nobody/nothing-7b"])
def test_a_corpus_chooses_nothing_that_training_loads(
    works, asked, report, tmp_path, monkeypatch, model
):
    """Only --init is loaded, whatever a corpus names; nor is it advised."""
    names: list[str] = []

    def recorded(options: LoadOptions, *rest: Any) -> Any:
        names.append(options.name)
        return load(options, *rest)

    monkeypatch.setattr(train, "load", recorded)
    corpus = corpus_that_names(works, tmp_path / "c.clara", model)
    train.run(config(works, asked, tmp_path / "run", corpus=corpus, steps=1), report)
    assert names == [str(works.instruct)]
    settings = config(works, asked, tmp_path / "other", corpus=corpus, init=works.scp)
    with pytest.raises(ArtefactError, match="was compressed by checkpoint") as caught:
        train.run(settings, report)
    named = f"use --init {model}, or " if model == "nobody/nothing-7b" else ""
    again = f"clara compress the documents again with --model {works.scp}"
    assert caught.value.hint == named + again
    assert names[1:] == [str(works.scp)]


def test_a_corpus_of_another_memory_space_or_ratio_is_refused(works, asked, report, tmp_path):
    settings = config(works, asked, tmp_path / "run", init=works.scp)
    with pytest.raises(ArtefactError, match="was compressed by checkpoint") as caught:
        train.run(settings, report)
    assert f"use --init {works.e2e}, or" in caught.value.hint
    coarse = tmp_path / "coarse.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, coarse, ratio=16), report)
    with pytest.raises(UsageError, match="ask for 16 memory tokens, the corpus keeps 4"):
        train.run(config(works, asked, tmp_path / "run", corpus=coarse, ratios=(4,)), report)
    train.run(config(works, asked, tmp_path / "run", corpus=coarse, steps=1), report)


def test_bm25_needs_a_corpus_with_text(works, asked, report, tmp_path):
    bare = tmp_path / "bare.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, bare, text=False), report)
    with pytest.raises(ArtefactError, match="no text was kept"):
        train.run(config(works, asked, tmp_path / "run", corpus=bare), report)
    train.run(config(works, asked, tmp_path / "run", corpus=bare, steps=1, **by("query")), report)


@pytest.mark.parametrize("how", BY)
def test_a_share_is_validated_on_pools_retrieved_for_it(works, asked, report, tmp_path, how):
    """The questions kept aside have pools of the corpus too; without labels there is no recall."""
    changes = {"validation_share": 0.4, "validate_every": 2, "steps": 4, "dropout": 0.0, **by(how)}
    train.run(config(works, asked, tmp_path / "run", **changes), report)
    checks = tiny_world.metrics(tmp_path / "run", "validation.jsonl")
    assert [line["step"] for line in checks] == [2, 4]
    assert {frozenset(line) for line in checks} == {frozenset({"step", "ce", "em", "f1"})}
    assert all(line["ce"] > 0 for line in checks)


def test_the_share_is_read_from_the_pools_bm25_finds(works, asked, report, tmp_path):
    """The check's loss is that of the same questions over BM25's passages, computed here."""
    changes = {"validation_share": 0.4, "steps": 0}
    questions = list(read_questions([str(asked)]))
    made = config(works, asked, tmp_path / "run", **{**changes, "steps": 1})
    loaded = load(LoadOptions(str(works.instruct), device="cpu"))
    EndToEnd.add_missing_roles(loaded)
    stage = EndToEnd(made, loaded, questions, Ranks(), report)
    held_out = stage.held_out(questions[:2])
    batch = held_out.build([example.given for example in held_out.examples])
    retriever = Retriever.open(works.corpus)
    for question, pool in zip(questions[:2], batch.pools, strict=True):
        rows = [batch.stored[place] for place in pool]
        found = retriever.bm25.search(question.question, made.pool_size)[1]
        assert rows[: len(found)] == found and len(rows) >= made.top_k
    memory_ND, scores = held_out.read(batch)
    assert memory_ND is not None and len(scores) == 2


def test_labelled_questions_to_validate_on_keep_their_own_pools(works, asked, report, tmp_path):
    changes = {"validation": (str(works.questions),), "validate_every": 1, "steps": 1}
    train.run(config(works, asked, tmp_path / "run", **changes), report)
    (line,) = tiny_world.metrics(tmp_path / "run", "validation.jsonl")
    assert {"recall@1", "recall@3"} <= line.keys()
