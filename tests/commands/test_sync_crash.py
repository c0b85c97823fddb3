"""Edits, kills and readers against a dictionary: nothing is lost, a reader sees one whole state.

`CLARA_KILLS=50 pytest tests/commands/test_sync_crash.py` is the long form.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_world
from helpers.forks import ended, fork
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from clara_cli.answering.retriever import Retriever, passage_fields, passage_text
from clara_cli.commands import compress, index
from clara_cli.config import CompressConfig
from clara_cli.corpus.store import Corpus, verify
from clara_cli.records import NullReport
from clara_cli.search.bm25 import BM25
from clara_cli.search.where import parse

KILLS = int(os.environ.get("CLARA_KILLS", "3"))
NAMES = st.sampled_from(["a.txt", "b.txt", "c.txt", "sub/a.txt"])
TEXTS = st.sampled_from(["The mayor of Elmgate.", "Frostmouth has none.", "One. " * 40, "Zürich"])
WRITES = ("replace", "fsync", "unlink", "truncate")  # where a process may die: just before


def into(corpus: Path, *inputs: Path, **changes: Any) -> CompressConfig:
    named = tuple(map(str, inputs))
    return CompressConfig(**{**tiny_world.MACHINE, "inputs": named, "into": corpus, **changes})


def texts(corpus: Corpus) -> dict[str, str]:
    found: dict[str, str] = {}
    for passage in corpus.passages():
        found[passage.document_id] = found.get(passage.document_id, "") + str(passage.text)
    return {name: "".join(text.split()) for name, text in found.items()}


def assert_fields_of_a_rebuild(retriever: Retriever) -> None:
    passages = list(retriever.corpus.passages())
    for where in ("document_id>='b'", "document_id in (a.txt, 'sub/a.txt')"):
        wanted = parse(where)
        rows = [row for row, p in enumerate(passages) if wanted.matches(passage_fields(p))]
        assert retriever.rows_where(where) == rows


def dying(work: Callable[[], object], at: int) -> Callable[[], object]:
    """`work`, in a process that dies just before it writes for the `at`-th time."""

    def killed() -> object:
        left = [at]

        def before(function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*given: Any, **named: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*given, **named)

            return counted

        for name in WRITES:
            setattr(os, name, before(getattr(os, name)))
        return work()

    return killed


def make_machine(model: Path) -> type[RuleBasedStateMachine]:
    """The machine over corpora of a checkpoint."""

    class Edits(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.place = Path(tempfile.mkdtemp())
            self.folder, self.corpus = self.place / "notes", self.place / "c.clara"
            self.folder.mkdir()
            self.files: dict[str, str] = {}
            self.readers: list[tuple[Corpus, dict[str, str]]] = []
            self.write("a.txt", "The first.")
            compress.run(
                tiny_world.compress(self.folder, model, self.corpus, shard_size=2), NullReport()
            )
            self.stored = dict(self.files)

        def teardown(self) -> None:
            self.readers.clear()
            shutil.rmtree(self.place)

        @rule(name=NAMES, text=TEXTS)
        def write(self, name: str, text: str) -> None:
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            self.files[name] = text

        @rule(data=st.data())
        def remove(self, data: st.DataObject) -> None:
            if len(self.files) > 1:
                name = data.draw(st.sampled_from(sorted(self.files)))
                (self.folder / name).unlink()
                del self.files[name]

        @rule(prune=st.booleans(), vacuum=st.booleans(), kill=st.none() | st.integers(1, 25))
        def sync(self, prune: bool, vacuum: bool, kill: int | None) -> None:
            after = dict(self.files) if prune else self.stored | self.files
            config = into(self.corpus, self.folder, prune=prune, yes=prune, vacuum=vacuum)
            self.run(lambda: compress.run(config, NullReport()), kill, after)

        @rule(data=st.data(), kill=st.none() | st.integers(1, 12))
        def delete(self, data: st.DataObject, kill: int | None) -> None:
            if self.stored:
                name = data.draw(st.sampled_from(sorted(self.stored)))
                after = {key: text for key, text in self.stored.items() if key != name}
                config = into(self.corpus, delete=(name,))
                self.run(lambda: compress.run(config, NullReport()), kill, after)

        @rule()
        def index(self) -> None:
            if self.stored:
                index.run(tiny_world.index(self.corpus, engine="hnsw"), NullReport())

        @rule()
        def read(self) -> None:
            self.readers.append((Corpus.open(self.corpus), self.wanted()))

        def run(self, work: Callable[[], object], kill: int | None, after: dict[str, str]) -> None:
            """Do it; killed, the corpus is as before or as after, and the same again ends it."""
            if kill is None:
                work()
                self.stored = after
                return
            if ended(fork(dying(work, kill))) == 0:
                self.stored = after
                return
            found = texts(Corpus.open(self.corpus))
            before = self.wanted()
            self.stored = after
            assert found in (before, self.wanted())
            if found == before != self.wanted():
                work()

        def wanted(self) -> dict[str, str]:
            return {name: "".join(text.split()) for name, text in self.stored.items()}

        @invariant()
        def it_holds_what_it_should(self) -> None:
            corpus = Corpus.open(self.corpus)
            assert texts(corpus) == self.wanted()
            assert sum(len(memory) for _, memory in corpus.memory_chunks()) == len(corpus)
            assert verify(self.corpus) == []

        @invariant()
        def words_are_those_of_a_rebuild(self) -> None:
            retriever = Retriever.open(self.corpus)
            rebuilt = BM25.build(map(passage_text, retriever.corpus.passages()))
            for question in ("mayor", "one frostmouth"):
                assert retriever.bm25.search(question, 9) == rebuilt.search(question, 9)
            assert_fields_of_a_rebuild(retriever)

        @invariant()
        def readers_keep_what_they_opened(self) -> None:
            for corpus, wanted in self.readers:
                assert texts(corpus) == wanted
                assert sum(len(memory) for _, memory in corpus.memory_chunks()) == len(corpus)

    return Edits


def test_random_edits_kills_and_readers_against_a_dictionary(works):
    run_state_machine_as_test(
        make_machine(works.e2e),
        settings=settings(
            max_examples=max(2, KILLS // 2),
            stateful_step_count=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_killed_at_random_moments_while_editing_nothing_is_lost(works, tmp_path):
    rng, folder, corpus = random.Random(KILLS), tmp_path / "notes", tmp_path / "c.clara"
    folder.mkdir()
    files = {f"{n:02}.txt": tiny_world.sentence(f"Town {n}", f"Mayor {n}") for n in range(12)}
    for name, text in files.items():
        (folder / name).write_text(text)
    compress.run(tiny_world.compress(folder, works.e2e, corpus, shard_size=3), NullReport())
    index.run(tiny_world.index(corpus, engine="hnsw"), NullReport())
    kills, seconds = 0, 0.5
    for turn in range(10**6):
        before = texts(Corpus.open(corpus))
        name = rng.choice(sorted(files))
        if rng.random() < 0.3 and len(files) > 3:
            (folder / name).unlink()
            del files[name]
        else:
            files[name] = f"Turn {turn} of {name}. " * rng.randint(1, 5)
            (folder / name).write_text(files[name])
            files[f"new {turn}.txt"] = f"New in {turn}."
            (folder / f"new {turn}.txt").write_text(files[f"new {turn}.txt"])
        wanted = {key: "".join(text.split()) for key, text in files.items()}
        vacuum = rng.random() < 0.3
        config = into(corpus, folder, prune=True, yes=True, vacuum=vacuum)
        while True:
            began = time.monotonic()
            pid = fork(lambda config=config: compress.run(config, NullReport()))
            if kills < KILLS:
                time.sleep(rng.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            found = texts(Corpus.open(corpus))
            assert found in (before, wanted)
            kills += code == -9
            if code == 0:
                seconds = time.monotonic() - began
                break
            assert code == -9
        assert found == wanted and verify(corpus) == []
        if kills >= KILLS:
            break
    retriever = Retriever.open(corpus)
    rebuilt = BM25.build(map(passage_text, retriever.corpus.passages()))
    assert retriever.bm25.search("new turn", 50) == rebuilt.search("new turn", 50)
    assert_fields_of_a_rebuild(retriever)
