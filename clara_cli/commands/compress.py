"""`clara compress`: documents in, a corpus of memory tokens out, shard by shard, resumable.

A thread reads, splits and tokenises a shard ahead; another writes the shard before; with several
processes shard n is the work of process n modulo their number.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch

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
from clara_cli.corpus.journal import stored_identity
from clara_cli.corpus.manifest import Identity, refuse_difference
from clara_cli.corpus.prefetch import prefetch
from clara_cli.corpus.progress import CompressionProgress
from clara_cli.corpus.shards import in_shards
from clara_cli.corpus.writer import CorpusWriter, open_writer
from clara_cli.distributed.ranks import Ranks, joined_apart
from clara_cli.documents.chunk import model_text, split_document
from clara_cli.documents.documents import Reading, read_documents
from clara_cli.errors import ClaraError, Interrupted, UsageError
from clara_cli.records import CompressResult, Passage, Report

STORE = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ADDING = (
    "documents are added by the checkpoint and with the options that the corpus was made with: "
    "omit that option, or make another corpus with --out"
)
TIMED = 64  # passages that a dry run compresses to time it


def run(config: CompressConfig, report: Report) -> CompressResult:
    """Compress until every document is stored; resumes an unfinished corpus, repairs a damaged
    one. Called in every process of a launcher, it does their part together.

    Raises:
        Interrupted: on Ctrl-C; finished shards are kept.
        ArtefactError: where `out` holds a corpus of other documents or settings.
    """
    with joined_apart() as ranks:
        with ranks.together():
            job = prepare(config, report, ranks)
        if config.dry_run:
            return plan(job)
        try:
            return store(job)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the finished shards are kept in {job.out}",
                "run the same command again: it goes on after the last one",
            ) from None


@dataclass(frozen=True)
class Job:
    """A command with everything it needs open, and its passages not yet read."""

    config: CompressConfig
    out: Path
    loaded: Loaded
    identity: Identity
    additions: Additions | None
    progress: CompressionProgress
    ranks: Ranks
    started: float

    @property
    def part(self) -> int:
        """Which part of the corpus this is; known once a document was read."""
        return (self.additions.part or 0) if self.additions else 0


def prepare(config: CompressConfig, report: Report, ranks: Ranks) -> Job:
    """Load the checkpoint and settle every option.

    Raises:
        UsageError: for options that do not go together.
    """
    started = time.monotonic()
    additions = None
    if config.into is not None:
        additions = Additions(config.into)
        named = config.model or recorded_model(config.into, additions.manifest.identity.checkpoint)
        config = as_stored(dataclasses.replace(config, model=named), additions.manifest.identity)
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
    if additions is not None:
        refuse_difference(out, additions.manifest.identity, identity, ADDING)
    progress = CompressionProgress(report, quantize.passage_bytes(identity.dtype, *shape(identity)))
    loaded.model.merge("compressor")
    return Job(config, out, loaded, identity, additions, progress, ranks, started)


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
        raise UsageError(message, "name the corpus: --out NAME.clara")
    return Path(f"{name}.clara")


def corpus_identity(config: CompressConfig, loaded: Loaded, out: Path) -> Identity:
    """Everything that decides the corpus's bytes besides the documents. One that was begun by an
    earlier version of this program keeps the fingerprint it has, where it means the same."""
    stored = stored_identity(out)
    begun = stored.checkpoint["fingerprint"] if stored else ""
    compute = STORE[loaded.model.dtype]
    named = compute if config.dtype != "auto" else "bf16"
    checkpoint = {
        "fingerprint": begun if begun and reads(loaded, begun) else loaded.info.fingerprint,
        "model": loaded.name,
        "backbone": loaded.info.backbone,
        "stage": loaded.info.stage,
        "licence": loaded.info.licence,
    }
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


def result(job: Job, size: int, seconds: float, rate: float | None) -> CompressResult:
    """The command's record; `rate` in passages a second is None where nothing was computed."""
    progress, identity = job.progress, job.identity
    slots = max(1, progress.passages * identity.memory_tokens)
    return CompressResult(
        corpus=str(job.out),
        documents=progress.documents,
        passages=progress.passages,
        empty=progress.empty,
        skipped=progress.skipped,
        left_out=progress.left_out,
        truncated=progress.truncated,
        memory_tokens=identity.memory_tokens,
        ratio=identity.ratio,
        effective_ratio=round(progress.text_tokens / slots, 3),
        bytes=size,
        seconds=round(seconds, 3),
        passages_per_second=rate and (round(rate, 2) or float(f"{rate:.2g}")),
    )


def read(job: Job) -> tuple[Reading, Iterator[Passage]]:
    """The reading, and every passage of every document in the order of the input."""
    config, progress = job.config, job.progress
    limit, offsets = job.loaded.info.max_passage_tokens, job.loaded.model.prompter.offsets
    refuse = job.additions.refuse if job.additions else None
    reading = read_documents(config.inputs, config, progress.bad, progress.report.warn, refuse)
    progress.left_out = reading.left_out

    def passages() -> Iterator[Passage]:
        for document in reading:
            progress.document(document)
            cut = split_document(
                document, limit, offsets, config.split, config.title, config.overlap
            )
            for passage in cut:
                progress.passage(passage, limit)
                yield passage

    return reading, passages()


def token_rows(job: Job, passages: list[Passage]) -> list[list[int]]:
    """What the compressor reads of each passage."""
    titles = [passage.title if job.config.title else "" for passage in passages]
    texts = [model_text(t, passage.text or "") for t, passage in zip(titles, passages, strict=True)]
    return [job.loaded.model.prompter.passage(text) for text in texts]


def plan(job: Job) -> CompressResult:
    """Count everything, time the first passages, and say how long all would take.

    The time is the positions of all passages at the pace of the first `TIMED`, shared by the
    processes; or that of reading and splitting, where it is longer.
    """
    reading, passages = read(job)
    job.progress.begin(reading.fraction)
    first = list(islice(passages, TIMED))
    rows = token_rows(job, first)
    slots, budget = job.identity.memory_tokens, job.config.batch_tokens
    encode_rows(job.loaded.model, rows[:1], slots, budget)  # the first call is slower
    began = time.monotonic()
    encode_rows(job.loaded.model, rows, slots, budget)
    pace = sum(len(row) + slots for row in rows) / (time.monotonic() - began)
    began = time.monotonic()
    for _ in passages:
        job.progress.cut(reading.fraction)
    spent = time.monotonic() - began
    progress = job.progress
    positions = progress.text_tokens + progress.passages * (3 + slots)
    seconds = max(spent, positions / pace / job.ranks.size)
    job.progress.report.note(f"the time is estimated from the first {len(first)} passages")
    return result(job, progress.passages * progress.each, seconds, progress.passages / seconds)


@dataclass(frozen=True)
class Piece:
    """A shard on its way: `rows` is None where its memory need not be computed here. `read` is the
    share of the input that was read when it was cut."""

    number: int
    passages: list[Passage]
    rows: list[list[int]] | None
    read: float | None


def store(job: Job) -> CompressResult:
    """Write every shard that is this process's and not there yet; the first process finishes."""
    ranks = job.ranks
    reading, passages = read(job)
    job.progress.begin(reading.fraction)
    shards = in_shards(passages, job.config.shard_size)
    with ExitStack() as stack:
        with ranks.together():
            first = next(shards)  # decides the part
            writer = stack.enter_context(opened(job)) if ranks.first else None
        with ranks.together():
            writer = writer or CorpusWriter(job.out, job.identity, job.part, ranks.rank)
        with ranks.together():
            pieces = cut(job, writer, chain([first], shards), reading)
            compress(job, writer, prefetch(pieces))
        progress = job.progress
        seen = (progress.counts(), progress.digest.hexdigest())
        everything = ranks.gathered((writer.made, seen, progress.computed))
        with ranks.together():
            if any(other != seen for _, other, _ in everything):
                message = "the processes read different documents"
                raise ClaraError(message, "give every machine the same files, and leave them be")
            for made, _, _ in everything:
                writer.made.update(made)
            if ranks.first:
                writer.finish(*seen, first[0].document_id, command_words(job.config))
    seconds = time.monotonic() - progress.began
    size = sum(shard.bytes_memory + shard.bytes_passages for shard in writer.made.values())
    computed = sum(computed for _, _, computed in everything)
    rate = computed / max(seconds, 1e-9) if computed else None
    return result(job, size, time.monotonic() - job.started, rate)


def opened(job: Job) -> AbstractContextManager[CorpusWriter]:
    """The corpus, locked for this command."""
    extends = job.additions.manifest.sha256 if job.additions else None
    return open_writer(job.out, job.identity, job.part, extends)


def command_words(config: CompressConfig) -> list[str]:
    """The inputs, and the options besides the identity's that the same command needs again."""
    words = [*config.inputs]
    words += ["--backbone", config.backbone] if config.backbone else []
    for name, value in changed_options(config):
        words += [name] if value is True else [name, str(value)]
    return words


def cut(
    job: Job, writer: CorpusWriter, shards: Iterator[list[Passage]], reading: Reading
) -> Iterator[Piece]:
    """Shards, those that are to be computed here with their token rows."""
    for number, passages in enumerate(shards):
        wanted = job.ranks.has(number) and not writer.finished(number, passages)
        rows = token_rows(job, passages) if wanted else None
        yield Piece(number, passages, rows, reading.fraction)


def compress(job: Job, writer: CorpusWriter, pieces: Iterator[Piece]) -> None:
    """Compute and store; a shard is written while the next one is computed."""
    model, progress = job.loaded.model, job.progress
    slots, budget = job.identity.memory_tokens, job.config.batch_tokens
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for piece in pieces:
            if piece.rows is not None:
                progress.begin_shard(len(piece.passages), piece.read)
                memory_NMD = encode_rows(model, piece.rows, slots, budget, progress.batch)
                if writing:
                    writing.result()
                writing = pool.submit(writer.write, piece.number, piece.passages, memory_NMD)
            progress.shard(len(piece.passages), piece.read)
        if writing:
            writing.result()
