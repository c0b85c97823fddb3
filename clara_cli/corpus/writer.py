"""Shards out: a corpus written shard by shard, resumable, the same bytes whatever interrupts it.

Tensor letters: N passages of a shard, M memory tokens, D hidden.
Knows nothing of how memory is computed or in which batches.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara_cli.corpus import journal, manifest
from clara_cli.corpus.deleted_rows import LISTS
from clara_cli.corpus.manifest import Edits, Identity, ListFile, Manifest, Part, Shard
from clara_cli.corpus.passage_lines import passage_lines
from clara_cli.corpus.shards import encode_passages, write_shard
from clara_cli.errors import ArtefactError
from clara_cli.printable import shell_word
from clara_cli.records import Passage
from clara_cli.storage import artefact, files
from clara_cli.storage.file_kinds import read_file
from clara_cli.storage.lock import LOCK_NAME, lock_folder, locked

if TYPE_CHECKING:
    from torch import Tensor

_OURS = {
    *{LOCK_NAME, manifest.MANIFEST, journal.JOURNAL, journal.LINES},
    *{"shards", "passages", "index", LISTS},
}


@contextmanager
def open_writer(
    folder: Path, identity: Identity, part: int = 0, extends: str | None = None
) -> Iterator[CorpusWriter]:
    """Open a corpus for writing, holding its lock meanwhile: part 0 is what the corpus was made
    of, the part after the last adds to it. `extends` is the fingerprint the corpus must have.

    In a part that is finished the writer compares, and writes again only what is damaged. Raises
    ArtefactError where the folder holds something else, another process writes it (named), or it
    was made with another identity (key and values named), and ClaraError where it cannot be
    written.
    """
    _refuse_foreign(folder)
    files.make_folder(folder)
    with locked(folder):
        begun = journal.read(folder)
        if begun and not begun.shards:  # nothing is done, so nothing was decided
            journal.remove(folder)
        writer = CorpusWriter(folder, identity, part)
        if extends is not None and writer.fingerprint != extends:
            message = f"{folder} was changed by another command meanwhile"
            raise ArtefactError(message, "run the same command again")
        for name in ("shards", "passages"):
            files.make_folder(folder, name)
        for name in ("", "shards", "passages", LISTS):
            files.remove_temporaries(folder, name)
        writer.begin()
        yield writer


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, not a corpus", "choose another --out")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(name for name in names - _OURS if not files.is_temporary(name))
    if foreign:
        message = f"{folder} is a folder of other things ({', '.join(foreign[:3])}), not a corpus"
        raise ArtefactError(message, "choose another --out")


class CorpusWriter:
    """Writes one part of a corpus; made by `open_writer`, or for the ranks besides the first by
    itself, while the first holds the corpus open. Shards are numbered from 0 in a part, without
    gaps, in any order of writing."""

    def __init__(self, folder: Path, identity: Identity, part: int = 0, rank: int = 0) -> None:
        self.folder, self.identity, self._rank = folder, identity, rank
        self._done = manifest.read_manifest(folder)
        self.fingerprint = self._done.sha256 if self._done else ""
        unfinished = journal.read(folder)
        if unfinished and unfinished.extends != self.fingerprint:  # of before the manifest
            unfinished = None
        stored = self._done or unfinished
        manifest.refuse_difference(folder, stored.identity if stored else identity, identity)
        done_parts = self._done.parts if self._done else ()
        self._part = done_parts[part] if part < len(done_parts) else None
        if self._done and self._part:
            if self._done.edits.times:
                raise self._other("it was brought to the state of other documents since")
            shards = [self._done.shards[place] for place in self._done.shards_of(part)]
            self._first = shards[0].number if shards else 0
            self._known = {shard.number: shard for shard in shards}
        else:
            self._first = self._done.next_shard if self._done else 0
            self._known = unfinished.shards if unfinished else {}
        self.made: dict[int, Shard] = {}

    @property
    def first_row(self) -> int:
        """The number over all shards of the part's first row."""
        if self._done is None:
            return 0
        before = self._part.first_shard if self._part else len(self._done.shards)
        return sum(shard.rows for shard in self._done.shards[:before])

    def begin(self) -> None:
        """Record the identity, and what is known, before the first shard."""
        if self._part is None:
            journal.write(self.folder, self.identity, self._known, self.fingerprint)

    def finished(self, number: int, passages: Sequence[Passage]) -> bool:
        """Whether shard `number` was already written, with exactly these passages, and its files
        are whole. Then it counts as written: its memory need not be computed. Raises ArtefactError
        where a finished part has other passages there."""
        shard = self._known.get(self._first + number)
        damage = damage_of(self.folder, shard) if shard else []
        if shard is None or not self._same(shard, passages, damage):
            if self._part:
                raise self._other(f"its documents differ at shard {number}")
            return False
        if damage:
            return False
        self.made[self._first + number] = shard
        return True

    def _same(self, shard: Shard, passages: Sequence[Passage], damage: list[str]) -> bool:
        """Whether a shard was made of these passages; the same documents may have moved. Of one
        whose record is damaged the documents' fingerprint will tell."""
        if shard.rows != len(passages):
            return False
        encoded = encode_passages(passages, self.identity.text)
        if files.sha256_bytes(encoded) == shard.sha256_passages:
            return True
        if any(item.startswith(shard.passages) for item in damage):
            return self._part is not None
        try:
            stored = _unplaced(passage_lines(self.folder / shard.passages))
        except (ValueError, EOFError, OSError, zlib.error, AttributeError, TypeError):
            return False  # no passages of this program's, whatever their sum
        return stored == _unplaced(gzip.decompress(encoded).splitlines())

    def write(self, number: int, passages: Sequence[Passage], memory_NMD: Tensor) -> None:
        """Write one shard (at least one passage) in the stored dtype and record it.

        Raises ClaraError where a memory is not finite or the files cannot be written.
        """
        number += self._first
        encoded = self._kept(number) or encode_passages(passages, self.identity.text)
        shard = write_shard(self.folder, self.identity, number, passages, memory_NMD, encoded)
        self.made[number] = shard
        if self._part is None:
            journal.append(self.folder, self._rank, number, shard)

    def _kept(self, number: int) -> bytes | None:
        """The passages of a finished shard as they are, where they are whole: a repair of its
        memory leaves them."""
        shard = self._known.get(number) if self._part else None
        damage = damage_of(self.folder, shard) if shard else []
        if shard is None or any(item.startswith(shard.passages) for item in damage):
            return None
        return read_file(self.folder / shard.passages)

    def finish(
        self,
        counts: Mapping[str, int],
        documents_sha256: str,
        first_document: str = "",
        inputs: Sequence[str] = (),
        documents: ListFile | None = None,
        origins: Sequence[str] = (),
        edits: Edits | None = None,
    ) -> Manifest:
        """Make the part finished: manifest last, then the journal and stale shards go.

        `counts` has the keys of `manifest.COUNTS`; `documents_sha256` is the caller's
        fingerprint of the input; `inputs` is what the user named; `documents` lists what was
        added, from `origins`; `edits` is what was done to the corpus, if the part comes with such.
        Raises ArtefactError where the part was finished and its documents differ.
        """
        numbers = sorted(self.made)
        if numbers != list(range(self._first, self._first + len(numbers))):
            raise ValueError(f"shards {numbers} were written, with gaps")
        fresh = [self.made[number] for number in numbers]
        shards = list(self._done.shards) if self._done else []
        parts = list(self._done.parts) if self._done else []
        done_edits = self._done.edits if self._done else Edits()
        if self._part is None:
            whole = {name: int(counts[name]) for name in manifest.COUNTS}
            listed = (documents, tuple(origins))
            if fresh or documents or not parts:
                first = len(shards)
                part = Part(first, first_document, documents_sha256, tuple(inputs), whole, *listed)
                parts.append(part)
            shards += fresh
        else:
            if self._part.documents_sha256 != documents_sha256 or len(fresh) != len(self._known):
                raise self._other("it is of other documents")
            place = self._part.first_shard
            shards[place : place + len(fresh)] = fresh
        is_new = self._done is None or self._part is None or tuple(shards) != self._done.shards
        if self._done is None or is_new:
            described = (parts, shards, edits or done_edits)
            self._done = manifest.write_manifest(self.folder, self.identity, *described)
        remove_unused(self.folder, self._done)
        return self._done

    def abandon(self) -> None:
        """Leave a finished corpus as it was: there is nothing to add. Raises ClaraError."""
        assert self._done is not None, "nothing is left of a new corpus"
        journal.remove(self.folder)
        remove_unused(self.folder, self._done)

    def _other(self, what: str) -> ArtefactError:
        folder = shell_word(self.folder)
        hint = f"use another --out, or bring it to the state of these: --into {folder}"
        return ArtefactError(f"{self.folder} is a finished corpus, and {what}", hint)


def remove_unused(folder: Path, done: Manifest) -> None:
    """Remove the files of a finished corpus that no reader needs, unless an unfinished addition to
    it does. What a reader of an earlier state may still have open stays until it is gone.

    Call it under the lock. Raises ClaraError.
    """
    unfinished = journal.read(folder)
    if unfinished and unfinished.extends == done.sha256:
        return
    journal.remove(folder)
    kept = {name for shard in done.shards for name in (shard.memory, shard.passages)}
    kept |= {listed.file for listed in done.lists}
    with unread(folder) if done.edits.times else nullcontext(True) as alone:
        for sub in ("shards", "passages", LISTS) if alone else ():
            for path in sorted((folder / sub).glob("*")):
                if (name := f"{sub}/{path.name}") not in kept:
                    files.remove(folder, name)


@contextmanager
def unread(folder: Path) -> Iterator[bool]:
    """Whether nobody reads a corpus; then nobody begins to before the block is done."""
    try:
        descriptor = lock_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _unplaced(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Stored passages without the place they came from: the same documents may have moved."""
    records = [artefact.parse(line) for line in lines]
    return [{key: r[key] for key in r if key != "source"} for r in records]


def damage_of(folder: Path, shard: Shard) -> list[str]:
    """The files of a shard that are missing or changed, as `name: what`."""
    return [
        *_damage(folder, shard.memory, shard.bytes_memory, shard.sha256_memory),
        *_damage(folder, shard.passages, shard.bytes_passages, shard.sha256_passages),
    ]


def list_damage(folder: Path, listed: ListFile) -> list[str]:
    """A list of documents or rows, as `name: what`, where it is missing or changed."""
    return _damage(folder, listed.file, listed.bytes, listed.sha256)


def _damage(folder: Path, name: str, size: int, sha256: str) -> list[str]:
    path = folder / name
    try:
        present = path.stat().st_size
        if present != size:
            return [f"{name}: {present:,} bytes, recorded {size:,}"]
        if files.sha256_file(path) != sha256:
            return [f"{name}: its SHA-256 is not the recorded one"]
    except FileNotFoundError:
        return [f"{name}: missing"]
    except OSError as error:
        return [f"{name}: {error.strerror}"]
    return []
