"""Retrieval from labels among the passages of a whole corpus, whose memory is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.commands import compress, train
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.losses import infonce
from clara_cli.core.model import ClaraModel
from clara_cli.core.topk import cosines
from clara_cli.corpus.store import Corpus
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.examples import read_questions
from clara_cli.errors import ArtefactError, DataError, Interrupted
from clara_cli.training.retrieval import Retrieval

TEMPERATURE = 0.05


@pytest.fixture(scope="module")
def gold_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's questions, each with the passage that holds its answer and no other."""
    file = tmp_path_factory.mktemp("gold") / "q.jsonl"
    return tiny_world.write_jsonl(file, tiny_world.questions(pool=1))


def config(works, data: Path, out: Path, **changes: Any):
    settings = {"pool": "corpus", "corpus": works.corpus, "steps": 6, "pool_size": 5}
    settings |= {"temperature": TEMPERATURE, "dropout": 0.0, **changes}
    return tiny_world.train(data, works.e2e, out, "retrieval", **settings)


def stage_of(works, data: Path, out: Path, report, **changes: Any) -> Retrieval:
    settings = config(works, data, out, **changes)
    loaded = load(LoadOptions(str(works.e2e), device="cpu", dtype="float32"))
    questions = Retrieval.read_records(settings)[0]
    return Retrieval(settings, loaded, questions, Ranks(), report)


def test_pools_are_the_gold_passage_and_others_of_the_corpus(works, gold_alone, report, tmp_path):
    stage = stage_of(works, gold_alone, tmp_path / "run", report)
    corpus = Corpus.open(works.corpus)
    gold = {q.source: q.pool[0].text for q in read_questions([str(gold_alone)])}
    others = []
    for step in range(4):
        for batch in stage.batches(step):
            for source, pool, golds in zip(batch.sources, batch.pools, batch.golds, strict=True):
                rows = [batch.stored[place] for place in pool]
                assert golds == (0,)
                assert corpus.passage(rows[0]).text == gold[source]
                assert len(rows) == len(set(rows)) and len(rows) in (5, 6)
                others.append((step, frozenset(rows[1:])))
    assert len({rows for _, rows in others}) > 2
    assert "pools: gold passages among 5 of world.clara, drawn at each step" in report.notes


def test_the_loss_is_infonce_of_stored_memory(works, gold_alone, report, tmp_path):
    """Computed here from the parts, gradient and all."""
    stage = stage_of(works, gold_alone, tmp_path / "run", report)
    stage.model.train_only(("query_reasoner",))
    (batch,) = stage.batches(0)
    losses = stage.losses(batch, 1.0)
    losses.loss.backward()
    trained = stage.model.role_parameters("query_reasoner")
    gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    assert gradients
    for parameter in trained.values():
        parameter.grad = None
    memory_NMD = Corpus.open(works.corpus).memory(batch.stored, batch.memory_tokens)
    values = []
    for query, pool, golds in zip(batch.queries, batch.pools, batch.golds, strict=True):
        own_MD = stage.model.encode([query], "query_reasoner", batch.memory_tokens).memory_BMD[0]
        flat_NE = memory_NMD[pool].flatten(1)
        scores_N = torch.cosine_similarity(own_MD.flatten()[None], flat_NE, dim=1)
        positive_N = torch.zeros(len(pool), dtype=torch.bool)
        positive_N[list(golds)] = True
        values.append(infonce(scores_N[None], positive_N[None], TEMPERATURE))
    expected = torch.stack(values).mean()
    assert losses.ce == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, trained[name].grad, rtol=1e-3, atol=1e-6)


def test_the_query_reasoner_learns_and_nothing_is_compressed(
    works, gold_alone, report, tmp_path, monkeypatch
):
    encode, roles = ClaraModel.encode, set()

    def spy(model, rows, role, memory_tokens=None):
        roles.add(role)
        return encode(model, rows, role, memory_tokens)

    monkeypatch.setattr(ClaraModel, "encode", spy)
    changes = {"steps": 60, "batch_size": 8, "pool_size": 11, "learning_rate": 2e-2}
    result = train.run(config(works, gold_alone, tmp_path / "run", **changes), report)
    losses = [line["loss"] for line in tiny_world.metrics(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert roles == {"query_reasoner"}
    entry = read_info(Path(result.checkpoint)).provenance[-1]
    assert (entry["pool"], entry["corpus"]) == ("corpus", "world.clara")
    model = load(LoadOptions(result.checkpoint, device="cpu", dtype="float32")).model
    corpus = Corpus.open(works.corpus)
    questions = list(read_questions([str(gold_alone)]))
    rows = [model.prompter.query(question.question) for question in questions]
    with torch.no_grad():
        query_BMD = model.encode(rows, "query_reasoner", 16).memory_BMD
    best_B = cosines(query_BMD, corpus.memory(range(len(corpus)), 16)).argmax(-1)
    right = [
        corpus.passage(row).text == question.pool[0].text
        for row, question in zip(best_B.tolist(), questions, strict=True)
    ]
    assert sum(right) >= 6


def test_an_interrupted_run_goes_on_to_the_bit(works, gold_alone, report, tmp_path):
    class Steps:
        def progress(self, progress: Any) -> None:
            if progress.task == "train" and progress.done == 3:
                raise KeyboardInterrupt

        def note(self, message: str) -> None: ...

        def warn(self, message: str) -> None: ...

    train.run(config(works, gold_alone, tmp_path / "whole"), report)
    with pytest.raises(Interrupted, match="3 of 6"):
        train.run(config(works, gold_alone, tmp_path / "run"), Steps())
    train.run(config(works, gold_alone, tmp_path / "run"), report)
    assert tiny_world.numbers(tmp_path / "run") == tiny_world.numbers(tmp_path / "whole")
    assert tiny_world.same(tmp_path / "run" / "checkpoint", tmp_path / "whole" / "checkpoint")


def test_questions_without_their_passage_in_the_corpus_are_counted(works, report, tmp_path):
    records = tiny_world.questions(pool=1)
    records[2]["paragraphs"][0]["text"] += " And of nothing else."
    data = tiny_world.write_jsonl(tmp_path / "q.jsonl", records)
    stage = stage_of(works, data, tmp_path / "run", report)
    assert len(stage.records) == 7
    assert any(note.startswith("1 of 8 questions are left out") for note in report.notes)
    for record in records:
        record["paragraphs"][0]["text"] = "Elsewhere."
    data = tiny_world.write_jsonl(tmp_path / "none.jsonl", records)
    with pytest.raises(DataError, match=r"none.jsonl:1: no gold passage .* is in .*world.clara"):
        train.run(config(works, data, tmp_path / "run"), report)


def test_a_corpus_without_text_is_refused(works, gold_alone, report, tmp_path):
    bare = tmp_path / "bare.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, bare, text=False), report)
    with pytest.raises(ArtefactError, match="no text was kept"):
        train.run(config(works, gold_alone, tmp_path / "run", corpus=bare), report)


def test_what_is_kept_aside_is_ranked_in_the_corpus_too(works, gold_alone, report, tmp_path):
    changes = {"validation_share": 0.4, "validate_every": 3, "learning_rate": 1e-4}
    train.run(config(works, gold_alone, tmp_path / "run", **changes), report)
    checks = tiny_world.metrics(tmp_path / "run", "validation.jsonl")
    assert [line["step"] for line in checks] == [3, 6]
    assert all({"ce", "recall@1", "recall@5"} <= line.keys() for line in checks)
    assert all(0 < line["ce"] for line in checks)
