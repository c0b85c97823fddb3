"""Token rows of unlike length as tensors: padded on the right, or in groups that hardly need it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PASS_COST = {"cpu": 64}
"""Positions of padding that one more forward pass is worth, by device: on a CPU of two cores, about
what its calls take with a backbone of 33 M parameters."""
GPU_PASS_COST = 4096
"""The same where kernels are launched: an estimate that leaves all but very long rows together."""


def pad_rows(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """Rows as one tensor, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


def until_end(ids: list[int], ends: list[int]) -> list[int]:
    """Ids before the first end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def group_by_length(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Indices of rows in groups of like length, ascending in each: the split with the fewest padded
    positions where every group costs `pass_cost` of them."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    least = [(0, 0)]  # of the first n rows in order: positions, and where their last group begins
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        costs = ((least[at][0] + width * (end - at) + pass_cost, at) for at in range(end))
        least.append(min(costs))
    groups, end = [], len(order)
    while end:
        begin = least[end][1]
        groups.append(sorted(order[begin:end]))
        end = begin
    return groups
