"""Shared fixtures: tiny random backbones built on the spot, and where the recorded data lies."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_backbones import make_backbone

ROOT = Path(__file__).parent.parent
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CLARA_MODEL": "nano"}
os.environ.update(QUIET)
if "CLARA_CACHE" not in os.environ:  # never the user's own
    CACHE = tempfile.TemporaryDirectory(prefix="clara-tests-")
    os.environ["CLARA_CACHE"] = CACHE.name
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The recorded reference and real data; tests that need it skip where it is absent."""
    path = Path(os.environ.get("CLARA_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no recorded data: set CLARA_SHARED to its folder")
    return path


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A backbone directory for the whole session; never written to."""
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def backbone_maker():
    """`make_backbone`, for tests that want one of another shape."""
    return make_backbone


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """A test that waits for something fails, and the others run."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Silent:
    """A report that keeps what was said, and counts the `steps` after each task's beginning."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps = 0

    def progress(self, progress) -> None:
        self.steps += progress.task in self.begun
        self.begun.add(progress.task)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def report() -> Silent:
    return Silent()
