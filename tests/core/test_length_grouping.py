"""Rows in groups of like length: as few positions as any split has, and no number changed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from helpers.tiny_roles import build, gradients, loss_of
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.core.length_grouping import group_by_length
from clara_cli.core.stage_losses import TRAINED


def positions(lengths: list[int], groups: list[list[int]], pass_cost: int) -> int:
    return sum(max(lengths[i] for i in g) * len(g) + pass_cost for g in groups)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=7), st.integers(0, 60))
def test_no_split_of_sorted_rows_takes_fewer_positions(lengths, pass_cost):
    groups = group_by_length(lengths, pass_cost)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    least = positions(lengths, groups, pass_cost)
    for cuts in range(2 ** (len(lengths) - 1)):
        at = [n for n in range(1, len(lengths)) if cuts >> (n - 1) & 1]
        split = [order[a:b] for a, b in pairwise([0, *at, len(lengths)])]
        assert least <= positions(lengths, split, pass_cost)


def test_no_rows_have_no_group():
    assert group_by_length([], 64) == []


@pytest.mark.parametrize("stage", TRAINED)
def test_groups_change_neither_loss_nor_gradient(tiny_backbone, monkeypatch, stage):
    """All rows together against each length by itself."""
    found = []
    for cost in (10**6, 0):
        monkeypatch.setattr("clara_cli.core.model.PASS_COST", {"cpu": cost})
        model = build(tiny_backbone)
        model.train_only(TRAINED[stage], memory=True)
        passes = []
        monkeypatch.setattr(model, "forward", counted(model.forward, passes))
        result = loss_of(model, stage)
        result.loss.backward()
        found.append((len(passes), {"loss": result.loss.detach(), **gradients(model)}))
    (few, whole), (many, split) = found
    assert few == (3 if stage == "e2e" else 2)
    assert many > few and whole.keys() == split.keys()
    for name, expected in whole.items():
        assert (split[name] - expected).norm() <= 1e-5 * expected.norm() + 1e-8, name


def counted(forward, passes: list):
    def counting(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    return counting


def test_sharded_processes_run_one_pass_whatever_the_lengths(tiny_backbone):
    model = build(tiny_backbone)
    assert len(model.groups([5, 500, 1500])) == 3
    model.sharded = True
    assert model.groups([5, 500, 1500]) == [[0, 1, 2]]
