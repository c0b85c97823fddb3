"""Runs made once: a checkpoint through all three stages, and a corpus compressed with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world

from clara_cli.answering.engine import Clara
from clara_cli.commands import compress, pretrain, train
from clara_cli.training import runner


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small are slower on two, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no plot of every run's losses."""
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with one_thread():
        yield


class Heard:
    """A report that keeps what was said; it may raise at the n-th step after a task's beginning."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.seen: list[Any] = []
        self.begun: set[str] = set()
        self.steps, self.stop_at = 0, stop_at

    def progress(self, progress: Any) -> None:
        self.seen.append(progress)
        self.steps += progress.task in self.begun
        self.begun.add(progress.task)
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="session")
def heard() -> type[Heard]:
    return Heard


@dataclass(frozen=True)
class Works:
    """Where the shared runs and data lie; nothing in it is written to after it was made."""

    backbone: Path
    pairs: Path
    questions: Path
    documents: Path
    scp: Path
    instruct: Path
    e2e: Path
    corpus: Path


@pytest.fixture(scope="session")
def works(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Works:
    folder = tmp_path_factory.mktemp("works")
    made = Works(
        backbone=tiny_backbone,
        pairs=tiny_world.write_jsonl(folder / "pairs.jsonl", tiny_world.pairs()),
        questions=tiny_world.write_jsonl(folder / "questions.jsonl", tiny_world.questions()),
        documents=tiny_world.write_jsonl(folder / "documents.jsonl", tiny_world.documents()),
        scp=folder / "scp",
        instruct=folder / "instruct",
        e2e=folder / "e2e",
        corpus=folder / "world.clara",
    )
    stages = (("instruct", made.scp, made.instruct), ("e2e", made.instruct, made.e2e))
    with one_thread():
        pretrain.run(tiny_world.scp(made.pairs, made.backbone, made.scp), Heard())
        for stage, init, out in stages:
            train.run(tiny_world.train(made.questions, init, out, stage), Heard())
        compress.run(tiny_world.compress(made.documents, made.e2e, made.corpus), Heard())
    return made


@pytest.fixture(scope="module")
def clara(works) -> Clara:
    """The corpus of the tiny world, open for questions."""
    return Clara.open(works.corpus, device="cpu", dtype="float32")
