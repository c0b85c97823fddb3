"""ask --where: passages are kept out before anything is searched, whoever searches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.engine import Clara
from clara_cli.commands import ask, index
from clara_cli.corpus.store import Corpus
from clara_cli.errors import UsageError
from clara_cli.search.exact import rescore

QUESTION = "Who is mayor of Elmgate?"  # of rank 0
STAGES = ["auto", "latent", "bm25", "hybrid"]


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def corpus(works, tmp_path_factory, request) -> Path:
    folder = shutil.copytree(works.corpus, tmp_path_factory.mktemp("where") / "copy.clara")
    heard = request.getfixturevalue("heard_once")
    index.run(tiny_world.index(Path(folder), engine=request.param), heard)
    return Path(folder)


@pytest.fixture(scope="module")
def heard_once():
    class Silence:
        def progress(self, progress) -> None: ...
        def note(self, message: str) -> None: ...
        def warn(self, message: str) -> None: ...

    return Silence()


def found(corpus: Path, report, where: str, **changes) -> list[str]:
    config = tiny_world.ask(QUESTION, corpus, where=where, max_new_tokens=1, **changes)
    return [hit.passage.document_id for hit in next(iter(ask.run(config, report))).sources]


@pytest.mark.parametrize("stage", STAGES)
def test_only_passages_that_fulfil_the_filter_are_found(corpus, report, stage):
    for where, allowed in [
        ("rank>=2 and rank<6", {"d2", "d3", "d4", "d5"}),
        ("not rank in (0, 1) and document_id!=long", None),
        ("document_id=d7 or title='Low Harbour'", {"d7", "d3"}),
    ]:
        hits = found(corpus, report, where, first_stage=stage, top_k=4)
        assert hits and "d0" not in hits and "long" not in hits
        assert allowed is None or set(hits) == allowed


@pytest.mark.parametrize("stage", ["latent", "hybrid"])
def test_what_is_left_is_ranked_by_exact_cosine(corpus, report, stage):
    clara = Clara.open(corpus, device="cpu")
    query_MD = clara.query(QUESTION, 16)
    rows = clara.retriever.rows_where("rank>3")
    ranked = clara.retriever.search(QUESTION, query_MD, 3, stage, where="rank>3")
    scores_N = rescore(query_MD, clara.corpus.memory(rows))
    best = scores_N.topk(3)
    assert [row for _, row in ranked] == [rows[i] for i in best.indices.tolist()]
    assert torch.equal(torch.tensor([score for score, _ in ranked]), best.values)


def test_bm25_keeps_its_scores(corpus):
    clara = Clara.open(corpus, device="cpu")
    every = dict(zip(*reversed(clara.retriever.bm25.search(QUESTION, 99)), strict=True))
    rows = clara.retriever.rows_where("rank>=3")
    scores, left = clara.retriever.bm25.search(QUESTION, 99, rows)
    assert left and set(left) <= set(rows) and scores == [every[row] for row in left]


def test_a_field_nobody_has_and_a_filter_nobody_fulfils_are_told_apart(corpus, report):
    with pytest.raises(UsageError, match="no passage has a field 'rnk'") as caught:
        found(corpus, report, "rnk=1")
    assert "'rank'" in caught.value.hint
    with pytest.raises(UsageError, match="none of 14 passages fulfils it") as caught:
        found(corpus, report, "rank=99")
    assert "rank" in caught.value.hint and "document_id" in caught.value.hint


def test_a_slip_is_told_before_the_corpus_is_opened(report, tmp_path):
    with pytest.raises(UsageError, match="character 6"):
        found(tmp_path / "none.clara", report, "rank=")


def test_python_takes_the_same_filter(corpus):
    clara = Clara.open(corpus, device="cpu")
    answer = clara.ask(QUESTION, top_k=2, max_new_tokens=1, where="rank=5")
    assert [hit.passage.document_id for hit in answer.sources] == ["d5"]


def test_rows_of_a_filter_are_those_of_the_passages(corpus):
    clara = Clara.open(corpus, device="cpu")
    passages = Corpus.open(corpus).passages()
    wanted = [row for row, p in enumerate(passages) if (p.metadata or {}).get("rank", 99) <= 4]
    assert clara.retriever.rows_where("rank<=4") == wanted
