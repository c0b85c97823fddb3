"""The benchmarks' own claims: what is compared computes the same, and the table names them all."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from clara_cli.records import Pair

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

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


def test_every_benchmark_is_in_the_table():
    said = (FOLDER / "README.md").read_text()
    assert all(f"`{file.name}`" in said for file in FOLDER.glob("*.py"))
