"""Questions that an index is measured with: what the exact scan finds for each, and how much of
that a graph proposes.

Tensor letters: B queries, N passages, K rows the exact scan ranks best, M memory tokens, D hidden,
F key width. Knows no checkpoint: reading a question is the caller's function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clara_cli.errors import UsageError
from clara_cli.search.exact import scan
from clara_cli.search.graph_index import GraphIndex
from clara_cli.search.keys import make_key


class StoredMemory(Protocol):
    """Passages' memory by row, as a corpus has it."""

    def __len__(self) -> int:
        """How many passages there are."""

    def memory(self, rows: Sequence[int]) -> Tensor:
        """memory_NMD of some rows."""

    def memory_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All of it in order: (first row, memory_NMD)."""


def spread(stored: StoredMemory, most: int) -> Tensor:
    """The memory of at most so many passages, from all over the corpus."""
    step = max(1, -(-len(stored) // most))
    return stored.memory(range(0, len(stored), step))


@dataclass(frozen=True)
class EvaluatedQueries:
    """Questions in memory space, and the rows the exact scan ranks best for each."""

    queries_BMD: Tensor
    best_BK: Tensor
    k: int

    @classmethod
    def read(
        cls,
        questions: Sequence[str],
        encode: Callable[[str], Tensor],
        stored: StoredMemory,
        shape: tuple[int, int],
        top_k: int,
    ) -> EvaluatedQueries:
        """Read the questions by `encode`, which gives a query_MD of `shape` or raises UsageError
        for one that is too long to be asked: those are left out."""
        queries = []
        for question in questions:
            with contextlib.suppress(UsageError):  # a first sentence longer than a question may be
                queries.append(encode(question))
        k = min(top_k, len(stored))
        if not queries:
            return cls(torch.empty(0, *shape), torch.empty(0, k, dtype=torch.long), k)
        queries_BMD = torch.stack(queries)
        return cls(queries_BMD, scan(queries_BMD, stored.memory_chunks(), k)[1], k)

    def __len__(self) -> int:
        return len(self.queries_BMD)

    def recall(self, index: GraphIndex, candidates: int) -> float | None:
        """Mean share of the exact scan's best rows that are among the graph's candidates, which
        exact rescoring then puts in the exact order; None without questions."""
        if not len(self):
            return None
        keys_BF = make_key(index.rule, self.queries_BMD, index.state)
        proposed_BN = index.search(keys_BF, candidates)[1]
        pairs = zip(self.best_BK, proposed_BN, strict=True)
        shares = [torch.isin(best_K, rows_N).float().mean() for best_K, rows_N in pairs]
        return round(torch.stack(shares).mean().item(), 4)
