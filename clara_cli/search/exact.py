"""The score that ranks: cosine of flattened memory, by scanning all of it or on given candidates.

Tensor letters: B queries, N candidates, K kept, M memory tokens, D hidden.
A row's score depends on that row and the query alone, not on its place in a batch: the sum is
done in float64 and rounded to float32, so equal memories tie, and ties go to the lower row.
Knows nothing of files or indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from clara_cli.errors import ClaraError

# More than a float32 product of unit vectors is wrong by: plain on a CPU, perhaps TF32 elsewhere.
_SLACK_CPU, _SLACK_OTHER = 2e-5, 2e-3
_LEAST_NORM = 1e-12  # from here to its inverse, float32 squares neither vanish nor overflow


def rescore(query_MD: Tensor, memory_NMD: Tensor) -> Tensor:
    """Cosine of the flattened query with each flattened memory: [N], float32, in [-1, 1].

    A zero vector scores 0. Raises ClaraError where the query or a memory is not finite.
    """
    query_MD = _with_float64(query_MD)
    _refuse_nonfinite(query_MD, "the query's memory")
    query_P = _unit(query_MD.reshape(1, -1).double())[0]
    return _cosines(query_P, memory_NMD.to(query_P.device))


def _cosines(query_P: Tensor, memory_NMD: Tensor) -> Tensor:
    """Cosines of a unit query in float64 with each memory, as `rescore` gives them."""
    memory_NP = memory_NMD.flatten(1).double()
    dots_N: Tensor = (memory_NP * query_P).sum(-1)
    norms_N = torch.linalg.vector_norm(memory_NP, dim=-1)
    _refuse_nonfinite(norms_N, "a candidate's memory")  # a norm is as finite as all of a row
    least = torch.finfo(torch.double).tiny
    cosines_N: Tensor = (dots_N / norms_N.clamp_min(least)).clamp(-1, 1).float()
    return cosines_N


def scan(
    queries_BMD: Tensor,
    chunks: Iterable[tuple[int | Sequence[int], Tensor]],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k best rows of all memory for each query, best first, ties to the lower row.

    `queries_BMD` may be one query [M, D]; then the results have no batch dimension. `chunks`
    gives (first row, memory [N, M, D]), or (the N rows, memory) where only some are scanned.
    Returns scores [B, K] float32 and rows [B, K] int64, where K is k or the number of rows, if that
    is less. Raises ClaraError where a query or a memory is not finite.
    """
    single = queries_BMD.dim() == 2
    queries_BMD = _with_float64(queries_BMD[None] if single else queries_BMD)
    _refuse_nonfinite(queries_BMD, "a query's memory")
    exact_BP = _unit(queries_BMD.flatten(1).double())
    unit_BP = exact_BP.float()
    best = [_nothing() for _ in unit_BP]
    least_B = torch.full((len(best),), -torch.inf)  # what a row has to reach to be among the best
    for rows, memory_NMD in chunks:
        if not len(memory_NMD):
            continue
        listed = range(rows, rows + len(memory_NMD)) if isinstance(rows, int) else rows
        rows_N = torch.tensor(listed, dtype=torch.long)
        memory_NMD = memory_NMD.to(unit_BP.device)
        rough_NB = _rough(memory_NMD, unit_BP)
        slack = _SLACK_CPU if rough_NB.device.type == "cpu" else _SLACK_OTHER
        hopeful_B = rough_NB.amax(0).cpu() >= least_B - slack
        for number in hopeful_B.nonzero()[:, 0].tolist():
            near_N = _near(rough_NB[:, number], float(least_B[number]), k, slack)
            scores_N = _cosines(exact_BP[number], memory_NMD[near_N]).cpu()
            best[number] = _merge(best[number], (scores_N, rows_N[near_N.cpu()]), k)
            if len(best[number][0]) == k:
                least_B[number] = best[number][0][-1]
    scores_BK = torch.stack([scores for scores, _ in best])
    rows_BK = torch.stack([found for _, found in best])
    return (scores_BK[0], rows_BK[0]) if single else (scores_BK, rows_BK)


def _rough(memory_NMD: Tensor, unit_BP: Tensor) -> Tensor:
    """Cosines [N, B] by one float32 product, right to well within the slack."""
    memory_NP = memory_NMD.flatten(1).float()
    norms_N1 = torch.linalg.vector_norm(memory_NP, dim=-1, keepdim=True)
    if bool(((norms_N1 > _LEAST_NORM) & (norms_N1 < 1 / _LEAST_NORM)).all()):  # and so finite
        rough_NB: Tensor = (memory_NP @ unit_BP.T) / norms_N1
        return rough_NB
    _refuse_nonfinite(memory_NP, "a passage's memory")
    largest_N = memory_NP.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float).tiny)
    return _unit(memory_NP / largest_N) @ unit_BP.T


def _near(rough_N: Tensor, least: float, k: int, slack: float) -> Tensor:
    """Positions that may be among the k best of this chunk, and reach `least`."""
    kth = rough_N.topk(min(k, len(rough_N))).values[-1]
    return (rough_N >= max(float(kth), least) - slack).nonzero()[:, 0]


def _merge(
    found: tuple[Tensor, Tensor], more: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    scores, rows = (torch.cat(pair) for pair in zip(found, more, strict=True))
    by_row = torch.argsort(rows)
    order = by_row[torch.argsort(scores[by_row], descending=True, stable=True)][:k]
    return scores[order], rows[order]


def _nothing() -> tuple[Tensor, Tensor]:
    return torch.empty(0), torch.empty(0, dtype=torch.long)


def _unit(rows_NP: Tensor) -> Tensor:
    norms_N1: Tensor = torch.linalg.vector_norm(rows_NP, dim=-1, keepdim=True)
    return rows_NP / norms_N1.clamp_min(torch.finfo(rows_NP.dtype).tiny)


def _with_float64(queries: Tensor) -> Tensor:
    return queries.cpu() if queries.device.type == "mps" else queries  # Apple's GPUs have none


def _refuse_nonfinite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ClaraError(f"{what} has values that are not finite", "try --dtype float32")


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k0: float = 60) -> list[int]:
    """Rows of several rankings (best first), by the sum of 1 / (k0 + rank), rank from 1; ties to
    the lower row. A row a ranking leaves out gets nothing from it, a repeated one counts once."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(dict.fromkeys(ranking), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (k0 + rank)
    return sorted(scores, key=lambda row: (-scores[row], row))
