"""Why these passages: what each memory token adds to a passage's cosine, and the words that memory
tokens are nearest to.

Tensor letters: K passages, M memory tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_cli.core.decode import lens
from clara_cli.core.model import ClaraModel
from clara_cli.records import Hit, PassageMatch

WORDS = 3  # nearest words shown for a memory token


def contributions(query_MD: Tensor, memory_KMD: Tensor) -> Tensor:
    """[K, M]: what each pair of memory tokens adds to the cosine of the flattened memories; a row
    sums to that cosine. A zero memory matches nothing."""
    query_MD, memory_KMD = query_MD.double(), memory_KMD.double()
    norms_K1 = memory_KMD.flatten(1).norm(dim=1, keepdim=True) * query_MD.norm()
    dots_KM = (memory_KMD * query_MD).sum(-1)
    return dots_KM / norms_K1.clamp_min(torch.finfo(torch.double).tiny)


def words_of(model: ClaraModel, memory_MD: Tensor) -> tuple[tuple[str, ...], ...]:
    """The nearest words of each memory token."""
    return tuple(tuple(row) for row in lens(model, memory_MD, WORDS))


def matches(
    model: ClaraModel, query_MD: Tensor, memory_KMD: Tensor, hits: Sequence[Hit]
) -> tuple[PassageMatch, ...]:
    """How each passage matched the question, in the order given."""
    parts_KM = contributions(query_MD.float().cpu(), memory_KMD).tolist()
    return tuple(
        PassageMatch(
            rank=hit.rank,
            passage_id=hit.passage.passage_id,
            score=hit.score,
            cosine=sum(parts_M),
            token_cosines=tuple(parts_M),
            words=words_of(model, memory_MD),
        )
        for hit, parts_M, memory_MD in zip(hits, parts_KM, memory_KMD, strict=True)
    )
