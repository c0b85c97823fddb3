"""Memory of passages for measuring: computed here as `clara compress` would, or read from a corpus.

Tensor letters: N passages, M memory tokens, D hidden. Rows are those of `pools.Piece`. A passage's
memory depends on its row alone, not on who asked first: batches are fixed runs of rows.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from clara_cli.core.model import ClaraModel
from clara_cli.corpus.quantize import pack, passage_bytes, unpack
from clara_cli.corpus.store import Corpus
from clara_cli.records import NullReport, Progress, Report

SILENT = NullReport()


class Memories(Protocol):
    """Memory by row, float32 on the CPU; `dtype` is the format it was stored in."""

    dtype: str

    def rows(self, rows: Sequence[int], memory_tokens: int) -> Tensor:
        """memory_NMD of these rows."""

    def chunks(self, memory_tokens: int) -> Iterator[tuple[int, Tensor]]:
        """All memory in order, as (first row, memory_NMD)."""

    def seconds(self, rows: Sequence[int], memory_tokens: int) -> float:
        """What compressing these passages took, 0 where it was done before."""

    def bytes_per_passage(self, memory_tokens: int) -> int:
        """Bytes of one passage's memory as stored."""


class ComputedMemories:
    """Compressed when first asked for, kept as it is stored in the format `dtype`. `batch` rows at
    a time; `keep` batches per ratio stay (None: all)."""

    def __init__(
        self,
        model: ClaraModel,
        texts: Sequence[str],
        dtype: str,
        batch: int = 32,
        keep: int | None = None,
        report: Report = SILENT,
    ) -> None:
        self._model, self._texts, self.dtype = model, texts, dtype
        self._batch, self._keep, self._report = batch, keep, report
        self._kept: dict[int, OrderedDict[int, tuple[dict[str, Tensor], float]]] = {}

    def rows(self, rows: Sequence[int], memory_tokens: int) -> Tensor:
        """memory_NMD of these rows."""
        if not rows:
            return torch.empty(0, memory_tokens, self._model.memory_MD.shape[1])
        places = [
            (self._made(row // self._batch, memory_tokens)[0], row % self._batch) for row in rows
        ]
        names = places[0][0]
        return self._read(
            {name: torch.stack([stored[name][place] for stored, place in places]) for name in names}
        )

    def chunks(self, memory_tokens: int) -> Iterator[tuple[int, Tensor]]:
        """All memory in order."""
        kept, count = self._kept.setdefault(memory_tokens, OrderedDict()), len(self._texts)
        for first in range(0, count, self._batch):
            waits = first // self._batch not in kept
            if waits:
                self._report.progress(Progress("compress", first, count, "passages"))
            yield first, self._read(self._made(first // self._batch, memory_tokens)[0])
            if waits and first + self._batch >= count:
                self._report.progress(Progress("compress", count, count, "passages"))

    def seconds(self, rows: Sequence[int], memory_tokens: int) -> float:
        """What compressing these passages took: each one's share of its batch."""
        return sum(self._made(row // self._batch, memory_tokens)[1] for row in rows)

    def bytes_per_passage(self, memory_tokens: int) -> int:
        """Bytes of one passage's memory."""
        return passage_bytes(self.dtype, memory_tokens, self._model.hidden)

    def _read(self, stored: dict[str, Tensor]) -> Tensor:
        """memory_NMD of what is stored."""
        return unpack(stored["memory"], stored.get("scales"), self.dtype, self._model.hidden)

    def _made(self, number: int, memory_tokens: int) -> tuple[dict[str, Tensor], float]:
        """A batch's memory as it is stored, and the seconds a passage of it took."""
        kept = self._kept.setdefault(memory_tokens, OrderedDict())
        if number not in kept:
            kept[number] = self._compress(number, memory_tokens)
            if self._keep is not None and len(kept) > self._keep:
                kept.popitem(last=False)
        kept.move_to_end(number)
        return kept[number]

    def _compress(self, number: int, memory_tokens: int) -> tuple[dict[str, Tensor], float]:
        texts = self._texts[number * self._batch : (number + 1) * self._batch]
        began = time.monotonic()
        rows = [self._model.prompter.passage(text) for text in texts]
        with torch.inference_mode():
            memory_NMD = self._model.encode(rows, "compressor", memory_tokens).memory_BMD
        return pack(memory_NMD, self.dtype), (time.monotonic() - began) / len(texts)


class StoredMemories:
    """The memory of a compressed corpus; a smaller memory is had of the stored one."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self.dtype = corpus, corpus.manifest.identity.dtype

    def rows(self, rows: Sequence[int], memory_tokens: int) -> Tensor:
        """memory_NMD of these rows."""
        return self._corpus.memory(rows, memory_tokens)

    def chunks(self, memory_tokens: int) -> Iterator[tuple[int, Tensor]]:
        """All memory in order."""
        yield from self._corpus.memory_chunks(memory_tokens=memory_tokens)

    def seconds(self, rows: Sequence[int], memory_tokens: int) -> float:
        """Nothing: the corpus was compressed before."""
        return 0.0

    def bytes_per_passage(self, memory_tokens: int) -> int:
        """Bytes of one passage's memory."""
        identity = self._corpus.manifest.identity
        return passage_bytes(identity.dtype, memory_tokens, identity.hidden)
