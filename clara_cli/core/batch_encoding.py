"""Many token rows into memory: batches of like length within a budget of positions.

What the C library does with freed memory matters here (glibc; elsewhere `keep_heap` and `trim_heap`
have no effect). By default it hands large blocks back at once and asks for them again: every page
is then zeroed anew, which costs a batch of small matrices a tenth of its time.

N rows, M memory tokens, D hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from clara_cli.core.backbone import inner_model, layers_of
from clara_cli.core.model import ClaraModel
from clara_cli.errors import ArtefactError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NEVER = 2**31 - 1


def hear_nothing(rows: float, tokens: int = 0) -> None:
    """What `encode_rows` tells where nobody listens."""


@torch.inference_mode()
def encode_rows(
    model: ClaraModel,
    rows: Sequence[list[int]],
    memory_tokens: int,
    budget: int,
    done: Callable[[int, int], None] = hear_nothing,
    layer_done: Callable[[float], None] = hear_nothing,
) -> Tensor:
    """memory (N, M, D) of token rows, in their order, on the CPU; at most `budget` positions a
    batch. `done` hears how many rows and tokens each batch had; `layer_done`, after each layer, how
    many rows' worth of the batch is computed."""
    memory_NMD = torch.empty(len(rows), memory_tokens, model.hidden, dtype=model.dtype)
    for batch in length_batches([len(row) + memory_tokens for row in rows], budget):
        with layers_heard(model, len(batch), layer_done):
            encoded = model.encode([rows[i] for i in batch], "compressor", memory_tokens)
        memory_NMD[batch] = encoded.memory_BMD.cpu()
        trim_heap()
        done(len(batch), sum(len(rows[i]) for i in batch))
    return memory_NMD


@contextmanager
def layers_heard(
    model: ClaraModel, rows: int, layer_done: Callable[[float], None]
) -> Iterator[None]:
    """Let `layer_done` hear, after each layer of a pass over `rows`, how many rows' worth of it is
    computed; nothing where a model's layers are not one list."""
    try:
        layers = list(layers_of(inner_model(model.causal_lm)))[: model.layout.layer]
    except ArtefactError:
        layers = []

    def hook(number: int) -> Callable[..., None]:
        return lambda *outcome: layer_done(rows * number / len(layers))

    hooks = [layer.register_forward_hook(hook(n)) for n, layer in enumerate(layers, 1)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


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
