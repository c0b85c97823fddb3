"""Several processes for one command: who starts them, who speaks, whose error is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clara_cli.distributed import launch
from clara_cli.errors import ClaraError, DataError, Interrupted, UsageError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def world(monkeypatch):
    """Pretend to be a process of a launcher."""

    def pretend(*numbers: int) -> None:
        for name, number in zip(NAMES, numbers, strict=True):
            monkeypatch.setenv(name, str(number))

    return pretend


def test_without_a_launcher_there_is_one_process():
    assert launch.world() == launch.World(0, 1, 0, 1)
    assert [launch.must_launch(n) for n in (None, 1, 2)] == [False, False, True]


def test_a_launched_process_knows_its_place_and_does_not_launch_again(world):
    world(5, 8, 1, 4)
    assert launch.world() == launch.World(5, 8, 1, 4)
    assert not launch.must_launch(4) and not launch.must_launch(None)
    for wrong in (1, 2):
        with pytest.raises(UsageError, match=f"--nproc {wrong}, but the launcher started 4"):
            launch.must_launch(wrong)


def test_only_the_first_process_speaks(world):
    report = object()
    world(0, 2, 0, 2)
    assert launch.report_of_first(report) is report
    world(1, 2, 1, 2)
    assert isinstance(launch.report_of_first(report), launch.NullReport)


def test_the_first_error_of_all_processes_is_the_one_shown(world, monkeypatch, tmp_path):
    monkeypatch.setenv(launch.ERRORS, str(tmp_path))
    shown: list[ClaraError] = []
    told = [(2, Interrupted("stopped by the launcher")), (1, DataError("bad line", "look at it"))]
    for rank, error in [*told, (0, UsageError("later"))]:
        world(rank, 3, rank, 3)
        launch.hand_over_error(error, shown.append)
    assert not shown and len(list(tmp_path.iterdir())) == 3
    first = launch.first_error(tmp_path)
    assert isinstance(first, DataError)
    assert (first.message, first.hint) == ("bad line", "look at it")
    world(0, 1, 0, 1)
    launch.hand_over_error(told[0][1], shown.append)
    assert shown == [told[0][1]]


def clara(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clara_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


def test_an_error_in_every_process_is_shown_once_with_its_exit_code(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"docs": 1}) + "\n")
    run = clara("pretrain", "pairs.jsonl", "--nproc", "2", "--out", "run", folder=tmp_path)
    assert run.returncode == 4, run.stderr
    assert run.stderr.count("error: ") == 1 and "pairs.jsonl:1: docs is 1" in run.stderr
    assert run.stdout == "" and len(run.stderr.splitlines()) == 2
