"""`clara compress --into`: a corpus brought to the state of its documents.

What changed is told by hashes: a checkpoint is loaded only for the first document that has to be
computed. New shards are written behind the others, the rows of what was replaced or deleted are
listed, and one new manifest makes both count: whoever reads meanwhile, or after a kill, has the
corpus of before or of after. The same command goes on after the shards that it had finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NoReturn

from clara_cli.answering.index_update import update_index
from clara_cli.commands.compress_pipeline import (
    Job,
    as_stored,
    command_words,
    cut,
    plan,
    refuse_other_options,
    shape,
    store,
)
from clara_cli.commands.watch import watch
from clara_cli.config import CompressConfig
from clara_cli.corpus import quantize
from clara_cli.corpus.changes import Changes, deleted
from clara_cli.corpus.documents_table import Documents, StoredDocument, TableWriter
from clara_cli.corpus.manifest import Manifest, read_manifest
from clara_cli.corpus.prefetch import prefetch
from clara_cli.corpus.progress import CompressionProgress
from clara_cli.corpus.shards import in_shards
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.vacuum import vacuum
from clara_cli.corpus.writer import CorpusWriter, open_writer
from clara_cli.distributed.ranks import Ranks, joined_apart
from clara_cli.documents.chunk import split_document
from clara_cli.documents.documents import SKIP_HINT, Reading, read_documents
from clara_cli.errors import ArtefactError, ClaraError, DataError, Interrupted, UsageError, nearest
from clara_cli.printable import shell_word
from clara_cli.records import Document, Passage, Report, SyncResult
from clara_cli.storage.file_kinds import read_user_file

_NAMED = 20  # documents that one message names
_UNKNOWN = 2**62  # the longest passage, where a corpus does not say it


def run(config: CompressConfig, report: Report) -> SyncResult:
    """Bring the corpus `into` to the state of the inputs, or delete documents; then its index.
    Called in every process of a launcher, it does their part together.

    Raises:
        Interrupted: on Ctrl-C; finished shards are kept.
        UsageError: for documents to prune that nobody agreed to; what was computed is kept.
        ArtefactError: for a corpus that is missing, damaged, or of other options.
    """
    with joined_apart() as ranks:
        sync = Sync(config, report, ranks)
        try:
            return sync.run_for_ever() if config.watch else sync.run()
        except KeyboardInterrupt:
            what = "no longer watched" if config.watch else "as it was"
            raise Interrupted(
                f"interrupted; {config.into} is {what}, its finished shards are kept",
                "run the same command again: it goes on after the last one",
            ) from None


class Sync:
    """One run, or several of the same command; the checkpoint is loaded once."""

    def __init__(self, config: CompressConfig, report: Report, ranks: Ranks) -> None:
        assert config.into is not None, "checked before"
        self.folder, self.report, self.ranks = config.into, report, ranks
        if ranks.size > 1 and "-" in config.inputs:
            raise UsageError("stdin cannot be read by several processes", "compress a file")
        manifest = read_manifest(self.folder)
        if manifest is None:
            hint = f"make it first: clara compress, with --out {shell_word(self.folder)}"
            raise ArtefactError(f"{self.folder}: no finished corpus to change", hint)
        self.identity = manifest.identity
        refuse_other_options(config, self.identity)
        self.config = as_stored(config, self.identity)
        self._job: Job | None = None

    def run(self) -> SyncResult:
        """Change the corpus, once."""
        started, config = time.monotonic(), self.config
        each = quantize.passage_bytes(self.identity.dtype, *shape(self.identity))
        progress = CompressionProgress(self.report, each)
        if config.dry_run:
            return self._plan(progress, started)
        with ExitStack() as stack:
            with self.ranks.together():
                corpus = Corpus.open(self.folder, hold=False)
                part = len(corpus.manifest.parts)
                writer = None
                if self.ranks.first:
                    opened = open_writer(self.folder, self.identity, part, corpus.manifest.sha256)
                    writer = stack.enter_context(opened)
            with self.ranks.together():
                writer = writer or CorpusWriter(self.folder, self.identity, part, self.ranks.rank)
            edit = Edit(self, corpus, writer, progress)
            stack.callback(edit.table.discard)
            manifest = edit.run()
            index_bytes = 0
            if self.ranks.first:
                if config.vacuum:
                    manifest = vacuum(self.folder, manifest, config.shard_size)
                index_bytes = self._follow()
        return edit.result(manifest, index_bytes, time.monotonic() - started)

    def _plan(self, progress: CompressionProgress, started: float) -> SyncResult:
        """What would change."""
        with self.ranks.together():
            corpus = Corpus.open(self.folder)
            part = len(corpus.manifest.parts)
            writer = CorpusWriter(self.folder, self.identity, part, self.ranks.rank)
            edit = Edit(self, corpus, writer, progress)
            edit.plan()
        return edit.result(corpus.manifest, 0, time.monotonic() - started)

    def run_for_ever(self) -> NoReturn:
        """Change the corpus whenever the documents change, until interrupted. An error of one time,
        such as a file that is bad, is told; the next change may mend it."""

        def change() -> None:
            try:
                result = self.run()
            except ClaraError as error:
                self.report.warn(f"{error.message} ({error.hint})")
                return
            changed = (result.added, result.replaced, result.deleted)
            if any(changed):
                counts = "{:,} added, {:,} replaced, {:,} deleted".format(*changed)
                now = f"{result.documents:,} documents, {result.seconds:.1f} s"
                self.report.note(f"{time.strftime('%H:%M:%S')} {counts}; {now}")

        self.report.note(f"watching {', '.join(self.config.inputs)}; Ctrl-C ends it")
        watch(self.config.inputs, self.config, change)

    def job(self, corpus: Corpus, progress: CompressionProgress, table: TableWriter) -> Job:
        """What computes, its checkpoint loaded the first time it is asked for."""
        if self._job is None:
            self._job = plan(self.config, self.report, self.ranks, self.identity)
        self._job = dataclasses.replace(
            self._job, progress=progress, table=table, corpus=corpus, copies={}
        )
        return self._job

    def _follow(self) -> int:
        """Let the index follow; where it cannot, the corpus is scanned."""
        try:
            return update_index(Corpus.open(self.folder))
        except ClaraError as error:
            again = f"clara index {shell_word(self.folder)}"
            self.report.warn(f"the index did not follow ({again}): {error.message}")
            return 0


class Edit:
    """One change of a corpus, from what is read to what its manifest says."""

    def __init__(
        self, sync: Sync, corpus: Corpus, writer: CorpusWriter, progress: CompressionProgress
    ) -> None:
        self.sync, self.corpus, self.writer, self.progress = sync, corpus, writer, progress
        self.config, self.ranks = sync.config, sync.ranks
        self.documents = Documents(corpus)
        self.changes = Changes(self.documents, self.config.inputs, self.config.encoding)
        self.limit: int = sync.identity.options.get("max_passage_tokens", _UNKNOWN)
        self.table = TableWriter(corpus.folder, self.limit)
        self.computed = 0
        self._loaded_job: Job | None = None

    def run(self) -> Manifest:
        """Compute what is new, and make the change."""
        with self.ranks.together():
            if self.ranks.first:
                self.table.begin(self.writer.first_row)
            unread = self._store_new() if self.config.inputs else set()
        seen = (self.progress.counts(), self.progress.digest.hexdigest())
        removed = hashlib.sha256("\n".join(sorted(self.changes.removed)).encode()).hexdigest()
        seen_here = (*seen, removed)
        everything = self.ranks.gathered((self.writer.made, seen_here, self.progress.computed))
        with self.ranks.together():
            if any(other != seen_here for _, other, _ in everything):
                message = "the processes read different documents"
                raise ClaraError(message, "give every machine the same files, and leave them be")
            for made, _, _ in everything:
                self.writer.made.update(made)
            self.computed = sum(computed for _, _, computed in everything)
            if not self.ranks.first:
                return self.corpus.manifest
            self._delete_named()
            if self.config.prune:
                self._prune(unread)
            return self._publish(*seen)

    def plan(self) -> None:
        """Find what would change, and compute and write nothing."""
        unread: set[tuple[str, str]] = set()
        if self.config.inputs:
            reading = self._read()
            for document in reading:
                if reason := self.changes.conflict(document):
                    self._refuse(document, reason)
                elif self.changes.is_new(document):
                    self.changes.store(document)
            unread = reading.unread
        self._delete_named()
        if self.config.prune:
            gone = self.changes.gone(unread, prune_empty=self.config.yes)
            self._name_gone(gone)
            self.changes.removed |= {one.id: one for one in gone}

    def _read(self) -> Reading:
        config, progress = self.config, self.progress
        reading = read_documents(
            config.inputs,
            config,
            progress.bad,
            progress.report.warn,
            is_unchanged=self.changes.is_unchanged,
            may_be_empty=True,
        )
        progress.left_out = reading.left_out
        return reading

    def _store_new(self) -> set[tuple[str, str]]:
        """Compute and store the documents that are new or changed; which files were not read."""
        config, reading = self.config, self._read()
        self.progress.begin(reading.fraction)
        passages = self._new_passages(reading)
        first = next(passages, None)
        if first is not None:
            job = self._job()
            shards = in_shards(chain([first], passages), config.shard_size)
            store(job, self.writer, prefetch(cut(job, self.writer, shards, reading)))
        return reading.unread

    def _job(self) -> Job:
        if self._loaded_job is None:
            self._loaded_job = self.sync.job(self.corpus, self.progress, self.table)
        return self._loaded_job

    def _new_passages(self, reading: Reading) -> Iterator[Passage]:
        changes = self.changes
        for document in reading:
            if reason := changes.conflict(document):
                self._refuse(document, reason)
            elif changes.is_new(document):
                pieces = self._cut(document, self._job())
                if not changes.is_same(document, pieces):
                    self._store(document, pieces, self._job())
                    yield from pieces

    def _refuse(self, document: Document, reason: str) -> None:
        message = f"{document.source}: {reason}"
        if not self.config.skip_bad:
            hint = f"give it another name, or delete that one first; or {SKIP_HINT}"
            raise DataError(message, hint)
        self.progress.bad(message)

    def _cut(self, document: Document, job: Job) -> list[Passage]:
        config, offsets = self.config, job.loaded.model.prompter.offsets
        how = (config.split, config.title, config.overlap)
        return split_document(document, job.loaded.info.max_passage_tokens, offsets, *how)

    def _store(self, document: Document, pieces: Sequence[Passage], job: Job) -> None:
        """Take down a document whose passages are to be stored."""
        self.progress.document(document)
        for piece in pieces:
            self.progress.passage(piece, self.limit)
        twin = self.changes.store(document)
        if twin is not None and twin.passages == len(pieces):
            ids = [piece.passage_id for piece in pieces]
            job.copies.update(zip(ids, twin.rows, strict=True))
        if self.ranks.first:
            self.table.add(document, pieces, self.changes.files.of(document))

    def _delete_named(self) -> None:
        """Delete the documents that the options name. Raises UsageError for an id that there is
        not, unless bad ones are skipped."""
        ids = [*self.config.delete, *_ids_in(self.config.delete_from)]
        for document_id in dict.fromkeys(ids):
            stored = self.documents.get(document_id)
            if stored is not None:
                self.changes.removed[stored.id] = stored
                continue
            message = f"no document {document_id[:60]!r} in {self.corpus.folder}"
            if not self.config.skip_bad:
                near = nearest(document_id, [one.id for one in self.documents])
                raise UsageError(message, f"{near}; nothing was deleted")
            self.progress.bad(message)

    def _prune(self, unread: set[tuple[str, str]]) -> None:
        """Delete the documents that are no longer there, once the user agrees."""
        gone = self.changes.gone(unread, prune_empty=self.config.yes)
        if not gone:
            return
        self._name_gone(gone)
        named, verb = (
            ("1 document", "is") if len(gone) == 1 else (f"{len(gone):,} documents", "are")
        )
        question = f"delete {named}?"
        answer = True if self.config.yes else self.progress.report.confirm(question)
        if answer is None:
            message = f"{named} {verb} no longer there, and nobody can be asked"
            raise UsageError(message, "add --yes; nothing was changed, what was computed is kept")
        if answer:
            self.changes.removed |= {one.id: one for one in gone}

    def _name_gone(self, gone: Sequence[StoredDocument]) -> None:
        if gone:
            more = f", and {len(gone) - _NAMED:,} more" if len(gone) > _NAMED else ""
            named = ", ".join(one.id for one in gone[:_NAMED])
            self.progress.report.note(f"no longer there: {named}{more}")

    def _publish(self, counts: dict[str, int], digest: str) -> Manifest:
        """Make the change, if there is one."""
        changes = self.changes
        for document in changes.renewed:
            self.table.add_again(document)
        listed = self.table.finish()
        if not self.writer.made and listed is None and not changes.removed:
            self.writer.abandon()
            return self.corpus.manifest
        edits = deleted(self.documents, changes.removed.values())
        words = command_words(self.config)
        return self.writer.finish(counts, digest, "", words, listed, self.table.origins, edits)

    def result(self, manifest: Manifest, index_bytes: int, seconds: float) -> SyncResult:
        """The command's record."""
        changes, counts = self.changes, manifest.counts
        shards = self.writer.made.values()
        fresh = {one.file: one.bytes for one in manifest.lists}
        for one in self.corpus.manifest.lists:
            fresh.pop(one.file, None)
        return SyncResult(
            corpus=str(self.corpus.folder),
            documents=counts["documents"],
            passages=counts["passages"],
            added=changes.added,
            replaced=changes.replaced,
            unchanged=changes.unchanged,
            moved=changes.moved,
            deleted=len(changes.removed) - changes.replaced,
            skipped=self.progress.skipped,
            left_out=self.progress.left_out,
            computed=self.computed,
            memory_tokens=manifest.identity.memory_tokens,
            ratio=manifest.identity.ratio,
            bytes=manifest.bytes,
            bytes_written=sum(one.bytes_memory + one.bytes_passages for one in shards)
            + sum(fresh.values()),
            index_bytes=index_bytes,
            seconds=round(seconds, 3),
        )


def _ids_in(file: Path | None) -> list[str]:
    """The ids in a file, one a line. Raises DataError where it cannot be read."""
    if file is None:
        return []
    try:
        lines = read_user_file(file).decode().splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{file}: {reason}", "give a text file of ids, one a line") from error
    return [line for line in lines if line.strip()]
