"""ask --search: passages alone; a checkpoint is loaded only where words find none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers import tiny_world

from clara_cli.answering import support
from clara_cli.cli import ask as terminal_ask
from clara_cli.cli.show import json_line
from clara_cli.commands import ask, compress
from clara_cli.errors import UsageError
from clara_cli.records import SearchResult

QUESTION = "Who is mayor of Elmgate?"


def search(question: str, corpus: Path | None, report, **changes) -> SearchResult:
    (result,) = ask.run(tiny_world.ask(question, corpus, search=True, **changes), report)
    assert isinstance(result, SearchResult)
    return result


@pytest.fixture
def without_checkpoint(monkeypatch):
    """Whoever loads a checkpoint fails."""

    def fail(*args, **options):
        raise AssertionError("a checkpoint was loaded")

    for name in ("clara_cli.commands.ask.load", "clara_cli.answering.engine.load"):
        monkeypatch.setattr(name, fail)


def test_words_find_passages_without_any_checkpoint(works, report, without_checkpoint):
    result = search(QUESTION, works.corpus, report, top_k=2)
    first = result.sources[0]
    assert first.rank == 1 and "Elmgate" in first.passage.text
    assert first.sentence.text == "The mayor of Elmgate is Nora Velden."
    assert first.sentence.line == 1
    assert len(result.sources) == 2 and set(result.seconds) == {"query", "search"}


@pytest.mark.parametrize("stage", ["auto", "latent", "bm25", "hybrid"])
def test_the_passages_are_those_an_answer_is_read_from(works, report, stage):
    result = search(QUESTION, works.corpus, report, first_stage=stage, top_k=3)
    answer = next(
        iter(ask.run(tiny_world.ask(QUESTION, works.corpus, first_stage=stage, top_k=3), report))
    )
    assert [(h.row, h.score) for h in result.sources] == [(h.row, h.score) for h in answer.sources]


def test_a_question_no_word_of_which_is_known_asks_the_query_reasoner(works, report):
    result = search("Xyzzy plugh?", works.corpus, report)
    assert len(result.sources) == 5 and result.sources[0].score <= 1


def test_no_generator_is_needed(works, report, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(works.e2e / "checkpoint", bare)
    facts = json.loads((bare / "clara.json").read_text())
    facts["roles"] = ["compressor", "query_reasoner"]
    (bare / "clara.json").write_text(json.dumps(facts))
    shutil.rmtree(bare / "generator")
    result = search(QUESTION, works.corpus, report, model=str(bare), first_stage="latent")
    assert len(result.sources) == 5


def test_a_corpus_without_text_is_searched_by_memory(works, report, tmp_path):
    mute = tmp_path / "mute.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, mute, text=False), report)
    result = search(QUESTION, mute, report)
    assert len(result.sources) == 5 and all(hit.sentence is None for hit in result.sources)


def test_a_file_of_questions_is_a_json_line_each(works, tmp_path, capsys, without_checkpoint):
    file = tmp_path / "q.txt"
    file.write_text("Elmgate?\nQuarrel?\n")
    config = tiny_world.ask(None, works.corpus, search=True, file=file, top_k=1)
    terminal_ask.run(config, as_json=True, quiet=True)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["Elmgate?", "Quarrel?"]
    assert list(records[0]) == ["question", "sources", "seconds"]
    assert "Max Orme" in records[1]["sources"][0]["sentence"]["text"]


@pytest.mark.parametrize(
    "idle",
    [
        {"read": "text"},
        {"max_new_tokens": 9},
        {"explain": True},
        {"require_support": True},
        {"abstain": True},
    ],
)
def test_an_option_that_would_do_nothing_is_refused(works, report, idle):
    config = tiny_world.ask(QUESTION, works.corpus, search=True)
    with pytest.raises(UsageError, match="--search and --.* do not go together"):
        list(ask.run(dataclasses.replace(config, **idle), report))


def test_a_session_searches_what_a_follow_up_leans_on(works, report):
    session = ask.open_session(tiny_world.ask(None, works.corpus), report)
    session.ask("Who is mayor of Quarrel?")
    result = session.search("And its baker?")
    assert result.question == "And its baker?" and "Quarrel" in result.sources[0].passage.text


def test_abstaining_says_so_where_the_sources_do_not_support_the_answer(works, report, tmp_path):
    config = tiny_world.ask(QUESTION, works.corpus, abstain=True)
    with pytest.raises(UsageError, match="--abstain: nothing judges the support"):
        list(ask.run(config, report))
    model = tmp_path / "judged"
    shutil.copytree(works.e2e / "checkpoint", model)
    weights = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    never = {"weights": weights, "bias": -9.0, "threshold": 0.5}
    fingerprint = json.loads((model / "clara.json").read_text())["fingerprint"]
    fields = {"format": "clara-support", "version": 1, "fingerprint": fingerprint}
    (model / "support.json").write_text(json.dumps({**fields, "text": never, "memory": never}))
    answer = next(iter(ask.run(dataclasses.replace(config, model=str(model)), report)))
    assert answer.supported is False and answer.abstained
    with pytest.raises(UsageError, match="--abstain: .* --read text"):
        judged = dataclasses.replace(config, model=str(model), read="text")
        list(ask.run(judged, report))
    record = json_line.answer_json(answer)
    assert record["answer"] == "not in the documents" and record["generated"] == answer.answer
