"""Passages of a compressed corpus in training: their memory as the corpus keeps it, since the
compressor is frozen, and for retrieval from labels pools of gold passages among many others of it.

B batch, M memory tokens, D hidden.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clara_cli.answering.engine import refuse_mismatch
from clara_cli.config import TrainConfig
from clara_cli.core.batch import Batch
from clara_cli.core.checkpoint import Loaded
from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import Question


def check_pool_settings(config: TrainConfig, pools: Sequence[str]) -> None:
    """Settings of one way to pools mean nothing in another; `pools` are those of the stage.

    Raises:
        UsageError: naming them.
    """
    if config.pool not in pools:
        stage = {"retrieved": "e2e", "corpus": "retrieval"}[config.pool]
        message = f"--pool {config.pool} with --stage {config.stage}"
        raise UsageError(message, f"--pool {config.pool} goes with --stage {stage}")
    unused: dict[str, Any] = {}
    if config.pool == "labelled":
        unused["--corpus"] = config.corpus
    if config.pool != "retrieved":
        unused |= {"pool_by": config.pool_by, "refresh_every": config.refresh_every}
    for name, value in unused.items():
        if value is not None:
            others = [pool for pool in pools if pool != config.pool and pool != "labelled"]
            add = "".join(f"add --pool {pool}, or " for pool in others)
            message = f"{name} is {value}, but the pools are {config.pool}"
            raise UsageError(message, f"{add}omit it")
    if config.pool == "labelled":
        return
    if config.corpus is None:
        message = f"--pool {config.pool} without --corpus"
        raise UsageError(message, "give --corpus a folder made by clara compress")
    if config.train_memory:
        raise UsageError(
            f"train_memory with --pool {config.pool}",
            "the corpus's memory would no longer be the checkpoint's",
        )
    if config.refresh_every is not None and config.pool_by != "query":
        raise UsageError(
            f"refresh_every is {config.refresh_every}, but BM25's pools never change",
            "add --set pool_by=query, or omit refresh_every",
        )


class CorpusMemory:
    """A corpus whose memory stands in for the compressor's."""

    def __init__(self, loaded: Loaded, corpus: Corpus) -> None:
        refuse_mismatch(loaded, corpus, "--init")
        self.corpus, self.model = corpus, loaded.model

    @property
    def memory_tokens(self) -> int:
        """Memory tokens stored per passage."""
        return self.corpus.manifest.identity.memory_tokens

    @property
    def ratio(self) -> int:
        """The ratio the corpus was compressed at."""
        return self.corpus.manifest.identity.ratio

    def check_memory_tokens(self, memory_tokens: Sequence[int]) -> None:
        """A ratio below the corpus's needs memory tokens it does not have.

        Raises:
            UsageError: naming both.
        """
        if max(memory_tokens) > self.memory_tokens:
            raise UsageError(
                f"ratios ask for {max(memory_tokens)} memory tokens, "
                f"the corpus keeps {self.memory_tokens}",
                f"train at ratio {self.ratio} or more, or compress again at a lower one",
            )

    def facts(self) -> dict[str, Any]:
        """Which corpus it is."""
        return {"corpus": self.corpus.folder.name, "corpus_sha256": self.corpus.manifest.sha256}

    def memory(self, batch: Batch) -> Tensor:
        """memory_BMD of a batch's rows, as the corpus keeps it."""
        memory_BMD = self.corpus.memory(batch.stored, batch.memory_tokens)
        return memory_BMD.to(self.model.device)


class CorpusPools(CorpusMemory):
    """Gold passages by their rows of a corpus, among others drawn from it: `pool_size` a step, the
    same for all its questions.

    Raises:
        ArtefactError: where the corpus kept no text to know passages by.
    """

    def __init__(self, config: TrainConfig, loaded: Loaded) -> None:
        assert config.corpus is not None
        super().__init__(loaded, Corpus.open(config.corpus))
        if not self.corpus.manifest.identity.text:
            message = f"{self.corpus.name}: no text was kept, so its passages are not known"
            raise ArtefactError(message, "compress again without --no-text")
        self._seed, self._size = config.seed, min(config.pool_size, len(self.corpus))
        self._rows: dict[str, int] = {}
        for row, passage in enumerate(self.corpus.passages()):
            self._rows.setdefault(model_text(passage.title, passage.text or ""), row)
        self._others: tuple[int, list[int]] | None = None

    def facts(self) -> dict[str, Any]:
        """Where the pools come from."""
        return {"pool": "corpus", **super().facts()}

    def description(self) -> str:
        """The same, as a sentence."""
        name = self.corpus.folder.name
        return f"pools: gold passages among {self._size:,} of {name}, drawn at each step"

    def gold_rows(self, question: Question) -> list[int]:
        """The rows of a question's gold passages, of those that the corpus has as they are."""
        golds = [passage for passage in question.pool if passage.gold]
        texts = [model_text(passage.title, passage.text) for passage in golds]
        return list(dict.fromkeys(self._rows[text] for text in texts if text in self._rows))

    def pool(self, step: int, question: Question) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(rows, places of the gold ones among them) of a question at a step."""
        if self._others is None or self._others[0] != step:
            rng = random.Random(f"{self._seed} others {step}")
            self._others = step, rng.sample(range(len(self.corpus)), self._size)
        golds = self.gold_rows(question)
        others = [row for row in self._others[1] if row not in golds]
        return (*golds, *others), tuple(range(len(golds)))
