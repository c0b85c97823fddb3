"""Which key, how many candidates, graph or scan: decided by what is measured on a corpus.

Tensor letters: B queries, N passages, K rows the exact scan ranks best, M memory tokens, D hidden.
One pass over the memory gives, for every key, where the exact scan's best rows stand in that key's
own ranking; the recall for any number of candidates follows from that. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clara_cli.search.evaluated_queries import EvaluatedQueries, StoredMemory, spread
from clara_cli.search.keys import make_key, make_state, sample_size

GOOD_RECALL = 0.98  # of the exact scan's top k, within the candidates
MOST_CANDIDATES = 0.05  # of the corpus
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # numbers of candidates that are tried
_EQUAL = 1e-6  # cosines of two shapes of one product differ by less
_SCAN_AT_LEAST = 2**23  # numbers a scan reads in less time than a graph takes to be asked


@dataclass(frozen=True, slots=True)
class Key:
    """A rule with its frozen state. `width` is F."""

    rule: str
    width: int
    state: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """As tables and messages have it: pca-128."""
        return f"{self.rule}-{self.width}"

    def of(self, memory_BMD: Tensor) -> Tensor:
        """Keys [B, F], see `make_key`."""
        return make_key(self.rule, memory_BMD, self.state)


def keys_to_try(sample_NMD: Tensor, seed: int) -> list[Key]:
    """The keys an index chooses from, fitted on a sample of the corpus where they are fitted."""
    widest = make_state("pca", sample_NMD, 256, seed)["projection_PF"]
    states: list[tuple[str, Mapping[str, Tensor]]] = [("mean", {}), ("means", {})]
    states.append(("projection", make_state("projection", sample_NMD, 512, seed)))
    for width in (64, 128, 256):
        if width == 64 or width <= widest.shape[1]:
            states.append(("pca", {"projection_PF": widest[:, :width].contiguous()}))
    return [
        Key(rule, make_key(rule, sample_NMD[:1], state).shape[1], state) for rule, state in states
    ]


def ranks_of_best(
    keys: Sequence[Key],
    queries_BMD: Tensor,
    best_BK: Tensor,
    memory: Callable[[Sequence[int]], Tensor],
    chunks: Iterable[tuple[int, Tensor]],
) -> list[Tensor]:
    """For each key, the rank (from 0) of each best row among all rows by the key's cosine: [B, K].

    `best_BK` are the exact scan's rows, `memory` gives rows' memory, `chunks` all of it in order.
    """
    queries = [key.of(queries_BMD) for key in keys]
    limits = []
    for key, query_BF in zip(keys, queries, strict=True):
        best_BKF = torch.stack([key.of(memory(rows)) for rows in best_BK.tolist()])
        limits.append((best_BKF @ query_BF.unsqueeze(-1)).squeeze(-1) + _EQUAL)
    ranks = [torch.zeros_like(best_BK) for _ in keys]
    for _, memory_NMD in chunks:
        for key, query_BF, limit_BK, rank_BK in zip(keys, queries, limits, ranks, strict=True):
            scores_BN = query_BF @ key.of(memory_NMD).T
            rank_BK += (scores_BN[:, None] > limit_BK[..., None]).sum(-1)
    return ranks


def recall(rank_BK: Tensor, candidates: int) -> float:
    """Mean share of the best rows that are among so many candidates."""
    return (rank_BK < candidates).float().mean().item()


@dataclass(frozen=True, slots=True)
class MeasuredKey:
    """A key with a number of candidates, and the recall measured for it."""

    key: Key
    candidates: int
    recall: float


def measure_keys(
    stored: StoredMemory, queries: EvaluatedQueries, seed: int
) -> tuple[list[Key], list[Tensor]]:
    """Every key an index chooses from, and where the exact scan's best rows stand in its ranking
    ([B, K]; empty without questions)."""
    sample_NMD = spread(stored, sample_size(*queries.queries_BMD.shape[1:]))
    keys = keys_to_try(sample_NMD, seed)
    if not len(queries):
        return keys, []
    chunks = stored.memory_chunks()
    return keys, ranks_of_best(keys, queries.queries_BMD, queries.best_BK, stored.memory, chunks)


def choose_key(
    stored: StoredMemory,
    queries: EvaluatedQueries,
    seed: int,
    ef: int,
    candidates: int | None,
    candidates_per_k: int,
) -> MeasuredKey:
    """The key and the number of candidates: the cheapest that finds what the exact scan finds, else
    the one that finds most. Without questions, or with `candidates` given, their number is fixed;
    `ef` is how many keys a graph meets at least."""
    keys, ranks = measure_keys(stored, queries, seed)
    fixed = max(queries.k, candidates or candidates_per_k * queries.k)
    if not len(queries):
        return MeasuredKey(next(key for key in keys if key.rule == "pca"), fixed, 0.0)
    if candidates is None:
        numbers = queries.queries_BMD[0].numel()
        best = cheapest(keys, ranks, len(stored), numbers, ef)
        if best is not None:
            return best
    measured = [MeasuredKey(k, fixed, recall(r, fixed)) for k, r in zip(keys, ranks, strict=True)]
    return max(measured, key=lambda one: (one.recall, -one.key.width))


def cheapest(
    keys: Sequence[Key], ranks: Sequence[Tensor], passages: int, numbers: int, ef: int
) -> MeasuredKey | None:
    """The choice that reads the fewest numbers of those with `GOOD_RECALL` at no more than
    `MOST_CANDIDATES` of the corpus; None where there is none. `numbers` is M x D."""
    most = int(passages * MOST_CANDIDATES)
    pairs = [
        MeasuredKey(key, count, found)
        for key, rank_BK in zip(keys, ranks, strict=True)
        for count in COUNTS
        if rank_BK.shape[1] <= count <= most and (found := recall(rank_BK, count)) >= GOOD_RECALL
    ]
    return min(pairs, key=lambda p: cost(p.key.width, p.candidates, numbers, ef), default=None)


def cost(width: int, candidates: int, numbers: int, ef: int) -> int:
    """Numbers read for one question: keys met on the way through the graph, then candidates."""
    return max(ef, candidates) * 32 * width + candidates * numbers


def widen(
    choice: MeasuredKey, passages: int, measure: Callable[[int], float | None]
) -> MeasuredKey:
    """The choice with as many candidates as the graph itself, which is approximate, needs to find
    what its key does. It stays where the key does not find enough, or no number up to the limit
    helps. `measure` is the graph's recall with so many candidates."""
    if choice.recall < GOOD_RECALL:
        return choice
    most = int(passages * MOST_CANDIDATES)
    for count in (choice.candidates, *(c for c in COUNTS if choice.candidates < c <= most)):
        recall = measure(count)
        if recall is not None and recall >= GOOD_RECALL:
            return replace(choice, candidates=count)
    return choice


def scan_is_cheaper(choice: MeasuredKey, passages: int, numbers: int, ef: int) -> bool:
    """Whether reading all memory costs less than the graph and its candidates."""
    graph = _SCAN_AT_LEAST + cost(choice.key.width, choice.candidates, numbers, ef)
    return passages * numbers <= graph


def choose_engine(
    choice: MeasuredKey, graph_recall: float | None, passages: int, numbers: int, ef: int
) -> str:
    """The engine questions will use: the graph where it was measured to find what the exact scan
    finds, from at most 5 % of the corpus and by reading less; else the exact scan."""
    few = choice.candidates <= MOST_CANDIDATES * passages
    good = graph_recall is not None and graph_recall >= GOOD_RECALL
    cheap = not scan_is_cheaper(choice, passages, numbers, ef)
    return "hnsw" if few and good and cheap else "exact"


def describe_choice(
    engine: str, choice: MeasuredKey, graph_recall: float | None, k: int, passages: int
) -> str:
    """The decision, in one line."""
    figure = "not measured" if graph_recall is None else f"{graph_recall:.3f}"
    candidates = min(choice.candidates, passages)
    graph = f"key {choice.key.name}, {candidates:,} of {passages:,} passages as candidates"
    use = "an exact scan" if engine == "exact" else "the graph"
    return f"{engine}: questions will use {use} (graph: {graph}, recall@{k} {figure})"
