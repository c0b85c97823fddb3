"""ask: answers with their sources, the same each time, and the corpora that are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.engine import Clara
from clara_cli.cli.show import json_line
from clara_cli.commands import ask, compress, index
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, DataError, UsageError

QUESTION = "Who is mayor of Elmgate?"
KEYS = [
    *["question", "answer", "support", "supported", "sources", "memory_tokens"],
    *["prompt_tokens", "text_tokens_replaced", "seconds"],
]
SOURCE = ["rank", "passage_id", "document_id", "title", "text", "start", "end", "score"]
PLACE = ["sentence", "file", "line"]


def once(question: str, corpus: Path, report, **changes):
    return next(iter(ask.run(tiny_world.ask(question, corpus, **changes), report)))


def said(answer) -> dict:
    """An answer as its JSON line, without the time it took."""
    record = json.loads(json.dumps(json_line.answer_json(answer)))
    assert set(record.pop("seconds")) == {"query", "search", "generate"}
    return record


@pytest.fixture
def corpus(works, tmp_path) -> Path:
    return Path(shutil.copytree(works.corpus, tmp_path / "copy.clara"))


@pytest.fixture(scope="module")
def mute(works, tmp_path_factory) -> Path:
    """A corpus that kept no text."""
    out = tmp_path_factory.mktemp("mute") / "mute.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, out, text=False), Silence())
    return out


class Silence:
    """A report nobody listens to."""

    def progress(self, progress) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


# --- the answer ---


@pytest.mark.parametrize("stage", ["auto", "latent", "bm25", "hybrid"])
def test_an_answer_has_the_contracts_keys_and_counts(works, report, stage):
    answer = once(QUESTION, works.corpus, report, first_stage=stage, top_k=3)
    record = json_line.answer_json(answer)
    assert list(record) == KEYS
    assert all(list(source) == [*SOURCE, *PLACE] for source in record["sources"])
    sources = record["sources"]
    assert [source["rank"] for source in sources] == [1, 2, 3]
    scores = [source["score"] for source in sources]
    assert scores == sorted(scores, reverse=True)
    assert record["memory_tokens"] == 16 * len(sources)
    prompter = load(LoadOptions(str(works.e2e), device="cpu")).model.prompter
    assert record["prompt_tokens"] == len(prompter.prompt(prompter.answer_chat(QUESTION, 3, 16)))
    tokens = {p.passage_id: p.tokens for p in Corpus.open(works.corpus).passages()}
    assert record["text_tokens_replaced"] == sum(tokens[s["passage_id"]] for s in sources)
    assert record["answer"] == record["answer"].strip()
    assert record["support"] is None and record["supported"] is None  # nothing was calibrated


def test_cosine_scores_are_of_the_flattened_memory(works, report):
    answer = once(QUESTION, works.corpus, report, first_stage="latent", top_k=3)
    clara = Clara.open(works.corpus, device="cpu")
    query_P = clara.query(QUESTION, 16).flatten()
    memory_NP = Corpus.open(works.corpus).memory(range(len(clara.corpus))).flatten(1)
    cosine_N = torch.nn.functional.cosine_similarity(memory_NP, query_P[None])
    best = cosine_N.topk(3)
    assert [hit.row for hit in answer.sources] == best.indices.tolist()
    assert [hit.score for hit in answer.sources] == pytest.approx(best.values.tolist(), abs=1e-5)
    hybrid = once(QUESTION, works.corpus, report, first_stage="hybrid", top_k=3)
    assert [hit.row for hit in hybrid.sources] == best.indices.tolist()


def test_bm25_ranks_by_its_own_score_and_finds_words_only(works, report):
    answer = once(QUESTION, works.corpus, report, first_stage="bm25", top_k=3)
    assert "Elmgate" in answer.sources[0].passage.text
    assert answer.sources[0].score > 1
    nothing = once("Xyzzy?", works.corpus, report, first_stage="bm25")
    assert nothing.sources == () and nothing.memory_tokens == 0
    assert nothing.support is None


def test_the_graph_and_the_scan_give_the_same_answer(works, report, corpus):
    def said_by_all() -> list[str]:
        stages = ("auto", "latent", "hybrid")
        return [once(QUESTION, corpus, report, first_stage=stage).answer for stage in stages]

    plain = said_by_all()
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    assert said_by_all() == plain


def test_the_same_question_gets_the_same_answer(works, report):
    first, second = (said(once(QUESTION, works.corpus, report)) for _ in range(2))
    assert first == second


def test_an_answer_is_no_longer_than_asked(works, report):
    short, long = (
        once(QUESTION, works.corpus, report, max_new_tokens=most).answer for most in (2, 12)
    )
    assert len(short.encode()) <= 6  # a byte that is no character counts as three
    assert len(long) > len(short)


def test_more_hits_than_passages_are_all_of_them(works, report):
    rows = len(Corpus.open(works.corpus))
    answer = once(QUESTION, works.corpus, report, top_k=50, first_stage="latent")
    assert len(answer.sources) == rows and answer.memory_tokens == 16 * rows


def test_candidates_bound_what_is_rescored(works, report, corpus):
    index.run(tiny_world.index(corpus, engine="hnsw"), report)
    given = [
        once(QUESTION, corpus, report, first_stage="latent", top_k=2, candidates=count)
        for count in (1, 2, 100)
    ]
    assert [len(answer.sources) for answer in given] == [2, 2, 2]
    scores = [[hit.score for hit in answer.sources] for answer in given]
    assert scores[0] == scores[1] <= scores[2]


def test_an_unindexed_corpus_is_scanned_with_a_note(works, report, corpus):
    once(QUESTION, corpus, report)
    assert any("has no index" in note and "clara index" in note for note in report.notes)
    index.run(tiny_world.index(corpus), report)
    report.notes.clear()
    once(QUESTION, corpus, report)
    assert report.notes == []


# --- ratios ---


@pytest.mark.parametrize("stage", ["latent", "hybrid"])
def test_a_higher_ratio_reads_the_first_rows(works, report, tmp_path, stage):
    sixteen = tmp_path / "sixteen.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, sixteen, ratio=16), report)
    plain = said(once(QUESTION, sixteen, report, first_stage=stage))
    nested = said(once(QUESTION, works.corpus, report, first_stage=stage, ratio=16))
    assert nested["memory_tokens"] == 4 * 5
    scores = [[source.pop("score") for source in record["sources"]] for record in (plain, nested)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert plain == nested


def test_a_ratio_below_the_corpuss_or_not_served_is_refused(works, report, tmp_path):
    sixteen = tmp_path / "sixteen.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, sixteen, ratio=16), report)
    with pytest.raises(UsageError, match="--ratio 4: the corpus was compressed at 16"):
        once(QUESTION, sixteen, report, ratio=4)
    with pytest.raises(UsageError, match="--ratio 5: not served") as caught:
        once(QUESTION, works.corpus, report, ratio=5)
    assert caught.value.hint == "it serves 4, 16"


# --- files of questions ---


def test_questions_come_from_text_and_from_jsonl_files(works, report, tmp_path):
    questions = [record["question"] for record in tiny_world.questions()[:3]]
    text = tmp_path / "q.txt"
    text.write_text("\ufeff" + "\n\n".join(questions) + "\n", encoding="utf-8")
    data = tiny_world.write_jsonl(
        tmp_path / "q.jsonl", [{"question": q, "id": 1} for q in questions]
    )
    config = tiny_world.ask(None, works.corpus, file=text)
    given = list(ask.run(config, report))
    assert [answer.question for answer in given] == questions
    others = list(ask.run(dataclasses.replace(config, file=data), report))
    assert [answer.id for answer in others] == [1, 1, 1]
    assert [said(a) for a in given] == [said(dataclasses.replace(b, id=None)) for b in others]
    assert said(given[1]) == said(once(questions[1], works.corpus, report))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("q.txt", b"\n \n", DataError, "no questions in it"),
        ("q.txt", b"\xff\xfe?", DataError, "not UTF-8"),
        ("q.jsonl", b'{"question": " "}\n', DataError, r"q\.jsonl:1: question is ' '"),
        ("q.jsonl", b"Who?\n", DataError, r"q\.jsonl:1: not JSON"),
        (
            "q.jsonl",
            b'{"question": "\xff"}\n',
            DataError,
            r"q\.jsonl:1: not UTF-8: byte 0xff at 14",
        ),
        ("q.jsonl", b'{"question": "\\ud800"}\n', DataError, r":1: question has the .* \\ud800"),
        ("none.txt", None, UsageError, "No such file"),
    ],
)
def test_a_bad_file_of_questions_is_named(works, report, tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        list(ask.run(tiny_world.ask(None, works.corpus, file=tmp_path / name), report))


# --- questions ---


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(works, report, question):
    with pytest.raises(UsageError, match="the question is empty"):
        once(question, works.corpus, report)


def test_bytes_that_are_no_text_are_refused(works, report):
    """What a shell passes that is not UTF-8 reaches Python as lone surrogates."""
    with pytest.raises(UsageError, match=r"the question 'a \\udcff' holds '\\udcff'") as caught:
        once("a \udcff", works.corpus, report)
    assert caught.value.hint == "give it as UTF-8 text"


def test_no_question_at_all_is_refused(works, report):
    with pytest.raises(UsageError, match="no question"):
        list(ask.run(tiny_world.ask(None, works.corpus), report))


def test_the_longest_question_is_read_and_a_longer_one_refused(works, report):
    """64 bytes are 64 tokens: all that the query reasoner reads."""
    once("W" * 64, works.corpus, report)
    with pytest.raises(UsageError, match="more than 64 tokens") as caught:
        once("W" * 65, works.corpus, report)
    assert caught.value.code == 2 and caught.value.hint


def test_a_prompt_that_does_not_fit_the_window_is_refused(works, report):
    with pytest.raises(UsageError, match="exceed the backbone's window of 2048") as caught:
        once(QUESTION, works.corpus, report, max_new_tokens=2048)
    assert "--max-new-tokens" in caught.value.hint


def test_a_question_of_special_tokens_is_plain_text(works, report):
    answer = once("<|memory|></s>?", works.corpus, report, top_k=2)
    assert answer.memory_tokens == 32


# --- corpora ---


def test_a_corpus_of_another_checkpoint_is_refused_with_both_fingerprints(works, report):
    with pytest.raises(ArtefactError) as caught:
        once(QUESTION, works.corpus, report, model=str(works.scp))
    for run in (works.e2e, works.scp):
        assert read_info(run / "checkpoint").fingerprint in caught.value.message
    assert caught.value.code == 3 and str(works.e2e) in caught.value.hint


def test_a_checkpoint_of_the_same_memory_space_is_welcome(works, report):
    """instruct made the compressor that e2e kept: its corpora are interchangeable."""
    answer = once(QUESTION, works.corpus, report, model=str(works.instruct))
    assert answer.sources
    latent = tiny_world.ask(
        QUESTION, works.corpus, model=str(works.instruct), first_stage="latent", top_k=1
    )
    list(ask.run(latent, report))
    assert any("no query reasoner" in note for note in report.notes)


def test_bm25_needs_the_text(works, report, mute):
    with pytest.raises(ArtefactError, match="no text was kept") as caught:
        once(QUESTION, mute, report, first_stage="bm25")
    assert caught.value.code == 3 and "--no-text" in caught.value.hint
    with pytest.raises(ArtefactError, match="no text was kept"):
        once(QUESTION, mute, report, first_stage="hybrid")
    answer = once(QUESTION, mute, report)
    assert answer.support is None and answer.supported is None
    assert all(hit.passage.text is None for hit in answer.sources)


def test_the_corpus_is_the_one_named_then_the_environments_then_the_only_one_here(
    works, report, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLARA_CORPUS", raising=False)
    with pytest.raises(UsageError, match="none here") as caught:
        ask.find_corpora(())
    assert "--corpus" in caught.value.hint
    shutil.copytree(works.corpus, tmp_path / "one.clara")
    assert ask.find_corpora(()) == [Path("one.clara")]
    assert once(QUESTION, None, report).sources  # type: ignore[arg-type]
    (tmp_path / "two.clara").mkdir()
    with pytest.raises(UsageError, match=r"2 of them here \(one\.clara, two\.clara\)"):
        ask.find_corpora(())
    monkeypatch.setenv("CLARA_CORPUS", "two.clara")
    assert ask.find_corpora(()) == [Path("two.clara")]
    assert ask.find_corpora((Path("one.clara"),)) == [Path("one.clara")]


def test_a_corpus_that_names_no_model_takes_the_environments(works, report, corpus, monkeypatch):
    manifest = json.loads((corpus / "manifest.json").read_text())
    del manifest["checkpoint"]["model"]
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("CLARA_MODEL", str(works.e2e))
    assert once(QUESTION, corpus, report).sources
    monkeypatch.setenv("CLARA_MODEL", str(works.scp))
    with pytest.raises(ArtefactError, match="was compressed by checkpoint"):
        once(QUESTION, corpus, report)


@pytest.mark.parametrize("file", ["manifest.json", "shards/00000.safetensors"])
def test_a_damaged_corpus_is_named(works, report, corpus, file):
    (corpus / file).write_bytes((corpus / file).read_bytes()[:-1][:-1])
    with pytest.raises(ArtefactError) as caught:
        once(QUESTION, corpus, report)
    assert file in caught.value.message and caught.value.hint


def test_an_unfinished_corpus_says_how_to_finish_it(works, report, heard, tmp_path):
    from clara_cli.errors import Interrupted

    config = tiny_world.compress(works.documents, works.e2e, tmp_path / "half.clara", shard_size=2)
    with pytest.raises(Interrupted):
        compress.run(config, heard(stop_at=1))
    with pytest.raises(ArtefactError, match="not finished") as caught:
        once(QUESTION, tmp_path / "half.clara", report)
    assert "clara compress" in caught.value.hint


def test_a_checkpoint_without_a_generator_is_refused(works, report, tmp_path, corpus):
    bare = tmp_path / "bare"
    shutil.copytree(works.e2e / "checkpoint", bare)
    facts = json.loads((bare / "clara.json").read_text())
    facts["roles"] = ["compressor", "query_reasoner"]
    (bare / "clara.json").write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match="no generator"):
        once(QUESTION, corpus, report, model=str(bare))


# --- a session ---


def test_a_session_answers_as_the_command_does_and_takes_another_k(works, report):
    session = ask.open_session(tiny_world.ask(None, works.corpus), report)
    assert session.corpus_name == str(works.corpus)
    assert said(session.ask(QUESTION)) == said(once(QUESTION, works.corpus, report))
    session.top_k = 1
    assert len(session.ask(QUESTION).sources) == 1
    with pytest.raises(UsageError, match="the question is empty"):
        session.ask(" ")


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MemoryError()])
def test_a_session_keeps_the_answer_that_could_not_be_explained(works, report, monkeypatch, fault):
    session = ask.open_session(tiny_world.ask(None, works.corpus), report)
    session.ask(QUESTION)
    last = session.ask("Who is its baker?")

    def fail(*_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(Clara, "answer", fail)
        with pytest.raises(type(fault)):
            session.explain()
    assert len(session.said) == 2 and session.said[-1] is last
    again = session.explain()
    assert len(session.said) == 2 and session.said[-1] is again and again.explain is not None
    assert (again.question, again.answer, again.sources) == (
        last.question,
        last.answer,
        last.sources,
    )
