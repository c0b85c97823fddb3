"""Figures a training run prints of itself: answers about passages kept out of training.

Greedy, compared as token ids: exact match and F1 of bags of tokens, the answer's end not counted.
Not the product's metrics and not a dev set: they say how a run goes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from batches import Builder, Mixture
from network import MEMORY, SEPARATOR, Network
from torch import Tensor
from torch.nn import functional as F

LONGEST = 8  # tokens of an answer
AT_ONCE = 32  # questions answered together
SOURCES = ("squad", "world")


def f1(said: list[int], right: list[int]) -> float:
    """F1 of two bags of tokens."""
    same = sum((Counter(said) & Counter(right)).values())
    return 2 * same / (len(said) + len(right)) if same else 0.0


class Examiner:
    """Asks one question about each of `count` held-out passages of each source."""

    def __init__(
        self, arrays: dict[str, np.ndarray], pieces: dict, mixture: Mixture, count: int
    ) -> None:
        self.builder = Builder(arrays, pieces, mixture, seed=1, held=True)
        self.pieces, self.cases = pieces, {}
        rng = np.random.default_rng(1)
        for source in SOURCES:
            rows = self.builder.seeds.get(source, np.zeros(0, int))
            rows = [int(r) for r in rng.permutation(rows) if self.builder.asked(int(r), rng)]
            self.cases[source] = [(r, *self.builder.asked(r, rng)[0][:2]) for r in rows[:count]]

    @torch.no_grad()
    def scores(self, network: Network) -> dict[str, float]:
        """F1 by memory (64, 16 and 8 slots), by text and closed book; recall@1 of the search among
        the checked passages."""
        was_training = network.training
        network.eval()
        found = {}
        for source, cases in self.cases.items():
            for name, slots in (("m64", 64), ("m16", 16), ("m8", 8), ("text", 0), ("closed", -1)):
                parts = [cases[i : i + AT_ONCE] for i in range(0, len(cases), AT_ONCE)]
                said = [ids for part in parts for ids in self.answers(network, part, slots)]
                marks = [f1(a, list(case[2])) for a, case in zip(said, cases, strict=True)]
                if marks:
                    found[f"{source} {name}"] = round(float(np.mean(marks)), 3)
            if cases:
                found[f"{source} recall"] = self.recall(network, cases)
        network.train(was_training)
        return found

    def memories(self, network: Network, texts: list, slots: int) -> Tensor:
        ids, lengths = self.builder.to_compress(texts, slots)
        where = network.device
        rows, sizes = torch.from_numpy(ids).to(where), torch.from_numpy(lengths).to(where)
        return network.compress(rows, sizes, slots)[0]

    def answers(self, network: Network, cases: list, slots: int) -> list[list[int]]:
        """Greedy answers; slots 0: from text, -1: from nothing."""
        rows, memory_ND = [], None
        if slots > 0:
            texts = [self.builder.passage[row] for row, _, _ in cases]
            memory_ND = self.memories(network, texts, slots).flatten(0, 1)
        for row, asked, _ in cases:
            block = [MEMORY] * slots + [SEPARATOR] if slots > 0 else [*self.builder.passage[row]]
            opening = self.builder.opening([] if slots < 0 else [block])
            ids, _, _ = self.builder.conversation(opening, [(asked, [], [])])
            rows.append(ids[:-1])
        lengths = torch.tensor([len(row) for row in rows], device=network.device)
        ids_BT = torch.from_numpy(self.builder.padded([r + [0] * LONGEST for r in rows]))
        ids_BT = ids_BT.to(network.device)
        each = torch.arange(len(rows), device=network.device)
        for _ in range(LONGEST):
            hidden_BTD = network.hidden(network.embed(ids_BT, memory_ND))
            chosen_B = network.model.lm_head(hidden_BTD[each, lengths - 1]).argmax(-1)
            ids_BT[each, lengths] = chosen_B
            lengths = lengths + 1
        said = [ids_BT[i, len(row) : len(row) + LONGEST].tolist() for i, row in enumerate(rows)]
        end = self.pieces["eos"][0]
        return [ids[: ids.index(end)] if end in ids else ids for ids in said]

    def recall(self, network: Network, cases: list, slots: int = 16) -> float:
        """Share of questions whose passage is nearest by flattened cosine."""
        prefix = len(self.pieces["question"])
        texts = [self.builder.passage[row] for row, _, _ in cases]
        memory_BMD = self.memories(network, texts, slots)
        query_BMD = self.memories(network, [np.asarray(q[prefix:]) for _, q, _ in cases], slots)
        pair = [F.normalize(x.float().flatten(1), dim=-1) for x in (query_BMD, memory_BMD)]
        nearest_B = (pair[0] @ pair[1].T).argmax(-1).cpu()
        return round((nearest_B == torch.arange(len(cases))).float().mean().item(), 3)
