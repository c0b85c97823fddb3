"""smol's training in legs: on another machine within a budget of time, and on from a checkpoint."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_world
from typer.testing import CliRunner

from clara_cli.cli.app import app
from clara_cli.commands import train
from clara_cli.core.checkpoint import LoadOptions, load

RECIPE = Path(__file__).parents[2] / "recipes" / "smol"
SPEC = importlib.util.spec_from_file_location("parts", RECIPE / "parts.py")
assert SPEC is not None and SPEC.loader is not None
parts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parts)


def tree(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_what_is_packed_is_unpacked_in_parts_of_bounded_size(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    (inputs / "folder" / "inner").mkdir(parents=True)
    (inputs / "folder" / "inner" / "a.bin").write_bytes(random.Random(0).randbytes(7000))
    (inputs / "text.jsonl").write_text("a line\n" * 100)
    names = parts.pack(tmp_path / "parts", [inputs / "folder", inputs / "text.jsonl"], most=1000)
    sizes = [(tmp_path / "parts" / name).stat().st_size for name in names]
    assert len(names) > 5
    assert all(size == 1000 for size in sizes[:-1]) and 0 < sizes[-1] <= 1000
    parts.unpack(tmp_path / "parts", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(inputs)


@pytest.mark.parametrize("damage", ["missing", "cut", "another's"])
def test_a_part_that_was_not_carried_whole_is_named(damage: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(random.Random(0).randbytes(5000))
    parts.pack(tmp_path / "parts", [tmp_path / "a.bin"], most=1000)
    part = tmp_path / "parts" / "part.002"
    if damage == "missing":
        part.unlink()
    else:
        whole = part.read_bytes()
        part.write_bytes(whole[:-1] if damage == "cut" else whole[::-1])
    with pytest.raises(SystemExit, match=r"part\.002: missing, or not what was packed"):
        parts.unpack(tmp_path / "parts", tmp_path / "out")


def test_a_leg_ends_within_its_minutes_with_its_state_written(works: Any, tmp_path: Path) -> None:
    """The commands of the recipe, on a backbone of a thousandth of the size."""
    shutil.copytree(works.scp / "checkpoint", tmp_path / "fresh")
    inputs = [works.backbone, works.questions, tmp_path / "fresh"]
    parts.pack(tmp_path / "parts", inputs, most=50_000)
    there, run = tmp_path / "there", tmp_path / "leg"
    parts.unpack(tmp_path / "parts", there)
    backbone, data = there / works.backbone.name, there / works.questions.name
    words = ["train", str(data), "--init", str(there / "fresh"), "--backbone", str(backbone)]
    words += ["--stage", "instruct", "--recipe", str(RECIPE / "reader.toml"), "--device", "cpu"]
    settings = ["minutes=0.03", "save_minutes=0", "tracker=none", "batch_size=4", "micro_batch=2"]
    for setting in settings:
        words += ["--set", setting]
    result = CliRunner().invoke(app, [*words, "--out", str(run), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [line for line in tiny_world.metrics(run) if "ce" in line]
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["steps"] == len(lines) > 1
    assert sum(line["seconds"] for line in lines[:-1]) < 0.03 * 60
    assert json.loads((run / "last" / "step.json").read_text())["step"] == len(lines)
    before, after = (
        load(LoadOptions(str(folder), str(backbone), "cpu", "float32")).model
        for folder in (there / "fresh", run)
    )
    for role in ("compressor", "generator"):
        same = all(
            torch.equal(one, other)
            for one, other in zip(
                before.role_parameters(role).values(),
                after.role_parameters(role).values(),
                strict=True,
            )
        )
        assert same == (role == "compressor")


def test_a_leg_that_begins_at_a_checkpoint_warms_up_and_does_not_fall_back(
    works: Any, heard: Any, tmp_path: Path
) -> None:
    """The optimiser's state is not kept between legs: the rate rises from near nothing, and the
    loss of the first steps is where the leg before had it."""
    shared = {
        "text_share": 1.0,
        "group_by_pool": True,
        "train_roles": ("generator",),
        "batch_size": 8,
        "steps": 30,
    }
    first, second, cold = tmp_path / "first", tmp_path / "second", tmp_path / "cold"
    warm = {**shared, "warmup": 0.3}
    train.run(tiny_world.train(works.questions, works.scp, first, "instruct", **warm), heard())
    train.run(tiny_world.train(works.questions, first, second, "instruct", **warm), heard())
    train.run(
        tiny_world.train(works.questions, first, cold, "instruct", **{**shared, "warmup": 0.0}),
        heard(),
    )
    before, after, without = (tiny_world.metrics(run) for run in (first, second, cold))
    rates = [line["lr"] for line in after]
    assert rates[0] <= 0.15 * max(rates) and rates[:9] == sorted(rates[:9])
    learned = before[0]["ce"] - before[-1]["ce"]
    assert learned > 0.5
    assert max(line["ce"] for line in after[:5]) < before[-1]["ce"] + 0.1 * learned
    assert max(line["ce"] for line in without[:5]) > max(line["ce"] for line in after[:5])
