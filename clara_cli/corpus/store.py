"""A finished corpus, read: memory by row or in order, passages by row or in order, and its health.

Rows are those of passages that were not deleted, numbered from 0 in their order; `stored_rows` has
the number that each has over all shards, which an edit leaves as it is.

Tensor letters: N rows asked for, M memory tokens, D hidden. Memory is returned as float32.
Shards stay on disk, memory-mapped. Knows nothing of search or of how memory was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clara_cli.corpus import journal, quantize
from clara_cli.corpus.deleted_rows import read_deleted_rows
from clara_cli.corpus.manifest import MANIFEST, Manifest, Shard, read_manifest
from clara_cli.corpus.passage_lines import passage_lines
from clara_cli.corpus.writer import damage_of, list_damage
from clara_cli.errors import ArtefactError
from clara_cli.memory_layout import coarsen
from clara_cli.printable import shell_word
from clara_cli.records import Passage
from clara_cli.storage import artefact
from clara_cli.storage.cache import private
from clara_cli.storage.file_kinds import open_file
from clara_cli.storage.files import sha256_bytes, write_atomic
from clara_cli.storage.lock import lock_folder
from clara_cli.storage.remote_folder import RemoteFolder, url_of
from clara_cli.storage.tensors import open_tensors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_CHECK = "clara index {0} --check names every damaged file and the command that repairs it"
_MAX_HEADER = 2**16
_MOST_MANIFEST = 512 * 2**20  # bytes of one at a URL: a million shards
_OPEN_SHARDS = 4096  # each a part of the address space, no open file
_READ_SHARDS, _READ_BYTES = 16, 32 * 2**20  # whose passages' lines are kept beside the last one's
_OPTIONAL = {"text", "source"}  # --no-text, and corpora of earlier versions
_KEYS = {field.name for field in fields(Passage)} - _OPTIONAL
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("passage_id", "document_id", "title", "source"), (str,)),
    **dict.fromkeys(("start", "end", "tokens"), (int,)),
    "metadata": (dict,),
    "text": (str, type(None)),
}


_Mapped: TypeAlias = "tuple[Tensor, Tensor | None]"  # memory as stored, and its scales


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a corpus, relative to it, that is not what the manifest recorded."""

    file: str
    what: str


def verify(folder: Path) -> list[Damage]:
    """Recompute every checksum of a finished corpus; [] where all is well.

    Works on corpora too damaged to open, as long as their manifest is readable; raises
    ArtefactError where it is not.
    """
    manifest = _finished(folder)
    damaged = [item for shard in manifest.shards for item in damage_of(folder, shard)]
    damaged += [item for listed in manifest.lists for item in list_damage(folder, listed)]
    return [Damage(*item.split(": ", 1)) for item in damaged]


def _finished(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest
    unfinished = journal.read(folder)
    if unfinished is None and (manifest := read_manifest(folder)) is not None:
        return manifest  # finished between the two looks
    if unfinished is not None:
        message = f"{folder} is not finished: {len(unfinished.shards)} shards so far"
        raise ArtefactError(message, "run the same clara compress command again: it goes on")
    there = folder.exists()
    what = "not a corpus: no manifest.json" if there else "no such corpus"
    out = "another --out" if there else f"--out {shell_word(folder)}"
    hint = f"make one: clara compress with the documents and {out}"
    raise ArtefactError(f"{folder}: {what}", hint)


class Corpus:
    """A finished corpus; `Corpus.open(folder)`. Row r is the r-th passage that is not deleted.
    `remote` is where its files are copied from, if not from its folder; `name` names it to people:
    its folder, or URL."""

    def __init__(
        self, folder: Path, manifest: Manifest, remote: RemoteFolder | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.remote = remote
        self.name = str(folder) if remote is None else remote.url
        deleted = manifest.edits.deleted
        self._live = _live_rows(folder, manifest) if deleted else None
        self._first_rows = list(accumulate((shard.rows for shard in manifest.shards), initial=0))
        self._open: OrderedDict[int, _Mapped] = OrderedDict()
        self._read_lines: OrderedDict[int, list[bytes]] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, hold: bool = True) -> Corpus:
        """Open a corpus. Every shard's presence, size and header are checked, its content is not
        (`verify` does that). Its files stay while it is open, whatever is done to the corpus,
        unless it is opened by who has its lock, and does without (`hold`). The files of one at a
        URL are copied, and checked wholly, when they are wanted.
        Raises ArtefactError naming the damaged or missing file."""
        if url := url_of(folder):
            return cls._open_remote(RemoteFolder(url, transient=("shards", "passages")))
        with contextlib.ExitStack() as stack:
            held = _hold(folder) if hold else None
            if held is not None:
                stack.callback(os.close, held)
            corpus = cls(folder, _finished(folder))
            for shard in corpus.manifest.shards:
                corpus._check(shard)
            weakref.finalize(corpus, stack.pop_all().close)
        return corpus

    @classmethod
    def _open_remote(cls, remote: RemoteFolder) -> Corpus:
        data = remote.read(MANIFEST, _MOST_MANIFEST)
        if data is None:
            message = f"{remote.url}: not a corpus: no {MANIFEST}"
            raise ArtefactError(
                message, "a corpus is the folder that clara compress wrote: name it whole"
            )
        remote.keep_in(f"{sha256_bytes(data)[:20]}.clara")
        with private():
            write_atomic(remote.local, MANIFEST, data)
        manifest = _finished(remote.local)
        if deleted := manifest.edits.deleted:
            remote.copy(deleted.file, deleted.sha256, deleted.bytes)
        return cls(remote.local, manifest, remote)

    def __len__(self) -> int:
        return self._first_rows[-1] if self._live is None else len(self._live)

    @property
    def stored_rows(self) -> np.ndarray:
        """The number over all shards of each row, in order: int64 [rows]."""
        import numpy as np

        return np.arange(self._first_rows[-1]) if self._live is None else self._live

    def is_current(self) -> bool:
        """Whether nobody wrote to the corpus since it was opened."""
        manifest = read_manifest(self.folder)
        return manifest is not None and manifest.sha256 == self.manifest.sha256

    def memory(self, rows: Sequence[int], memory_tokens: int | None = None) -> Tensor:
        """The memory of the given rows, [N, M, D], in the order given; a row may come twice. Fewer
        `memory_tokens` than are stored are had by the rule of the checkpoint that made them.
        Raises IndexError for a row that does not exist."""
        memory_NMD = self.stored_memory([self._stored(row) for row in rows])
        return self._coarsened(memory_NMD, memory_tokens)

    def _coarsened(self, memory_NMD: Tensor, memory_tokens: int | None) -> Tensor:
        if memory_tokens is None:
            return memory_NMD
        return coarsen(memory_NMD, memory_tokens, self.manifest.identity.layout.coarsening)

    def stored_memory(self, stored_rows: Sequence[int]) -> Tensor:
        """The memory of rows, deleted ones too, by their numbers over all shards: [N, M, D]."""
        import numpy as np
        import torch

        identity = self.manifest.identity
        memory_NMD = torch.empty(len(stored_rows), identity.memory_tokens, identity.hidden)
        rows_N = np.asarray(stored_rows, np.int64)
        shard_N = np.searchsorted(self._first_rows, rows_N, side="right") - 1
        for number in np.unique(shard_N):
            places = np.flatnonzero(shard_N == number)
            inside = rows_N[places] - self._first_rows[number]
            mapped = self._mapped(int(number))
            memory_NMD[torch.from_numpy(places)] = self._read(int(number), mapped, inside)
        return memory_NMD

    def memory_chunks(
        self, rows_per_chunk: int = 256, memory_tokens: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """All memory in order, as (first row, [N, M, D]) with N at most `rows_per_chunk`; fewer
        `memory_tokens` as in `memory`."""
        import torch

        first = 0
        for number, shard in enumerate(self.manifest.shards):
            mapped = self._map(number)  # and not kept: all of it is going to be read
            for inside in range(0, shard.rows, rows_per_chunk):
                kept = self._kept(number, inside, min(inside + rows_per_chunk, shard.rows))
                if len(kept):
                    rows = slice(inside, inside + rows_per_chunk)
                    memory_NMD = self._read(number, mapped, rows)
                    if len(kept) < len(memory_NMD):
                        memory_NMD = memory_NMD[torch.from_numpy(kept)]
                    yield first, self._coarsened(memory_NMD, memory_tokens)
                    first += len(kept)

    def _kept(self, number: int, start: int, end: int) -> np.ndarray:
        """Which of some rows of a shard are not deleted, counted from `start`."""
        import numpy as np

        if self._live is None:
            return np.arange(end - start)
        before = self._first_rows[number] + start
        first, last = np.searchsorted(self._live, [before, before + end - start])
        return self._live[first:last] - before

    def passage(self, row: int) -> Passage:
        """One passage. Raises IndexError for a row that does not exist."""
        return self._stored_passage(self._stored(row))

    def _stored_passage(self, stored: int) -> Passage:
        number, inside = self._locate(stored)
        return self._parsed(number, inside, self._lines(number)[inside])

    def passages_at(self, rows: Sequence[int]) -> list[Passage]:
        """The passages of the given rows, in the order given."""
        passages = {row: self.passage(row) for row in sorted(set(rows))}  # each shard read once
        return [passages[row] for row in rows]

    def stored_passages_at(self, stored_rows: Sequence[int]) -> list[Passage]:
        """The passages of rows, deleted ones too, by their numbers over all shards."""
        return [self._stored_passage(stored) for stored in stored_rows]

    def passages(self) -> Iterator[Passage]:
        """All passages in order, one shard in memory at a time."""
        for number, shard in enumerate(self.manifest.shards):
            if len(kept := self._kept(number, 0, shard.rows)):
                lines = self._lines_of(shard)
                yield from (self._parsed(number, inside, lines[inside]) for inside in kept)

    def verify(self) -> list[Damage]:
        """Recompute every checksum; [] where all is well."""
        return verify(self.folder)

    def _stored(self, row: int) -> int:
        """The number over all shards of a row."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a corpus of {len(self)} passages")
        return row if self._live is None else int(self._live[row])

    def _locate(self, stored: int) -> tuple[int, int]:
        """The place of the shard that holds a stored row, and the row in it."""
        number = bisect_right(self._first_rows, stored) - 1
        return number, stored - self._first_rows[number]

    def _read(self, number: int, mapped: _Mapped, rows: slice | np.ndarray) -> Tensor:
        """Some rows of a mapped shard as [N, M, D] float32. Raises ArtefactError naming shard and
        row where a value is not finite: what is read goes to the generator."""
        import numpy as np

        stored, scales = mapped
        packed = None if scales is None else scales[rows]
        identity = self.manifest.identity
        memory_NMD = quantize.unpack(stored[rows], packed, identity.dtype, identity.hidden)
        wrong = _first_nonfinite(memory_NMD)
        if wrong is not None:
            path = self.folder / self.manifest.shards[number].memory
            row = int(np.arange(len(stored))[rows][wrong])
            what = f"row {row} (passage {self._first_rows[number] + row} of all)"
            hint = "compress the documents again with another --out (--store-dtype bf16 has room)"
            raise ArtefactError(f"{path}: {what} has memory that is not finite", hint)
        return memory_NMD

    def _map(self, number: int) -> _Mapped:
        """A shard's memory and its scales (or None), memory-mapped."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.memory
        if self.remote is not None:
            self.remote.copy(shard.memory, shard.sha256_memory, shard.bytes_memory)
            self._check_header(shard)
        handle = open_tensors(path, _CHECK.format(shell_word(self.folder)))
        scaled = quantize.FORMATS[self.manifest.identity.dtype].scales is not None
        scales = handle.get_tensor("scales") if scaled else None
        return handle.get_tensor("memory"), scales

    def _mapped(self, number: int) -> _Mapped:
        """The same, of shards that rows are read of here and there; the last ones stay mapped."""
        if number not in self._open:
            self._open[number] = self._map(number)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def stored_passages(self, number: int) -> list[Passage]:
        """All passages of the shard at a place, deleted ones too. Raises ArtefactError where its
        file is damaged."""
        lines = enumerate(self._lines(number))
        return [self._parsed(number, inside, line) for inside, line in lines]

    def _lines(self, number: int) -> list[bytes]:
        """The passages of the shard at a place, a line each; the last shards' are kept."""
        if number not in self._read_lines:
            while self._read_lines and (
                len(self._read_lines) >= _READ_SHARDS
                or sum(map(len, chain(*self._read_lines.values()))) > _READ_BYTES
            ):
                self._read_lines.popitem(last=False)
            self._read_lines[number] = self._lines_of(self.manifest.shards[number])
        self._read_lines.move_to_end(number)
        return self._read_lines[number]

    def live_rows_of(self, number: int) -> np.ndarray:
        """The rows of the shard at a place that are not deleted, counted in it."""
        return self._kept(number, 0, self.manifest.shards[number].rows)

    def stored_tensors(self, number: int) -> dict[str, Tensor]:
        """All that the shard at a place stores of memory, as it is stored."""
        stored, scales = self._map(number)
        return {"memory": stored, **({} if scales is None else {"scales": scales})}

    def passages_of(self, number: int) -> list[Passage]:
        """The passages of the shard at a place that are not deleted."""
        passages = self.stored_passages(number)
        return [passages[inside] for inside in self._kept(number, 0, len(passages))]

    def _lines_of(self, shard: Shard) -> list[bytes]:
        path = self.folder / shard.passages
        if self.remote is not None:
            sha256, size = shard.sha256_passages, shard.bytes_passages
            self.remote.copy(shard.passages, sha256, size)
        lines: list[bytes] = []
        try:
            lines.extend(passage_lines(path))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise self._damaged(path, f"line {len(lines) + 1}: {error}") from error
        if len(lines) != shard.rows:
            raise self._damaged(path, f"{len(lines)} passages, recorded {shard.rows}")
        return lines

    def _parsed(self, number: int, inside: int, line: bytes) -> Passage:
        """The passage of a line of the shard at a place. Raises ArtefactError where it is none."""
        try:
            return _passage(line)
        except ValueError as error:
            path = self.folder / self.manifest.shards[number].passages
            raise self._damaged(path, f"line {inside + 1}: {error}") from error

    def _check(self, shard: Shard) -> None:
        for name, size in (
            (shard.memory, shard.bytes_memory),
            (shard.passages, shard.bytes_passages),
        ):
            path = self.folder / name
            present = path.stat().st_size if path.is_file() else None
            if present is None:
                raise self._damaged(path, "missing")
            if present != size:
                raise self._damaged(path, f"{present:,} bytes, recorded {size:,}")
        self._check_header(shard)

    def _check_header(self, shard: Shard) -> None:
        identity = self.manifest.identity
        path = self.folder / shard.memory
        shapes = quantize.FORMATS[identity.dtype].shapes(identity.memory_tokens, identity.hidden)
        wanted = {
            name: {"dtype": values, "shape": [shard.rows, *shape]}
            for name, (values, shape) in shapes.items()
        }
        header = _header(path)
        if header != wanted:
            raise self._damaged(path, f"its header is {header}, the manifest says {wanted}")

    def _damaged(self, path: Path, what: str) -> ArtefactError:
        return ArtefactError(f"{path}: {what}", _CHECK.format(shell_word(self.folder)))


def _live_rows(folder: Path, manifest: Manifest) -> np.ndarray:
    """The rows that are not deleted, by their numbers over all shards."""
    import numpy as np

    is_live = np.ones(manifest.rows, bool)
    is_live[read_deleted_rows(folder, manifest)] = False
    return np.flatnonzero(is_live)


def _hold(folder: Path) -> int | None:
    """A shared lock of a corpus's folder, which keeps its files from being removed, until it is
    closed; None where the file system locks nothing, or there is no such folder."""
    with contextlib.suppress(OSError):
        return lock_folder(folder, fcntl.LOCK_SH)
    return None


def _first_nonfinite(memory_NMD: Tensor) -> int | None:
    """The first row with a value that is not finite, None where there is none. The product with
    itself is as finite as all values, or they are very large; it takes a twentieth of the time."""
    import numpy as np

    values_NP = memory_NMD.flatten(1).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(values_NP.ravel(), values_NP.ravel())):
            return None
    wrong_N = ~np.isfinite(values_NP).all(1)
    return int(np.argmax(wrong_N)) if wrong_N.any() else None


def _passage(line: bytes) -> Passage:
    """A stored passage. Raises ValueError saying what is wrong with its line."""
    record = artefact.parse(line)
    if not isinstance(record, dict) or record.keys() - _OPTIONAL != _KEYS:
        raise ValueError("not the keys of a passage")
    for name, value in record.items():
        if type(value) not in _KINDS[name]:
            raise ValueError(f"{name} is {str(value)[:60]!r}")
    return Passage(**{"text": None, **record})


def _header(path: Path) -> dict[str, Any] | None:
    """dtype and shape of each tensor of a shard, None where the header is not readable."""
    with open_file(path) as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        raw = stream.read(length) if length <= _MAX_HEADER else b""
    try:
        tensors = artefact.parse(raw)
        return {name: {key: tensors[name][key] for key in ("dtype", "shape")} for name in tensors}
    except (ValueError, TypeError, LookupError):
        return None
