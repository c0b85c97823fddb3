"""Rows that begin alike as one row: the common beginning once, then every row's own end.

With causal attention the hidden states of a beginning do not depend on what follows. So rows that
share theirs (questions over the same passages) can be computed together, each end seeing the
beginning and itself: the hidden states are those of the rows one by one, at a fraction of the
positions. Knows lists and masks, no model.

P packed rows, T positions of a packed row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clara_cli.core.losses import IGNORE

LEAST_SAVED = 16  # positions; below, a mask costs more than it saves


@dataclass
class PackedRow:
    """One beginning and the ends that follow it. `positions` are those of each token in its own
    row, `segments` number the ends from 1 (0: the beginning), `targets` hold at each position the
    token to predict there, or IGNORE. `sources` are (row, first token, end token) of each stretch,
    in order: where the tokens came from."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    sources: list[tuple[int, int, int]] = field(default_factory=list)

    def add(
        self,
        row: int,
        ids: list[int],
        labels: list[int],
        positions: Sequence[int],
        start: int,
        end: int,
    ) -> None:
        """Append tokens `start` to `end` of a row as the next segment."""
        self.ids += ids[start:end]
        self.positions += positions[start:end]
        self.segments += [len(self.sources)] * (end - start)
        following = [*labels[1:], IGNORE]
        self.targets += following[start:end]
        self.sources.append((row, start, end))

    def labelled(self) -> list[tuple[int, int]]:
        """The row, and the place in it, of every token that predicts a target."""
        tokens = [(row, place) for row, start, end in self.sources for place in range(start, end)]
        pairs = zip(tokens, self.targets, strict=True)
        return [token for token, target in pairs if target != IGNORE]


def pack(
    rows: Sequence[list[int]],
    labels: Sequence[list[int]],
    contexts: Sequence[Hashable],
    positions: Sequence[Sequence[int]] | None = None,
    least_saved: int = LEAST_SAVED,
) -> list[PackedRow]:
    """Rows of equal `contexts` (what their beginnings stand for) packed together, as far as their
    beginnings are equal and nothing in them is a target; alone where that would save fewer than
    `least_saved` positions. `positions` are those of each row's ids: in their places, if none."""
    positions = [range(len(row)) for row in rows] if positions is None else positions
    groups: dict[Hashable, list[int]] = {}
    for number, context in enumerate(contexts):
        groups.setdefault(context, []).append(number)
    packed = []
    for group in groups.values():
        shared = shared_length([rows[i] for i in group], [labels[i] for i in group])
        if len(group) == 1 or shared * (len(group) - 1) < least_saved:
            packed += [whole(i, rows[i], labels[i], positions[i]) for i in group]
            continue
        row = PackedRow()
        first = group[0]
        row.add(first, rows[first], [IGNORE] * len(rows[first]), positions[first], 0, shared)
        for i in group:
            row.add(i, rows[i], labels[i], positions[i], shared, len(rows[i]))
        packed.append(row)
    return packed


def whole(number: int, ids: list[int], labels: list[int], positions: Sequence[int]) -> PackedRow:
    """A row on its own."""
    row = PackedRow()
    row.add(number, ids, labels, positions, 0, len(ids))
    return row


def shared_length(rows: Sequence[list[int]], labels: Sequence[list[int]]) -> int:
    """Tokens that all rows begin with and whose following token is no target in any of them."""
    first = min(next((i for i, x in enumerate(ls) if x != IGNORE), len(ls)) for ls in labels)
    longest = min(first - 1, *(len(row) - 1 for row in rows))
    return next(
        (i for i in range(longest) if any(row[i] != rows[0][i] for row in rows)), max(longest, 0)
    )


def attention_mask(packed: Sequence[PackedRow], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(P, 1, T, T), to be added to attention scores: 0 where a position sees another (the beginning
    or its own end, and not later), else the least number of `dtype`. Padding sees itself."""
    width = max(len(row.ids) for row in packed)
    segments_PT = torch.full((len(packed), width), -1, device=device)
    for place, row in enumerate(packed):
        segments_PT[place, : len(row.segments)] = torch.tensor(row.segments, device=device)
    own_PTT = segments_PT[:, :, None] == segments_PT[:, None, :]
    beginning_PTT = (segments_PT == 0)[:, None, :] & (segments_PT >= 0)[:, :, None]
    earlier_TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen_PTT = (own_PTT | beginning_PTT) & earlier_TT
    mask_PTT = torch.zeros(seen_PTT.shape, dtype=dtype, device=device)
    return mask_PTT.masked_fill_(~seen_PTT, torch.finfo(dtype).min)[:, None]
