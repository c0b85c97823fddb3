"""`train --pool retrieved`: pools of a compressed corpus, found without any relevance label.

BM25's pools follow from the question alone. The query reasoner's follow from its weights at the
last refresh: they are kept in the run folder for the steps they serve, so that a run resumed
between two refreshes reads the same ones. The compressor is frozen, so the corpus's own memory is
what the generator is given: nothing is compressed while training.

Q questions, M memory tokens, D hidden.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.answering.retriever import Retriever
from clara_cli.config import TrainConfig
from clara_cli.core.checkpoint import Loaded
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import ArtefactError
from clara_cli.records import Progress, Question, Report
from clara_cli.storage.artefact import read_object
from clara_cli.storage.files import make_folder, write_atomic
from clara_cli.training.corpus_pools import CorpusMemory

REFRESH_EVERY = 100
QUERY_VALUES = 2**26  # numbers of questions' memory searched with at once


class RetrievedPools(CorpusMemory):
    """Rows of a corpus for every question of a run. `visits(step)` are the numbers of the
    questions a step reads."""

    def __init__(
        self,
        config: TrainConfig,
        loaded: Loaded,
        questions: Sequence[Question],
        visits: Callable[[int], Sequence[int]],
        steps: int,
        ranks: Ranks,
        report: Report,
    ) -> None:
        assert config.corpus is not None
        self.config, self.questions, self.visits = config, questions, visits
        self.steps, self.ranks, self.report = steps, ranks, report
        self.retriever = Retriever.open(config.corpus)
        super().__init__(loaded, self.retriever.corpus)
        self.by_query = config.pool_by == "query"
        self.every = config.refresh_every or REFRESH_EVERY
        self._first: int | None = None
        self._pools: dict[int, list[int]] = {}
        if not self.by_query:
            self.retriever.bm25  # noqa: B018  (a corpus without text is refused before the run)

    def facts(self) -> dict[str, Any]:
        """Where the pools come from."""
        facts: dict[str, Any] = {"pool": "retrieved", "pool_by": self.config.pool_by or "bm25"}
        if self.by_query:
            facts["refresh_every"] = self.every
        return {**facts, **super().facts()}

    def description(self) -> str:
        """The same, as a sentence."""
        name = self.corpus.folder.name
        by = f"the query reasoner every {self.every} steps" if self.by_query else "BM25"
        return f"pools: retrieved from {name} by {by}; no relevance label is read"

    def rows(self, step: int, number: int, rng: random.Random) -> list[int]:
        """The pool of a question at a step, best first; rows drawn at random make it up to
        `top_k` where too few share a word with the question."""
        if self.by_query:
            self._serve(step)
            rows = self._pools[number]
        else:
            question = self.questions[number].question
            rows = self.retriever.bm25.search(question, self.config.pool_size)[1]
        return self._filled(rows, rng)

    def _filled(self, rows: list[int], rng: random.Random) -> list[int]:
        wanted = min(self.config.top_k, len(self.corpus)) - len(rows)
        if wanted > 0:
            rest = sorted(set(range(len(self.corpus))) - set(rows))
            rows = [*rows, *rng.sample(rest, wanted)]
        return rows

    def _serve(self, step: int) -> None:
        """Have the pools of the refresh that `step` belongs to."""
        first = step - step % self.every
        if first == self._first:
            return
        out, name = self.config.out, f"pools/{first:08d}.json"
        self._pools = {} if step == first else self.ranks.lead(lambda: read_pools(out / name))
        until = min(first + self.every, self.steps)
        visited = {number for later in range(step, until) for number in self.visits(later)}
        missing = sorted(visited - self._pools.keys())  # all, or those of steps added since
        if missing:
            self._pools |= self._search(missing)
            if self.ranks.first:
                make_folder(out, "pools")
                kept = {str(number): rows for number, rows in sorted(self._pools.items())}
                write_atomic(out, name, json.dumps(kept).encode())
        self._first = first

    def _search(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """Pools of questions by the query reasoner as it is now."""
        width = self.memory_tokens * self.model.memory_MD.shape[1]
        together = max(1, QUERY_VALUES // width)
        pools: dict[int, list[int]] = {}
        self.report.progress(Progress("pools", 0, len(numbers), "questions"))
        for start in range(0, len(numbers), together):
            part = numbers[start : start + together]
            rows = self.retriever.nearest(self._queries(part), self.config.pool_size)
            pools |= dict(zip(part, rows, strict=True))
            self.report.progress(Progress("pools", len(pools), len(numbers), "questions"))
        return pools

    def current_rows(self, questions: Sequence[str]) -> list[list[int]]:
        """The pools of questions beside those learned from, as retrieval is now."""
        size, seed = self.config.pool_size, self.config.seed
        if self.by_query:
            ranked = self.retriever.nearest(self._encoded(questions), size)
        else:
            ranked = [self.retriever.bm25.search(question, size)[1] for question in questions]
        pairs = zip(questions, ranked, strict=True)
        return [
            self._filled(rows, random.Random(f"{seed} pool {question}")) for question, rows in pairs
        ]

    def _queries(self, numbers: Sequence[int]) -> Tensor:
        return self._encoded([self.questions[number].question for number in numbers])

    def _encoded(self, questions: Sequence[str], together: int = 64) -> Tensor:
        """queries_QMD, as asking would encode them: no gradient, no dropout."""
        rows = [self.model.prompter.query(question) for question in questions]
        parts = [
            self.model.encode_frozen(
                rows[i : i + together], "query_reasoner", self.memory_tokens
            ).memory_BMD
            for i in range(0, len(rows), together)
        ]
        return torch.cat(parts)


def read_pools(file: Path) -> dict[int, list[int]]:
    """Pools kept at a refresh.

    Raises:
        ArtefactError: where they are missing or damaged; no later weights could find them again.
    """
    hint = "start the run again with another --out"
    fields = read_object(file, hint)
    if fields is None:
        raise ArtefactError(f"{file}: the pools of this part of the run are missing", hint)
    if not all(number.isdecimal() for number in fields.values):
        raise ArtefactError(f"{file}: its keys are not numbers of questions", hint)
    return {int(number): list(fields.list_of(number, int)) for number in fields.values}
