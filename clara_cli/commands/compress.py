"""`clara compress`: documents in, a corpus of memory tokens out, shard by shard, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.config import CompressConfig
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.core.model import ClaraModel
from clara_cli.corpus.chunk import model_text, split_document
from clara_cli.corpus.documents import read_documents
from clara_cli.corpus.manifest import DTYPE_BYTES, Identity
from clara_cli.corpus.writer import CorpusWriter, open_writer
from clara_cli.errors import ArtefactError, Interrupted, UsageError
from clara_cli.records import CompressResult, Document, Passage, Progress, Report

STORE = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def run(config: CompressConfig, report: Report) -> CompressResult:
    """Compress until every document is stored; resumes an unfinished corpus.

    Raises:
        Interrupted: on Ctrl-C; finished shards are kept.
        ArtefactError: where `out` holds a corpus of other documents or settings.
    """
    started = time.monotonic()
    out = config.out or default_out(config.inputs)
    model = config.model or os.environ.get("CLARA_MODEL") or "nano"
    loaded = load(model, config.backbone, config.device, config.dtype, ratio=config.ratio)
    if "compressor" not in loaded.model.roles:
        message = f"{loaded.path}: no compressor in this checkpoint"
        raise ArtefactError(message, "use another --model")
    slots = loaded.info.slots(config.ratio)
    identity = corpus_identity(config, loaded, slots)
    tally = Tally(report)
    passages = split_all(config, loaded, tally)
    if config.dry_run:
        for _ in passages:
            pass
        return tally.result(out, identity, stored_bytes(identity, tally.passages), started)
    loaded.model.merge("compressor")
    command = "clara compress " + " ".join(config.inputs)
    try:
        with open_writer(out, identity, command) as writer:
            shards = in_shards(passages, config.shard_size)
            for number, shard in enumerate(shards):
                if not writer.finished(number, shard):
                    write_shard(writer, number, shard, loaded.model, slots, config, tally)
                tally.show(len(shard))
            manifest = writer.finish(tally.counts(), tally.digest.hexdigest())
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the finished shards are kept in {out}",
            "run the same command again: it goes on after the last one",
        ) from None
    return tally.result(out, identity, manifest.bytes, started)


def default_out(inputs: tuple[str, ...]) -> Path:
    """The corpus beside the current directory, named after the first input."""
    name = Path(inputs[0]).name.split(".")[0]
    if inputs[0] == "-" or not name:
        message = f"--out is needed for input {inputs[0]!r}"
        raise UsageError(message, "name the corpus: --out NAME.clara")
    return Path(f"{name}.clara")


def corpus_identity(config: CompressConfig, loaded: Loaded, slots: int) -> Identity:
    """Everything that decides the corpus's bytes besides the documents."""
    table = loaded.model.causal_lm.get_input_embeddings().weight
    compute = STORE[table.dtype]
    named = compute if config.dtype != "auto" else "bf16"
    checkpoint = {
        "fingerprint": loaded.info.fingerprint,
        "model": loaded.name,
        "backbone": loaded.info.backbone,
        "stage": loaded.info.stage,
        "licence": loaded.info.licence,
    }
    options = {
        "split": config.split,
        "title": config.title,
        "shard_size": config.shard_size,
        "batch_tokens": config.batch_tokens,
        "compute_dtype": compute,
        "max_passage_tokens": loaded.info.max_passage_tokens,
    }
    return Identity(
        checkpoint=checkpoint,
        memory_tokens=slots,
        hidden=table.shape[1],
        ratio=config.ratio or loaded.info.ratio,
        dtype=named if config.store_dtype == "auto" else config.store_dtype,
        text=config.text,
        options=options,
    )


def stored_bytes(identity: Identity, passages: int) -> int:
    """Bytes of memory that many passages take."""
    return passages * identity.memory_tokens * identity.hidden * DTYPE_BYTES[identity.dtype]


@dataclass
class Tally:
    """Counts of a run, and what is said of it while it goes."""

    report: Report
    documents: int = 0
    passages: int = 0
    empty: int = 0
    skipped: int = 0
    truncated: int = 0
    text_tokens: int = 0
    computed: int = 0
    shown: int = 0
    began: float = field(default_factory=time.monotonic)
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

    def show(self, passages: int) -> None:
        """Some passages are stored."""
        self.shown += passages
        seconds = max(time.monotonic() - self.began, 1e-9)
        figures = {"passages/s": f"{self.computed / seconds:,.1f}"}
        self.report.progress(Progress("compress", self.shown, None, "passages", figures))

    def counts(self) -> dict[str, int]:
        """As the manifest keeps them."""
        names = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
        return {name: getattr(self, name) for name in names}

    def result(self, out: Path, identity: Identity, size: int, started: float) -> CompressResult:
        """The command's record."""
        seconds = time.monotonic() - started
        stored = max(1, self.passages * identity.memory_tokens)
        return CompressResult(
            corpus=str(out),
            documents=self.documents,
            passages=self.passages,
            empty=self.empty,
            skipped=self.skipped,
            truncated=self.truncated,
            memory_tokens=identity.memory_tokens,
            ratio=identity.ratio,
            effective_ratio=round(self.text_tokens / stored, 3),
            bytes=size,
            seconds=round(seconds, 3),
            passages_per_second=round(self.computed / max(time.monotonic() - self.began, 1e-9), 2),
        )


def split_all(config: CompressConfig, loaded: Loaded, tally: Tally) -> Iterator[Passage]:
    """Every passage of every document, in the order of the input."""
    limit, offsets = loaded.info.max_passage_tokens, loaded.model.prompter.offsets
    for document in read_documents(config.inputs, config.skip_bad, tally.bad):
        tally.document(document)
        for passage in split_document(document, limit, offsets, config.split, config.title):
            tally.passage(passage, limit)
            yield passage


def in_shards(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    """Runs of consecutive passages, decided by the input alone."""
    shard: list[Passage] = []
    for passage in passages:
        shard.append(passage)
        if len(shard) == size:
            yield shard
            shard = []
    if shard:
        yield shard


def write_shard(
    writer: CorpusWriter,
    number: int,
    shard: list[Passage],
    model: ClaraModel,
    slots: int,
    config: CompressConfig,
    tally: Tally,
) -> None:
    """Compute and store one shard."""
    titles = [passage.title if config.title else "" for passage in shard]
    texts = [model_text(t, passage.text or "") for t, passage in zip(titles, shard, strict=True)]
    rows = [model.prompter.passage(text) for text in texts]
    memory_NMD = encode_rows(model, rows, slots, config.batch_tokens)
    writer.write(number, shard, memory_NMD)
    tally.computed += len(shard)


@torch.inference_mode()
def encode_rows(model: ClaraModel, rows: list[list[int]], slots: int, budget: int) -> Tensor:
    """memory (N, M, D) of token rows, in their order; batched by length, `budget` positions
    each."""
    table = model.causal_lm.get_input_embeddings().weight
    memory_NMD = torch.empty(len(rows), slots, table.shape[1], dtype=table.dtype)
    for batch in length_batches([len(row) + slots for row in rows], budget):
        encoded = model.encode([rows[i] for i in batch], "compressor", slots)
        memory_NMD[batch] = encoded.memory_BMD.cpu()
    return memory_NMD


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
