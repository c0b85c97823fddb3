"""ask, beyond one question over one corpus: batches, several corpora, documents, text, the why."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import tiny_world as tiny

from clara_cli.answering import support
from clara_cli.answering.engine import AskOptions, Clara
from clara_cli.answering.explain import contributions
from clara_cli.answering.reading import generate, like_lengths, texts_within
from clara_cli.cli import ask as terminal_ask
from clara_cli.cli.show import answers, json_line
from clara_cli.commands import ask, compress
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.decode import log_likelihoods
from clara_cli.corpus import cache
from clara_cli.corpus.manifest import COUNTS
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import open_writer
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.storage.lock import locked

QUESTIONS = [record["question"] for record in tiny.questions()]
QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def clara(works) -> Clara:
    return Clara.open(works.corpus, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def halves(works, tmp_path_factory) -> list[Path]:
    """The shared documents in two corpora, the second at a higher ratio."""
    folder = tmp_path_factory.mktemp("halves")
    documents, made = tiny.documents(), []
    for name, part, ratio in (("one", documents[:5], 4), ("two", documents[5:], 16)):
        data = tiny.write_jsonl(folder / f"{name}.jsonl", part)
        made.append(folder / f"{name}.clara")
        compress.run(tiny.compress(data, works.e2e, made[-1], ratio=ratio), Mute())
    return made


class Mute:
    def progress(self, progress) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def plain(answer) -> dict:
    record = json.loads(json.dumps(json_line.answer_json(answer)))
    record.pop("seconds")
    return record


# --- batches ---


def test_questions_answered_together_get_the_answers_they_get_alone(clara):
    how = AskOptions(max_new_tokens=12)
    asked = [*QUESTIONS, "Schneit es in Zürich?", "Xyzzy plugh?", QUESTION]
    together = clara.ask_all(asked, how)
    assert [answer.question for answer in together] == asked
    for question, answer in zip(asked, together, strict=True):
        assert plain(answer) == plain(clara.ask(question, max_new_tokens=12))


@pytest.mark.parametrize(("device", "most"), [("cpu", 32), ("cuda", 64)])
def test_batches_are_of_like_length_and_hold_every_row_once(device, most):
    lengths = [900, 10, 12, 5000, 11, 20000, 10, *[30] * 100]
    batches = list(like_lengths(lengths, torch.device(device)))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or (len(batch) <= most and widest * len(batch) <= 16384)


def test_a_file_longer_than_a_batch_keeps_its_order(works, report, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "TOGETHER", 3)
    file = tmp_path / "q.txt"
    file.write_text("\n".join(QUESTIONS), encoding="utf-8")
    given = list(ask.run(tiny.ask(None, works.corpus, file=file), report))
    assert [answer.question for answer in given] == QUESTIONS
    assert report.steps == 3


@pytest.mark.parametrize(
    ("name", "line"), [("q.txt", "{}"), ("q.jsonl", '{{"question": "{}"}}')], ids=["text", "jsonl"]
)
def test_a_question_that_is_too_long_is_named_before_any_is_answered(
    works, report, tmp_path, monkeypatch, name, line
):
    monkeypatch.setattr(ask, "TOGETHER", 1)
    file = tmp_path / name
    lines = [line.format(question) for question in ("Who?", "long " * 20)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    answered = ask.run(tiny.ask(None, works.corpus, file=file), report)
    wanted = rf"{name}:3: the question 'long long .*\.\.\.' has more than 64 tokens"
    with pytest.raises(DataError, match=wanted) as caught:
        next(answered)
    assert caught.value.hint == "ask it more briefly"


def test_a_byte_that_is_not_utf8_is_named_by_its_line(works, report, tmp_path):
    file = tmp_path / "q.txt"
    file.write_bytes("Who?\n\nCafé?\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"q\.txt:3: not UTF-8: byte 0xe9 at 3"):
        list(ask.run(tiny.ask(None, works.corpus, file=file), report))


def test_a_budget_of_text_that_nothing_spends_is_refused(works, report):
    for read in ("memory", "text"):
        config = tiny.ask(QUESTION, works.corpus, read=read, text_tokens=9)
        with pytest.raises(UsageError, match=f"--text-tokens with --read {read}") as caught:
            list(ask.run(config, report))
        assert "--read auto" in caught.value.hint


# --- several corpora ---


def test_several_corpora_answer_as_one_and_name_themselves(clara, halves):
    both = Clara.open(halves, device="cpu", dtype="float32")
    how = AskOptions(first_stage="latent", ratio=16, top_k=4, max_new_tokens=8)
    (joint,), (whole,) = both.ask_all([QUESTION], how), clara.ask_all([QUESTION], how)
    assert joint.answer == whole.answer
    assert [h.passage.passage_id for h in joint.sources] == [
        h.passage.passage_id for h in whole.sources
    ]
    assert [h.score for h in joint.sources] == pytest.approx([h.score for h in whole.sources])
    for source, hit in zip(plain(joint)["sources"], joint.sources, strict=True):
        home = halves[0] if hit.passage.document_id in ("d0", "d1", "d2", "d3", "d4") else halves[1]
        assert source["corpus"] == str(home)
    assert all("corpus" not in source for source in plain(whole)["sources"])


def test_a_word_counts_as_rare_as_it_is_in_all_corpora(works, tmp_path):
    """`ferry` is common where `Dover` is not told of: that corpus must not come first for it."""
    told = ["A ferry leaves Dover at noon."] + [f"Street {n} has a shop." for n in range(3)]
    rest = ["A ferry leaves Bergen at noon."] + [f"Lake {n} has a boat here." for n in range(40)]
    folders = []
    for name, texts in (("small", told), ("large", rest)):
        data = tiny.write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        folders.append(tmp_path / f"{name}.clara")
        compress.run(tiny.compress(data, works.e2e, folders[-1], ratio=16), Mute())
    both = Clara.open(folders, device="cpu", dtype="float32")
    (found,) = both.find(["Does the ferry leave Dover?"], AskOptions(top_k=2))
    assert [hit.corpus for hit in found.hits] == [str(folders[0]), str(folders[1])]
    alone = [
        Clara.open(folder, device="cpu", dtype="float32").find(["a ferry"], AskOptions(top_k=1))[0]
        for folder in folders
    ]
    assert alone[0].hits[0].score < alone[1].hits[0].score
    (found,) = both.find(["ferry"], AskOptions(top_k=2))
    assert found.hits[0].score == pytest.approx(found.hits[1].score, rel=0.2)


def test_the_highest_ratio_among_corpora_is_read(halves):
    both = Clara.open(halves, device="cpu", dtype="float32")
    assert both.memory_tokens_for(None) == 4
    with pytest.raises(UsageError, match="compressed at 16"):
        both.memory_tokens_for(4)


def test_corpora_of_two_memory_spaces_are_refused(works, report, tmp_path):
    other = tmp_path / "other.clara"
    compress.run(tiny.compress(works.documents, works.scp, other), report)
    config = tiny.ask(QUESTION, works.corpus)
    config = dataclasses.replace(config, corpus=(works.corpus, other))
    with pytest.raises(ArtefactError, match=r"other\.clara was compressed by checkpoint"):
        list(ask.run(config, report))


# --- documents instead of a corpus ---


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    text = "A head line.\n\n" + " ".join(tiny.sentence(*fact) for fact in tiny.FACTS[:3])
    (folder / "towns.md").write_text(text, encoding="utf-8")
    return folder


def with_documents(works, report, *documents: str, **changes):
    config = tiny.ask(QUESTION, None, model=str(works.e2e), documents=documents, **changes)
    with contextlib.ExitStack() as held:
        return terminal_ask._with_documents(config, report, held)


def pausing(report):
    report.pause = lambda: None
    return report


def told(report) -> list[str]:
    """What was said of documents; a backbone's first trial is said once a cache."""
    return [note for note in report.notes if "tried once" not in note]


def test_documents_are_compressed_once_and_said(works, report, notes, tmp_path):
    pausing(report)
    config = with_documents(works, report, "notes")
    (corpus,) = config.corpus
    assert corpus.parent == tmp_path / "cache" / "corpora"
    assert told(report) == [f"notes: compressed once into {corpus}"]
    before = tiny.files(corpus)
    assert with_documents(works, report, "./notes/").corpus == (corpus,)
    assert told(report)[1:] == [f"./notes/: compressed before, in {corpus}"]
    assert tiny.files(corpus) == before
    answer = next(iter(ask.run(config, report)))
    assert not any("has no index" in note for note in report.notes)
    places = {(s["file"], s["line"]) for s in plain(answer)["sources"]}
    assert places <= {(str(notes / "towns.md"), line) for line in (1, 3)}


def test_other_content_model_or_ratio_is_another_corpus(works, report, notes):
    pausing(report)
    made = {with_documents(works, report, "notes").corpus}
    made.add(with_documents(works, report, "notes", ratio=16).corpus)
    made.add(with_documents(works, report, "notes/towns.md").corpus)
    assert len(made) == 2  # a folder of one file holds the documents that the file holds
    (notes / "towns.md").write_text("Nothing.", encoding="utf-8")
    made.add(with_documents(works, report, "notes").corpus)
    assert len(made) == 3 and len(told(report)) == 4


def earlier(folder: Path, days: int) -> Path:
    """A cached corpus last used so many days ago."""
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    used = folder.stat().st_mtime - days * 86_400
    os.utime(folder, (used, used))
    return folder


def test_the_cache_keeps_the_last_used_and_those_in_use(works, report, notes, tmp_path):
    made = [earlier(tmp_path / "cache" / "corpora" / f"{n:02}.clara", n) for n in range(13)]
    with cache.in_use(made[12]), locked(made[11]):
        assert made[12].stat().st_mtime >= made[0].stat().st_mtime  # used now
        for folder in made[11:]:
            os.utime(folder, (1, 1))
        (corpus,) = with_documents(works, pausing(report), "notes").corpus
    left = set((tmp_path / "cache" / "corpora").iterdir())
    assert left == {corpus, *made[:7], made[11], made[12]}
    with_documents(works, report, "notes")
    assert set((tmp_path / "cache" / "corpora").iterdir()) == left  # only what is new takes room


def test_nobody_else_reads_the_cache(works, report, notes, tmp_path):
    before = os.umask(0o022)
    try:
        (corpus,) = with_documents(works, pausing(report), "notes").corpus
        (tmp_path / "after").write_text("")
    finally:
        os.umask(before)
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "after").stat().st_mode & 0o777 == 0o644
    corpus.parent.chmod(0o755)  # as earlier versions left it
    with_documents(works, report, "notes")
    assert corpus.parent.stat().st_mode & 0o777 == 0o700


def test_the_second_of_two_who_ask_waits_for_the_first(works, report, notes):
    """The first compresses, the second hears who does it and then finds it done."""
    started, go_on, others = threading.Event(), threading.Event(), type(report)()
    run = compress.run

    def slow(config, told):
        started.set()
        assert go_on.wait(60)
        return run(config, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "run", slow)
        first = threading.Thread(target=with_documents, args=(works, pausing(report), "notes"))
        first.start()
        assert started.wait(60)
        second = threading.Thread(target=with_documents, args=(works, pausing(others), "notes"))
        second.start()
        while not others.notes:
            time.sleep(0.01)
        assert "is being written by process" in others.notes[0]
        assert "waiting for it" in others.notes[0] and "--out" not in others.notes[0]
        go_on.set()
        first.join(60)
        second.join(60)
    assert "compressed once into" in report.notes[0]
    assert len(others.notes) == 2 and "compressed before" in others.notes[1]


@pytest.mark.parametrize("damage", ["manifest.json", "journal.json", "journal", "shards"])
def test_advice_about_the_cache_is_one_that_ask_can_follow(works, report, notes, tmp_path, damage):
    (corpus,) = with_documents(works, pausing(report), "notes").corpus
    (corpus / "manifest.json").unlink()
    path, theirs = corpus / damage, tmp_path / "theirs"
    if damage.endswith(".json"):
        path.write_text("{")
    else:
        theirs.mkdir()
        (theirs / "letter").write_text("dear")
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(theirs)
    with pytest.raises(ArtefactError) as caught:
        with_documents(works, report, "notes")
    assert caught.value.hint == f"delete {corpus}, and ask again"
    assert not theirs.exists() or [p.name for p in theirs.iterdir()] == ["letter"]
    shutil.rmtree(corpus)
    with_documents(works, report, "notes")


def test_a_corpus_dropped_while_somebody_waits_for_it_is_there_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path))
    folder = earlier(tmp_path / "corpora" / "a.clara", 1)
    dropping = os.open(folder, os.O_RDONLY)
    fcntl.flock(dropping, fcntl.LOCK_EX)
    found: list[bool] = []

    def use() -> None:
        with cache.in_use(folder):
            found.append((folder / "manifest.json").exists())

    waiting = threading.Thread(target=use, daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert found == []
    shutil.rmtree(folder)
    os.close(dropping)
    waiting.join(20)
    assert found == [False] and folder.is_dir()


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (("none",), UsageError, "no such file or folder"),
        (("-",), UsageError, "documents from stdin"),
        (("empty",), DataError, "no documents"),
    ],
)
def test_documents_that_are_none_are_refused(
    works, report, notes, tmp_path, documents, error, message
):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        with_documents(works, pausing(report), *documents)


@pytest.mark.parametrize(
    "changes", [{"text_tokens": 9}, {"where": "kind="}, {"task": "qa"}, {"passage": "a#0"}]
)
def test_wrong_options_are_told_before_documents_are_compressed(
    works, report, notes, tmp_path, changes
):
    with pytest.raises(UsageError):
        with_documents(works, pausing(report), "notes", **changes)
    assert report.notes == [] and not (tmp_path / "cache").exists()


def test_a_path_in_place_of_the_question_is_documents(notes):
    config = tiny.ask(f".{os.sep}notes", None)
    assert terminal_ask._documents_named_first(config).documents == (f".{os.sep}notes",)
    for question in ("notes?", "./no such file", "Who/what?"):
        assert terminal_ask._documents_named_first(tiny.ask(question, None)).question == question


# --- text ---


def test_text_is_read_by_the_bare_backbone(clara):
    answer = clara.ask(QUESTION, top_k=2, max_new_tokens=8, read="text")
    record = plain(answer)
    assert record["read"] == "text" and record["memory_tokens"] == 0
    assert {source["read"] for source in record["sources"]} == {"text"}
    prompter = clara.prompter
    texts = [model_text(h.passage.title, h.passage.text) for h in answer.sources]
    prompt = prompter.prompt(prompter.text_chat(QUESTION, texts))
    (ids,) = clara.model.generate([prompt], None, 8, role=None)
    assert record["answer"] == prompter.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert record["prompt_tokens"] == len(prompt)


def test_auto_reads_the_best_as_text_within_the_budget_and_says_so(clara):
    memory = clara.ask(QUESTION, top_k=3, max_new_tokens=8)
    tokens = [hit.passage.tokens for hit in memory.sources]
    mixed = clara.ask(QUESTION, top_k=3, max_new_tokens=8, read="auto", text_tokens=tokens[0] + 1)
    assert [hit.read for hit in mixed.sources] == ["text", "memory", "memory"]
    assert mixed.memory_tokens == 32 and mixed.text_tokens_replaced == sum(tokens[1:])
    assert mixed.prompt_tokens > memory.prompt_tokens
    assert "1 read as text" in answers._balance(mixed)
    none = clara.ask(QUESTION, top_k=3, max_new_tokens=8, read="auto", text_tokens=0)
    assert none.answer == memory.answer and none.prompt_tokens == memory.prompt_tokens


def test_a_budget_takes_whole_passages_in_order():
    assert texts_within([5, 5, 5], 10) == 2
    assert texts_within([11, 1], 10) == 0
    assert texts_within([], 10) == 0


def test_text_needs_text(works, report, tmp_path):
    mute = tmp_path / "mute.clara"
    compress.run(tiny.compress(works.documents, works.e2e, mute, text=False), report)
    for read in ("text", "auto"):
        with pytest.raises(ArtefactError, match="kept no text"):
            list(ask.run(tiny.ask(QUESTION, mute, read=read), report))


# --- the why ---


def test_slots_add_up_to_the_cosine():
    seeded = torch.Generator().manual_seed(0)
    query_MD, memory_KMD = (torch.randn(*s, generator=seeded) for s in ((4, 8), (3, 4, 8)))
    parts_KM = contributions(query_MD, memory_KMD)
    for parts_M, memory_MD in zip(parts_KM, memory_KMD, strict=True):
        cosine = torch.cosine_similarity(query_MD.flatten(), memory_MD.flatten(), dim=0)
        assert parts_M.sum().item() == pytest.approx(cosine.item(), abs=1e-6)
    assert contributions(query_MD, torch.zeros(1, 4, 8)).tolist() == [[0.0] * 4]


def test_explain_says_scores_tokens_words_and_time(clara):
    answer = clara.ask(QUESTION, top_k=2, first_stage="latent", max_new_tokens=8, explain=True)
    why = plain(answer)["explain"]
    assert len(why["query"]) == 16 and all(len(words) == 3 for words in why["query"])
    for source, match in zip(answer.sources, why["passages"], strict=True):
        assert match["cosine"] == pytest.approx(source.score, abs=1e-5)
        assert sum(t["cosine_part"] for t in match["memory"]) == pytest.approx(match["cosine"])
        assert len(match["memory"]) == 16
    texts = [model_text(h.passage.title, h.passage.text) for h in answer.sources]
    prompter = clara.prompter
    as_text = len(prompter.prompt(prompter.text_chat(QUESTION, texts)))
    assert why["tokens"] == {"read": answer.prompt_tokens, "as_text": as_text}
    assert set(why["seconds"]) == {"query", "search", "generate", "support", "first_token"}
    assert why["seconds"]["first_token"] <= sum(why["seconds"].values())
    assert "explain" not in plain(clara.ask(QUESTION, max_new_tokens=8))


# --- support ---


def calibrated(works, folder: Path, **changes) -> Path:
    """The shared checkpoint with a calibration by likelihood alone."""
    checkpoint = folder / "calibrated"
    shutil.copytree(works.e2e / "checkpoint", checkpoint)
    zero = dict.fromkeys(support.TEXT_SIGNALS, 0.0)
    fit = {"weights": {**zero, "over_nothing": 2.0}, "bias": 0.5, "threshold": 0.6}
    info = json.loads((checkpoint / "clara.json").read_text())
    raw = {"format": "clara-support", "version": 1, "fingerprint": info["fingerprint"]}
    (checkpoint / "support.json").write_text(
        json.dumps({**raw, "text": fit, "memory": fit, **changes})
    )
    return checkpoint


def test_a_calibration_judges_by_the_answers_likelihood(works, tmp_path):
    path = calibrated(works, tmp_path)
    clara = Clara.open(works.corpus, model=str(path), device="cpu", dtype="float32")
    answer = clara.ask(QUESTION, top_k=2, max_new_tokens=8, explain=True)
    assert answer.support_method == "calibrated"
    gain = answer.explain.signals["over_nothing"]
    expected = 1 / (1 + torch.tensor(-(2 * gain + 0.5)).exp().item())
    assert answer.support == pytest.approx(expected, abs=1e-3)
    assert answer.supported == (answer.support >= 0.6)
    for read in ("text", "auto"):  # of those the calibration knows nothing
        other = clara.ask(QUESTION, top_k=2, max_new_tokens=8, read=read)
        assert (other.support, other.supported, other.support_method) == (None, None, None)


def test_a_follow_up_is_judged_on_what_it_stands_for(works, tmp_path, report):
    path = calibrated(works, tmp_path)
    config = tiny.ask(None, works.corpus, model=str(path), top_k=1, explain=True)
    session = ask.open_session(config, report)
    session.ask("Who is mayor of Quarrel?")
    pointing = session.ask("And its baker?").explain.signals["asked"]
    alone = ask.open_session(config, report).ask("And its baker?").explain.signals["asked"]
    assert pointing > alone


def test_likelihood_signals_compare_the_same_answer(clara):
    how = AskOptions(top_k=2, max_new_tokens=8)
    found = clara.find([QUESTION], how)
    prompt = clara.answerer.prompt(found[0], how)
    given = generate(clara.model, [prompt], 8)
    (signals,) = clara.answerer.signals(found, given)
    assert set(signals) == set(support.TEXT_SIGNALS)
    ids, memory_ND = [given[0].ids], prompt.memory_ND
    own = log_likelihoods(clara.model, [prompt.ids], ids, memory_ND)
    assert [signals["likelihood"]] == pytest.approx(own, abs=1e-4)
    prompter = clara.prompter
    bare = prompter.prompt(prompter.answer_chat(QUESTION, 0, 16))
    nothing = log_likelihoods(clara.model, [bare], ids, None)
    assert signals["over_nothing"] == pytest.approx(own[0] - nothing[0], abs=1e-4)
    (row,) = [r for r in range(len(clara.corpus)) if torch.equal(
        clara.corpus.memory([r])[0], clara._other(found[0])[0]
    )]  # fmt: skip
    assert row not in {hit.row for hit in found[0].hits}
    other = prompter.prompt(prompter.answer_chat(QUESTION, 1, 16))
    over = log_likelihoods(clara.model, [other], ids, clara.corpus.memory([row])[0])
    assert signals["over_other"] == pytest.approx(own[0] - over[0], abs=1e-4)
    assert clara.answerer.signals(found, [dataclasses.replace(given[0], ids=[])]) == [{}]


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"text": {}}, {"text": None}, {"memory": {"weights": 1}}]
)
def test_a_damaged_calibration_is_named(works, tmp_path, changes):
    path = calibrated(works, tmp_path, **changes)
    with pytest.raises(ArtefactError, match=r"support\.json: key '(version|text|memory)"):
        support.read_calibration(path, "x")


def test_a_calibration_of_another_memory_space_is_left_alone(works, tmp_path):
    path = calibrated(works, tmp_path, fingerprint="other")
    info = load(LoadOptions(str(path), device="cpu")).info
    assert support.read_calibration(path, info.fingerprint) is None


def test_facts_are_names_and_numbers_else_words(clara):
    passages = [clara.corpus.passage(0)]
    share = support.text_signals("Who is mayor of Elmgate?", "Nora Velden in 1999", passages)
    assert share == {"facts": pytest.approx(2 / 3), "asked": 1.0}
    share = support.text_signals("Who is mayor of Quarrel?", "the mayor", passages)
    assert share == {"facts": 1.0, "asked": 0.0}
    assert support.text_signals("?", "", passages) == {"facts": 0.0, "asked": 0.0}
    for question, told in (("who leads Quarrel?", 0.0), ("Quarrel: who leads Elmgate?", 1.0)):
        assert support.text_signals(question, "the mayor", passages)["asked"] == told, question


# --- bad input ---


def test_an_empty_corpus_is_refused(works, report, tmp_path):
    identity = Corpus.open(works.corpus).manifest.identity
    empty = tmp_path / "empty.clara"
    with open_writer(empty, identity) as writer:
        writer.finish(dict.fromkeys(COUNTS, 0), "0" * 64)
    with pytest.raises(ArtefactError, match=r"empty\.clara: no passages in it") as caught:
        list(ask.run(tiny.ask(QUESTION, empty), report))
    assert caught.value.code == 3 and caught.value.hint


def test_control_characters_of_a_question_do_not_reach_the_terminal(clara, capsys):
    answer = clara.ask("\x00Who\x1b[2J is\x07 mayor of Elmgate?", max_new_tokens=8)
    assert answer.sources
    answers.show(answer, titled=True)
    out = capsys.readouterr().out
    assert "Who" in out and not set("\x00\x1b\x07") & set(out)


def test_a_model_that_is_not_here_is_named_offline(works, report, tmp_path):
    corpus = tmp_path / "copy.clara"
    shutil.copytree(works.corpus, corpus)
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["checkpoint"]["model"] = "nobody/nothing-7b"
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="nobody/nothing-7b: not downloaded yet") as caught:
        list(ask.run(tiny.ask(QUESTION, corpus), report))
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_terminal_gets_the_answer_as_it_comes(clara, works, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    config = tiny.ask(QUESTION, works.corpus, top_k=1)
    shown = {}
    for name, stream in (("terminal", Terminal()), ("pipe", io.StringIO())):
        monkeypatch.setattr(sys, "stdout", stream)
        terminal_ask.run(config, as_json=False, quiet=True)
        shown[name] = stream.getvalue()
    answer = clara.ask(QUESTION, top_k=1, max_new_tokens=8).answer
    text = re.sub(r"\x1b(\[[?\d;]*[a-zA-Z]|\]8;.*?\x1b\\\\)", "", shown["terminal"])
    assert text.startswith(answers.clean(answer)) and "support unjudged" in text  # after a draft
    assert "\x1b" not in shown["pipe"] and "support unjudged" in shown["pipe"]
    assert f"{works.documents}:1" in shown["pipe"]
