"""Two processes train as one does: the same steps, one writer, one error, one end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import processes, tiny_world

from clara_cli.commands import pretrain, train
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.errors import UsageError
from clara_cli.training import runner, scp

STEPS = 20
EQUAL = {"steps": STEPS, "dropout": 0.0, "batch_size": 3, "learning_rate": 1e-3}


class Silence:
    """A report nobody listens to; it may stop the run, as Ctrl-C would, after a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps, self.stop_at = 0, stop_at

    def progress(self, progress: Any) -> None:
        self.steps += progress.done > 0
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def go(works, out: Path, stage: str, report: Any = None, **changes: Any) -> Any:
    report = report or Silence()
    if stage == "scp":
        config = tiny_world.scp(works.pairs, works.backbone, out, **{**EQUAL, **changes})
        return pretrain.run(config, report)
    config = tiny_world.train(works.questions, works.instruct, out, stage, **{**EQUAL, **changes})
    return train.run(config, report)


def assert_the_same_steps(one: Path, other: Path) -> None:
    """Losses within 1e-5 a step, weights within 1e-5 of their own size at the end."""
    ours, theirs = tiny_world.metrics(one), tiny_world.metrics(other)
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        for key in ("loss", "ce", "mse"):
            assert left[key] == (right[key] and pytest.approx(right[key], rel=0, abs=1e-5)), key
        assert [left[key] for key in ("step", "lr", "cut")] == [
            right[key] for key in ("step", "lr", "cut")
        ]
    left, right = (tiny_world.tensors(run / "checkpoint") for run in (one, other))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor - right[name]).norm() <= 1e-4 * right[name].norm() + 1e-6, name


@pytest.fixture(scope="module")
def alone(works, tmp_path_factory):
    """Runs of one process, by stage."""
    folder = tmp_path_factory.mktemp("alone")

    def make(stage: str) -> Path:
        if not (folder / stage).exists():
            go(works, folder / stage, stage)
        return folder / stage

    return make


@pytest.mark.parametrize("stage", ["scp", "e2e"])
def test_two_processes_make_the_steps_of_one(works, alone, tmp_path, stage):
    """Batches of three: one process has two examples, the other one, of other lengths."""
    results = processes.ranks(lambda rank: go(works, tmp_path / "two", stage).steps)
    assert results == [STEPS, STEPS], results
    assert_the_same_steps(tmp_path / "two", alone(stage))
    assert load(LoadOptions(str(tmp_path / "two"), device="cpu")).info.stage == stage


def test_a_step_smaller_than_the_processes_counts_once(works, tmp_path):
    changes = {"steps": 3, "batch_size": 1, "micro_batch": 1}
    results = processes.ranks(lambda rank: go(works, tmp_path / "two", "scp", **changes).steps)
    assert results == [3, 3], results
    go(works, tmp_path / "one", "scp", **changes)
    assert_the_same_steps(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("stage", ["scp", "e2e"])
def test_a_sharded_backbone_makes_the_same_steps_and_an_ordinary_checkpoint(works, tmp_path, stage):
    """Micro-batches of one: the process with one example waits while the other has its second. SCP
    recomputes the cut layers in backward."""
    few = {"steps": 3, "micro_batch": 1}

    def sharded(rank: int) -> Any:
        held: list[int] = []
        cut = runner.shard

        def frozen(model: Any) -> int:
            """Numbers of the layers' own weights in this process."""
            names = dict(model.causal_lm.model.layers.named_parameters())
            own = [p for name, p in names.items() if "lora" not in name]
            return sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in own)

        def shard(model: Any, ranks: Any) -> None:
            held.append(frozen(model))
            cut(model, ranks)
            held.append(frozen(model))

        runner.shard = shard
        go(works, tmp_path / "cut", stage, fsdp=True, checkpointing=stage == "scp", **few)
        return held

    for whole, half in processes.ranks(sharded):
        assert half == whole / 2
    go(works, tmp_path / "one", stage, **few)
    assert_the_same_steps(tmp_path / "cut", tmp_path / "one")
    assert load(LoadOptions(str(tmp_path / "cut"), device="cpu")).info.stage == stage


def test_fsdp_in_one_process_is_refused(works, tmp_path):
    with pytest.raises(UsageError, match="fsdp = true with one process"):
        go(works, tmp_path / "one", "scp", fsdp=True)


def test_stopping_one_process_stops_all_after_a_step_and_the_run_goes_on(works, tmp_path):
    run, four = tmp_path / "two", {"steps": 4}

    def stopped(rank: int) -> Any:
        return go(works, run, "scp", Silence(stop_at=2 if rank == 1 else None), **four)

    for kind, message, _ in processes.ranks(stopped):
        assert (kind, message[:15]) == ("Interrupted", "interrupted; 2 "), message
    assert json.loads((run / "last" / "step.json").read_text()) == {"step": 2}
    assert processes.ranks(lambda rank: go(works, run, "scp", **four).steps) == [4, 4]
    go(works, tmp_path / "one", "scp", **four)
    assert_the_same_steps(run, tmp_path / "one")


def test_processes_that_disagree_on_data_are_told_so(works, tmp_path):
    other = tiny_world.write_jsonl(tmp_path / "pairs.jsonl", tiny_world.pairs()[1:])

    def disagree(rank: int) -> Any:
        data = works.pairs if rank == 0 else other
        config = tiny_world.scp(data, works.backbone, tmp_path / "two", **EQUAL)
        return pretrain.run(type(config)(**{**config.__dict__, "pairs": ("same",)}), Silence())

    def read(paths: Any) -> Any:
        return pretrain_read([str(works.pairs if os.environ["RANK"] == "0" else other)])

    pretrain_read = scp.read_pairs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scp, "read_pairs", read)
        for kind, message, _ in processes.ranks(disagree):
            assert kind == "ArtefactError" and "disagree on data_sha256" in message
    assert not (tmp_path / "two").exists()


def test_a_loss_that_is_no_number_in_one_process_stops_all_with_the_records_named(works, tmp_path):
    def poisoned(rank: int) -> Any:
        losses = scp.read_memory_loss

        def poison(*args: Any) -> Any:
            found = losses(*args)
            found.loss = found.loss * (float("nan") if rank == 1 else 1.0)
            return found

        scp.read_memory_loss = poison
        return go(works, tmp_path / "two", "scp")

    for kind, message, _ in processes.ranks(poisoned):
        assert kind == "ClaraError" and "step 1: the loss is nan" in message
        assert f"{works.pairs}:" in message
    state = tiny_world.tensors(tmp_path / "two" / "last")
    assert state and all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_run_folder_of_other_settings_is_refused_in_every_process(works, alone, tmp_path):
    shutil.copytree(alone("scp"), tmp_path / "two")
    refused = processes.ranks(lambda rank: go(works, tmp_path / "two", "scp", learning_rate=0.5))
    for kind, message, _ in refused:
        assert kind == "ArtefactError" and "was made with learning_rate" in message


def test_nproc_trains_in_processes_that_ctrl_c_stops_and_the_same_command_resumes(works, tmp_path):
    """The program itself, under torchrun's launcher."""
    words = ["pretrain", str(works.pairs), "--backbone", str(works.backbone), "--out", "run"]
    words += ["--device", "cpu", "--json", "--nproc", "2", "--set", "passage_tokens=64"]
    words += ["--set", "ratios=[4]", "--set", "batch_size=2"]
    command = [sys.executable, "-m", "clara_cli", *words, "--steps", "400"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    began = subprocess.Popen(command, **pipes)
    lines = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (lines.exists() and lines.stat().st_size) and time.monotonic() < until:
        assert began.poll() is None, began.communicate()
        time.sleep(0.05)
    began.send_signal(signal.SIGINT)
    out, said = began.communicate(timeout=60)
    assert began.returncode == 130 and out == "", said
    assert said.count("interrupted; ") == 1 and "hint: run the same command again" in said
    done = json.loads((tmp_path / "run" / "last" / "step.json").read_text())["step"]
    assert 0 < done < 400 and len(tiny_world.metrics(tmp_path / "run")) == done
