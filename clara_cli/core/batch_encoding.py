"""Many token rows into memory: batches of like length within a budget of positions.

What the C library does with freed memory matters here (glibc; elsewhere `keep_heap` and `trim_heap`
have no effect). By default it hands large blocks back at once and asks for them again: every page
is then zeroed anew, which costs a batch of small matrices a tenth of its time.

N rows, M memory tokens, D hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from clara_cli.core.model import ClaraModel

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NEVER = 2**31 - 1


@torch.inference_mode()
def encode_rows(
    model: ClaraModel,
    rows: Sequence[list[int]],
    memory_tokens: int,
    budget: int,
    done: Callable[[int, int], None] = lambda rows, tokens: None,
) -> Tensor:
    """memory (N, M, D) of token rows, in their order, on the CPU; at most `budget` positions a
    batch. `done` hears how many rows and tokens each batch had."""
    memory_NMD = torch.empty(len(rows), memory_tokens, model.hidden, dtype=model.dtype)
    for batch in length_batches([len(row) + memory_tokens for row in rows], budget):
        encoded = model.encode([rows[i] for i in batch], "compressor", memory_tokens)
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


def keep_heap() -> None:
    """Keep freed memory for what comes next, in the whole process: for batches of like shape, one
    after the other."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def trim_heap() -> None:
    """Give freed memory back to the system. Activations of ever other shapes leave the heap in
    pieces, and the peak would creep up with the corpus."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
