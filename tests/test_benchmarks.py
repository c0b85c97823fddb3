"""The benchmarks' own claims: what is compared computes the same, and the table names them all."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from clara_cli.records import Pair

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import gpu_targets  # noqa: E402
import train_speed  # noqa: E402


def pairs() -> list[Pair]:
    """Texts of unlike length, each with a question."""
    names = [f"Town {n} lies on a river{' of some length' * (n % 5)}." for n in range(32)]
    return [Pair("qa", (f"Where is town {n}?",), ("far",), (t,)) for n, t in enumerate(names)]


@pytest.mark.parametrize("stage", train_speed.WAYS)
def test_both_ways_of_a_training_step_are_the_same_step(tiny_backbone, stage):
    args = Namespace(stage=stage, micro=None, batch=2)
    ways = {way: train_speed.Trainer(way, args, tiny_backbone) for way in train_speed.WAYS[stage]}
    first, second = train_speed.batches(stage, pairs(), 2)[:2]
    found = train_speed.equal(ways, first)
    assert found["loss_difference"] < 1e-4 and found["gradient_difference"] < 1e-3
    other = ways["clara"].step
    ways["clara"].step = lambda model, batch: other(
        model, train_speed.batch_of(model, second, stage)
    )
    with pytest.raises(SystemExit, match="not the same step"):
        train_speed.equal(ways, first)


def test_without_a_gpu_the_aims_of_one_are_said_to_be_unmeasured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_targets.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_targets.py"])
    gpu_targets.main()
    result = json.loads(capsys.readouterr().out)
    assert result["not_measured"].startswith("no GPU") and "met" not in result
    assert (result["device"], result["shape"]) == ("cpu", "nano")
    assert result["compress_mfu"] is None
    assert result["pretrain_gb"] > 0 and 0 < result["first_token_share"] < 1


def test_aims_are_met_on_their_own_side() -> None:
    good = {"compress_mfu": 0.6, "pretrain_gb": 39.0, "first_token_share": 0.1}
    assert set(gpu_targets.met(good).values()) == {True}
    bad = {"compress_mfu": 0.5, "pretrain_gb": 41.0, "first_token_share": 0.2}
    assert set(gpu_targets.met(bad).values()) == {False}
    assert gpu_targets.met({"compress_mfu": None})["compress_mfu"] is None


def test_every_benchmark_is_in_the_table():
    said = (FOLDER / "README.md").read_text()
    assert all(f"`{file.name}`" in said for file in FOLDER.glob("*.py"))
