"""Many token rows into memory: batches of like length within a budget of positions.

N rows, M memory tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from clara_cli.core.heap import trim_heap
from clara_cli.core.model import ClaraModel


@torch.inference_mode()
def encode_rows(
    model: ClaraModel,
    rows: Sequence[list[int]],
    slots: int,
    budget: int,
    done: Callable[[int, int], None] = lambda rows, tokens: None,
) -> Tensor:
    """memory (N, M, D) of token rows, in their order, on the CPU; at most `budget` positions a
    batch. `done` hears how many rows and tokens each batch had."""
    memory_NMD = torch.empty(len(rows), slots, model.hidden, dtype=model.dtype)
    for batch in length_batches([len(row) + slots for row in rows], budget):
        encoded = model.encode([rows[i] for i in batch], "compressor", slots)
        memory_NMD[batch] = encoded.memory_BMD.cpu()
        trim_heap()
        done(len(batch), sum(len(rows[i]) for i in batch))
    return memory_NMD


def length_batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows of like length, longest first, padded size at most `budget` (one row at
    least)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
