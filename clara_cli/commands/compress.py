"""`clara compress`: documents in, a corpus of memory tokens out, shard by shard, resumable; with
`--into`, a corpus brought to the state of its documents (`sync`), or added to (`--append`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import chain, islice

from clara_cli.commands import sync
from clara_cli.commands.compress_pipeline import (
    Job,
    command_words,
    cut,
    plan,
    store,
    token_rows,
)
from clara_cli.config import CompressConfig
from clara_cli.core.batch_encoding import encode_rows
from clara_cli.corpus.file_hashes import FileHashes
from clara_cli.corpus.prefetch import prefetch
from clara_cli.corpus.shards import in_shards
from clara_cli.corpus.writer import CorpusWriter, open_writer
from clara_cli.distributed.ranks import joined_apart
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import Reading, read_documents
from clara_cli.errors import ClaraError, Interrupted
from clara_cli.records import CompressResult, Passage, Report, SyncResult

TIMED = 64  # passages that a dry run compresses to time it


def run(config: CompressConfig, report: Report) -> CompressResult | SyncResult:
    """Compress until every document is stored; resumes an unfinished corpus, repairs a damaged
    one. Called in every process of a launcher, it does their part together.

    Raises:
        Interrupted: on Ctrl-C; finished shards are kept.
        ArtefactError: where `out` holds a corpus of other documents or settings.
    """
    if config.into is not None and not config.append:
        return sync.run(config, report)
    with joined_apart() as ranks:
        with ranks.together():
            job = plan(config, report, ranks)
        if config.dry_run:
            return estimate(job)
        try:
            return compress(job)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; the finished shards are kept in {job.out}",
                "run the same command again: it goes on after the last one",
            ) from None


def result(job: Job, size: int, seconds: float, rate: float | None) -> CompressResult:
    """The command's record; `rate` in passages a second is None where nothing was computed."""
    progress, identity = job.progress, job.identity
    stored_tokens = max(1, progress.passages * identity.memory_tokens)
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
        effective_ratio=round(progress.text_tokens / stored_tokens, 3),
        bytes=size,
        seconds=round(seconds, 3),
        passages_per_second=rate and (round(rate, 2) or float(f"{rate:.2g}")),
    )


def read_passages(job: Job) -> tuple[Reading, Iterator[Passage]]:
    """The reading, and every passage of every document in the order of the input."""
    config, progress = job.config, job.progress
    limit, offsets = job.loaded.info.max_passage_tokens, job.loaded.model.prompter.offsets
    refuse = job.additions.refuse if job.additions else None
    hashes = FileHashes(config.encoding)
    reading = read_documents(
        config.inputs, config, progress.bad, progress.report.warn, refuse, hashes.note
    )
    progress.left_out = reading.left_out

    def passages() -> Iterator[Passage]:
        for document in reading:
            progress.document(document)
            pieces = split_document(
                document, limit, offsets, config.split, config.title, config.overlap
            )
            if job.ranks.first and not config.dry_run:
                job.table.add(document, pieces, hashes.of(document))
            for passage in pieces:
                progress.passage(passage, limit)
                yield passage

    return reading, passages()


def estimate(job: Job) -> CompressResult:
    """Count everything, time the first passages, and say how long all would take.

    The time is the positions of all passages at the pace of the first `TIMED`, shared by the
    processes; or that of reading and splitting, where it is longer.
    """
    reading, passages = read_passages(job)
    job.progress.begin(reading.fraction)
    first = list(islice(passages, TIMED))
    pace = positions_a_second(job, token_rows(job, first))
    began = time.monotonic()
    for _ in passages:
        job.progress.cut(reading.fraction)
    spent = time.monotonic() - began
    progress = job.progress
    positions = progress.text_tokens + progress.passages * (3 + job.identity.memory_tokens)
    seconds = max(spent, positions / pace / job.ranks.size)
    job.progress.report.note(f"the time is estimated from the first {len(first)} passages")
    return result(job, progress.passages * progress.each, seconds, progress.passages / seconds)


def positions_a_second(job: Job, rows: Sequence[list[int]]) -> float:
    """The compressor's pace over token rows and their memory; says how far measuring it is."""
    memory_tokens, budget = job.identity.memory_tokens, job.config.batch_tokens
    encode_rows(job.loaded.model, rows[:1], memory_tokens, budget)  # the first call is slower
    done = 0

    def batch_done(passages: int, tokens: int) -> None:
        nonlocal done
        done += passages

    def layer_done(passages: float) -> None:
        job.progress.measured(done + passages, len(rows))

    began = time.monotonic()
    encode_rows(job.loaded.model, rows, memory_tokens, budget, batch_done, layer_done)
    return sum(len(row) + memory_tokens for row in rows) / (time.monotonic() - began)


def compress(job: Job) -> CompressResult:
    """Write every shard that is this process's and not there yet; the first process finishes."""
    ranks = job.ranks
    reading, passages = read_passages(job)
    job.progress.begin(reading.fraction)
    shards = in_shards(passages, job.config.shard_size)
    with ExitStack() as stack:
        stack.callback(job.table.discard)
        with ranks.together():
            first = next(shards)  # decides the part
            writer = stack.enter_context(open_corpus(job)) if ranks.first else None
            if writer is not None:
                job.table.begin(writer.first_row)
        with ranks.together():
            writer = writer or CorpusWriter(job.out, job.identity, job.part, ranks.rank)
        with ranks.together():
            pieces = cut(job, writer, chain([first], shards), reading)
            store(job, writer, prefetch(pieces))
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
                words = command_words(job.config)
                listed = (job.table.finish(), job.table.origins)
                writer.finish(*seen, first[0].document_id, words, *listed)
    seconds = time.monotonic() - progress.began
    size = sum(shard.bytes_memory + shard.bytes_passages for shard in writer.made.values())
    computed = sum(computed for _, _, computed in everything)
    rate = computed / max(seconds, 1e-9) if computed else None
    return result(job, size, time.monotonic() - job.started, rate)


def open_corpus(job: Job) -> AbstractContextManager[CorpusWriter]:
    """The corpus, locked for this command."""
    extends = job.additions.manifest.sha256 if job.additions else None
    return open_writer(job.out, job.identity, job.part, extends)
