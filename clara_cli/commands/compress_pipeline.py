"""How a corpus is made and changed, in four phases:

    plan     options, checkpoint, identity: what the corpus is, before a document is read
    cut      documents into passages, passages into shards, those to be computed into token rows
    encode   memory of a shard: the compressor reads its token rows, or a corpus has it already
    store    shards written one by one; the manifest, which makes them count, is written last

What becomes of a shard, and where a killed command goes on:

    missing ──cut──► tokens ──encode──► memory ──store──► stored ──┐
       │                                                           ├──► in the manifest, once
       ├──cut: stored before the kill ──────────────────► stored ──┤    every shard is stored
       └──cut: another process's work ──────────────────► stored ──┘

A thread cuts a shard ahead; another writes the shard before; with several processes shard n is the
work of process n modulo their number.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.answering.engine import recorded_model
from clara_cli.bundled import choose_model
from clara_cli.commands.checkpoint_notes import describe_checkpoint, note_older
from clara_cli.commands.dry_run import need_of_compressing
from clara_cli.config import CompressConfig
from clara_cli.config.documents import changed_options
from clara_cli.core.batch_encoding import encode_rows
from clara_cli.core.checkpoint import Loaded, LoadOptions, load, reads
from clara_cli.corpus import quantize
from clara_cli.corpus.append import Additions
from clara_cli.corpus.documents_table import TableWriter
from clara_cli.corpus.journal import stored_identity
from clara_cli.corpus.manifest import Identity, refuse_difference
from clara_cli.corpus.progress import CompressionProgress
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import CorpusWriter
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.chunk import model_text
from clara_cli.documents.documents import Reading
from clara_cli.errors import UsageError
from clara_cli.records import Passage, Report
from clara_cli.storage import artefact

ADDING = (
    "documents are added by the checkpoint and with the options that the corpus was made with: "
    "omit that option, or make another corpus with --out"
)


@dataclass(frozen=True)
class Job:
    """A command with everything it needs open, and its passages not yet read. `copies` are the
    stored rows whose memory passages take over from `corpus`, by the passages' ids."""

    config: CompressConfig
    out: Path
    loaded: Loaded
    identity: Identity
    additions: Additions | None
    progress: CompressionProgress
    ranks: Ranks
    started: float
    table: TableWriter
    copies: dict[str, int] = field(default_factory=dict)
    corpus: Corpus | None = None

    @property
    def part(self) -> int:
        """Which part of the corpus this is; known once a document was read."""
        return (self.additions.part or 0) if self.additions else 0


def plan(
    config: CompressConfig, report: Report, ranks: Ranks, stored: Identity | None = None
) -> Job:
    """Load the checkpoint and settle every option; of a corpus that is there, `stored`, as it is.

    Raises:
        UsageError: for options that do not go together.
    """
    started = time.monotonic()
    additions = None
    if config.into is not None and config.append:
        additions = Additions(config.into)
        stored = additions.manifest.identity
    if config.into is not None and stored is not None:
        named = config.model or recorded_model(config.into, stored.checkpoint)
        config = as_stored(dataclasses.replace(config, model=named), stored)
    if ranks.size > 1 and "-" in config.inputs:
        raise UsageError("stdin cannot be read by several processes", "compress a file")
    out = config.into or config.out or default_out(config.inputs)
    model = choose_model(config.model, report.note)
    if config.dry_run and ranks.first:
        needed = need_of_compressing(config, model, report)
        report.note(f"weights and adapters take {needed.bytes / 1e9:,.2f} GB")
    if ranks.size > 1 and config.device_map is not None:
        raise UsageError("--device-map with several processes", "omit one of them")
    loaded = load(LoadOptions.of(config, model, config.ratio, verify=True, only_reads=True))
    describe_checkpoint(loaded, report).need("compressor")
    note_older(loaded, [], report)
    refuse_overlap(config, loaded.info.max_passage_tokens)
    identity = corpus_identity(config, loaded, out)
    if stored is not None:
        refuse_difference(out, stored, identity, ADDING)
    progress = CompressionProgress(report, quantize.passage_bytes(identity.dtype, *shape(identity)))
    loaded.model.merge("compressor")
    table = TableWriter(out, loaded.info.max_passage_tokens)
    return Job(config, out, loaded, identity, additions, progress, ranks, started, table)


def as_stored(config: CompressConfig, stored: Identity) -> CompressConfig:
    """The options of an addition: what was left at its default is as in the corpus.

    Raises:
        UsageError: with `--out` too.
    """
    if config.out is not None:
        raise UsageError("--out and --into were both given", "give one of them")
    kept = {name: value for name, value in stored.options.items() if hasattr(config, name)}
    kept |= {"ratio": stored.ratio, "text": stored.text}
    kept |= {"store_dtype": stored.dtype, "dtype": stored.compute_dtype}
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    is_open = {name: value for name, value in kept.items() if getattr(config, name) == usual[name]}
    return dataclasses.replace(config, **is_open)


def refuse_other_options(config: CompressConfig, stored: Identity) -> None:
    """Raise ArtefactError for an option given that a corpus was not made with, as far as it can be
    told without the checkpoint."""
    merged = as_stored(config, stored)
    kept = {**stored.options, "ratio": stored.ratio, "text": stored.text}
    kept |= {"store_dtype": stored.dtype, "dtype": stored.compute_dtype}
    names = [name for name in kept if hasattr(merged, name)]
    wanted = {name: getattr(merged, name) for name in names}
    artefact.refuse_difference(
        config.into or Path(), {name: kept[name] for name in names}, wanted, ADDING
    )


def refuse_overlap(config: CompressConfig, longest: int) -> None:
    """Raise UsageError for an overlap that leaves no passage anything new."""
    if config.overlap >= longest:
        message = f"--overlap {config.overlap}: a passage has at most {longest} tokens"
        raise UsageError(message, f"give less than {longest}")
    if config.overlap and config.split == "none":
        raise UsageError("--overlap does nothing with --split none", "omit one of them")


def default_out(inputs: tuple[str, ...]) -> Path:
    """The corpus beside the current directory, named after the first input."""
    name = Path(inputs[0].partition(":")[2] if inputs[0].startswith("hf:") else inputs[0]).name
    name = name.split(":")[0].split(".")[0]
    if inputs[0] == "-" or not name:
        message = f"--out is needed for input {inputs[0]!r}"
        raise UsageError(message, "name the corpus, as in --out documents.clara")
    return Path(f"{name}.clara")


def corpus_identity(config: CompressConfig, loaded: Loaded, out: Path) -> Identity:
    """Everything that decides the corpus's bytes besides the documents. One that was begun by an
    earlier version of this program keeps the fingerprint it has, where it means the same, and the
    format that was the default."""
    stored = stored_identity(out)
    begun = stored.checkpoint["fingerprint"] if stored else ""
    compute = quantize.format_of(loaded.model.dtype)
    named = compute if config.dtype != "auto" else quantize.DEFAULT
    if named != compute and stored and stored.dtype == quantize.EARLIER_DEFAULT:
        named = stored.dtype
    checkpoint = {
        "fingerprint": begun if begun and reads(loaded, begun) else loaded.info.fingerprint,
        "model": loaded.name,
        "backbone": loaded.info.backbone,
        "stage": loaded.info.stage,
        "licence": loaded.info.licence,
    }
    if layout := loaded.info.layout.changes():
        checkpoint["memory"] = layout
    if loaded.info.origin is not None:
        checkpoint["origin"] = loaded.info.origin
    options = {
        "split": config.split,
        "overlap": config.overlap,
        "title": config.title,
        "shard_size": config.shard_size,
        "batch_tokens": config.batch_tokens,
        "compute_dtype": compute,
        "max_passage_tokens": loaded.info.max_passage_tokens,
    }
    if config.load_in is not None:
        options["load_in"] = config.load_in
    return Identity(
        checkpoint=checkpoint,
        memory_tokens=loaded.info.memory_tokens_for(config.ratio),
        hidden=loaded.model.hidden,
        ratio=config.ratio or loaded.info.ratio,
        dtype=named if config.store_dtype == "auto" else config.store_dtype,
        text=config.text,
        options=options,
    )


def shape(identity: Identity) -> tuple[int, int]:
    """M and D."""
    return identity.memory_tokens, identity.hidden


def token_rows(job: Job, passages: list[Passage]) -> list[list[int]]:
    """What the compressor reads of each passage."""
    titles = [passage.title if job.config.title else "" for passage in passages]
    texts = [model_text(t, passage.text or "") for t, passage in zip(titles, passages, strict=True)]
    return [job.loaded.model.prompter.passage(text) for text in texts]


@dataclass(frozen=True)
class Piece:
    """A shard on its way: `rows` are the tokens of passages whose memory is to be computed here, by
    their places in it, None where nothing is; `copies` the stored rows of the others. `read` is the
    share of the input that was read when it was cut."""

    number: int
    passages: list[Passage]
    rows: dict[int, list[int]] | None
    copies: dict[int, int]
    read: float | None


def cut(
    job: Job, writer: CorpusWriter, shards: Iterator[list[Passage]], reading: Reading
) -> Iterator[Piece]:
    """Shards, those that are to be computed here with their token rows."""
    for number, passages in enumerate(shards):
        ids = enumerate(passage.passage_id for passage in passages)
        copies = {place: job.copies.pop(id) for place, id in ids if id in job.copies}
        rows = None
        if job.ranks.has(number) and not writer.finished(number, passages):
            fresh = [place for place in range(len(passages)) if place not in copies]
            tokens = token_rows(job, [passages[place] for place in fresh])
            rows = dict(zip(fresh, tokens, strict=True))
        yield Piece(number, passages, rows, copies, reading.fraction)


def store(job: Job, writer: CorpusWriter, pieces: Iterator[Piece]) -> None:
    """Encode and store shards; one is written while the next one is encoded."""
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for piece in pieces:
            if piece.rows is not None:
                job.progress.begin_shard(len(piece.passages), piece.read)
                memory_NMD = encode(job, piece.rows, piece.copies)
                if writing:
                    writing.result()
                writing = pool.submit(writer.write, piece.number, piece.passages, memory_NMD)
            job.progress.shard(len(piece.passages), piece.read)
        if writing:
            writing.result()


def encode(job: Job, rows: dict[int, list[int]], copies: dict[int, int]) -> Tensor:
    """The memory of a shard's passages: computed from their tokens, or taken over."""
    model, memory_tokens, budget = (
        job.loaded.model,
        job.identity.memory_tokens,
        job.config.batch_tokens,
    )
    fresh_NMD = None
    if rows:
        tokens, heard = list(rows.values()), job.progress
        fresh_NMD = encode_rows(
            model, tokens, memory_tokens, budget, done=heard.batch, layer_done=heard.layer
        )
    if not copies and fresh_NMD is not None:
        return fresh_NMD
    assert job.corpus is not None, "passages take over memory of a corpus"
    memory_NMD = torch.empty(len(rows) + len(copies), *shape(job.identity))
    memory_NMD[list(copies)] = job.corpus.stored_memory(list(copies.values()))
    if fresh_NMD is not None:
        memory_NMD[list(rows)] = fresh_NMD.float().cpu()
    return memory_NMD


def command_words(config: CompressConfig) -> list[str]:
    """The inputs, and the options besides the identity's that the same command needs again."""
    words = [*config.inputs]
    words += ["--backbone", config.backbone] if config.backbone else []
    for name, value in changed_options(config):
        words += [name] if value is True else [name, str(value)]
    return words
