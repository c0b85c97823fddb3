"""What a run of `compress` counts of documents and passages, and says of its progress.

Knows no models and no files.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field

from clara_cli.corpus.manifest import COUNTS
from clara_cli.records import Document, Passage, Progress, Report

SHOW_SECONDS = 1.0
UNKNOWN_SIZE = "the input is a pipe of unknown size: no percentage and no time remaining are shown"


@dataclass
class CompressionProgress:
    """Counts of a run, and what is said of it while it goes. `each` is the bytes that a passage's
    memory takes."""

    report: Report
    each: int
    documents: int = 0
    passages: int = 0
    empty: int = 0
    skipped: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    text_tokens: int = 0
    computed: int = 0
    tokens: int = 0
    stored: int = 0
    bytes: int = 0
    read: float | None = None  # the share of the input behind the shards that are stored
    shard_read: float | None = None  # the same with the shard that is being computed
    shard_size: int = 0  # passages of that shard
    shard_computed: int = 0
    layers_computed: float = 0.0  # passages' worth of the batch that is being computed
    began: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def bad(self, message: str) -> None:
        """A record was left out."""
        self.skipped += 1
        self.report.warn(f"skipped {message}")

    def document(self, document: Document) -> None:
        """A document was read."""
        self.documents += 1
        self.empty += not document.text.strip()
        fields = [document.id, document.title, document.text, document.metadata]
        self.digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")

    def passage(self, passage: Passage, limit: int) -> None:
        """A passage was cut."""
        self.passages += 1
        self.text_tokens += min(passage.tokens, limit)
        self.truncated += passage.tokens > limit

    def begin(self, read: float | None) -> None:
        """The work starts; `read` is the share of the input read so far, None for an unknown."""
        self.read = self.shard_read = None if read is None else 0.0
        if read is None:
            self.report.note(UNKNOWN_SIZE)
        self.say(0)

    def cut(self, read: float | None) -> None:
        """Passages are cut and counted, in a dry run, up to this share of the input."""
        if self._is_due():
            self.shown = time.monotonic()
            pace = {"passages/s": f"{self.passages / max(self.shown - self.began, 1e-9):,.1f}"}
            self.report.progress(Progress("read", self.passages, None, "passages", pace, read))

    def measured(self, passages: float, total: int) -> None:
        """So many of the passages by which a dry run measures its pace are computed."""
        if self._is_due():
            self.shown = time.monotonic()
            share = passages / total
            self.report.progress(Progress("time", int(passages), total, "passages", share=share))

    def begin_shard(self, passages: int, read: float | None) -> None:
        """A shard is about to be computed; `read` is the share of the input it ends at."""
        self.shard_read, self.shard_size, self.shard_computed = read, passages, 0

    def layer(self, passages: float) -> None:
        """A layer of a batch is computed: so many passages' worth of it."""
        self.layers_computed = passages
        if self._is_due():
            self.say(min(self.computed, self.passages))

    def batch(self, passages: int, tokens: int) -> None:
        """Some passages of a shard are computed."""
        self.computed += passages
        self.shard_computed += passages
        self.tokens += tokens
        self.layers_computed = 0.0
        if self._is_due():
            self.say(min(self.computed, self.passages))

    def shard(self, passages: int, read: float | None) -> None:
        """A shard is stored, by this process or another."""
        self.stored += passages
        self.read = self.shard_read = read
        self.say(self.stored)

    def _is_due(self) -> bool:
        return time.monotonic() - self.shown >= SHOW_SECONDS

    def say(self, passages: int) -> None:
        """Show how far the work is."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.began, 1e-9)
        figures = {"MB": f"{passages * self.each / 1e6:,.1f}"}
        if self.computed:
            paces = {"passages/s": f"{self.computed / seconds:,.1f}"}
            figures = paces | {"tokens/s": f"{self.tokens / seconds:,.0f}"} | figures
        done = max(self.stored, passages)
        self.report.progress(Progress("compress", done, None, "passages", figures, self.share()))

    def share(self) -> float | None:
        """The part of the input whose passages are computed; None where its size is not known."""
        if self.shard_read is None:
            return None
        before = self.read or 0.0
        passages = self.shard_computed + self.layers_computed
        computed = passages / self.shard_size if self.shard_size else 1.0
        return before + (self.shard_read - before) * min(1.0, computed)

    def counts(self) -> dict[str, int]:
        """As the manifest keeps them."""
        return {name: getattr(self, name) for name in COUNTS}
