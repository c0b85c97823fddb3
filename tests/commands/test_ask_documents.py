"""Documents asked about without a corpus of their own: compressed once, into the cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers import tiny_world
from helpers.answers import plain

from clara_cli.cli import ask as terminal_ask
from clara_cli.commands import ask, compress
from clara_cli.corpus import cache
from clara_cli.errors import ArtefactError, DataError, UsageError
from clara_cli.storage.lock import locked

QUESTION = tiny_world.questions()[0]["question"]


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    text = "A head line.\n\n" + " ".join(
        tiny_world.sentence(*fact) for fact in tiny_world.FACTS[:3]
    )
    (folder / "towns.md").write_text(text, encoding="utf-8")
    return folder


def with_documents(works, report, *documents: str, **changes):
    config = tiny_world.ask(QUESTION, None, model=str(works.e2e), documents=documents, **changes)
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
    before = tiny_world.files(corpus)
    assert with_documents(works, report, "./notes/").corpus == (corpus,)
    assert told(report)[1:] == [f"./notes/: compressed before, in {corpus}"]
    assert tiny_world.files(corpus) == before
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
    config = tiny_world.ask(f".{os.sep}notes", None)
    assert terminal_ask._documents_named_first(config).documents == (f".{os.sep}notes",)
    for question in ("notes?", "./no such file", "Who/what?"):
        assert (
            terminal_ask._documents_named_first(tiny_world.ask(question, None)).question == question
        )
