"""Shards out: a corpus written shard by shard, resumable, the same bytes whatever interrupts it.

Tensor letters: N passages of a shard, M memory tokens, D hidden.
Knows nothing of how memory is computed or in which batches.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara_cli.corpus import files, manifest
from clara_cli.corpus.manifest import Identity, Manifest, Shard
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.records import Passage

if TYPE_CHECKING:
    from torch import Tensor

_OURS = {files.LOCK_NAME, manifest.MANIFEST, manifest.JOURNAL, "shards", "passages", "index"}
_GZIP_LEVEL = 6


@contextmanager
def open_writer(folder: Path, identity: Identity, command: str = "") -> Iterator[CorpusWriter]:
    """Open a corpus for writing, new, unfinished or finished, holding its lock meanwhile.

    On a finished corpus of the same identity the writer only compares: `finished` answers for
    every shard, and `write` refuses. Raises ArtefactError where the folder holds something else,
    another process writes it (named), or it was made with another identity (key and values
    named), and ClaraError where it cannot be written.
    """
    _refuse_foreign(folder)
    files.make_folder(folder)
    with files.locked(folder, command):
        done = manifest.read_manifest(folder)
        journal = manifest.read_journal(folder)
        stored = done.identity if done else journal[0] if journal else identity
        manifest.refuse_difference(folder, stored, identity)
        for name in ("", "shards", "passages"):
            files.make_folder(folder / name)
            files.remove_temporaries(folder / name)
        if done:
            known = dict(enumerate(done.shards))
        else:
            known = journal[1] if journal else {}
            manifest.write_journal(folder, identity, known)
        yield CorpusWriter(folder, identity, known, done)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, not a corpus", "choose another --out")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(name for name in names - _OURS if not files.is_temporary(name))
    if foreign:
        message = f"{folder} is a folder of other things ({', '.join(foreign[:3])}), not a corpus"
        raise ArtefactError(message, "choose another --out")


class CorpusWriter:
    """Writes one corpus; made by `open_writer`. Shards are numbered from 0 without gaps, in any
    order of writing."""

    def __init__(
        self, folder: Path, identity: Identity, known: dict[int, Shard], done: Manifest | None
    ) -> None:
        self.folder = folder
        self.identity = identity
        self._known = known
        self._done = done
        self._seen: set[int] = set()

    def finished(self, number: int, passages: Sequence[Passage]) -> bool:
        """Whether shard `number` was already written, with exactly these passages, and its files
        are whole. Then it counts as written: its memory need not be computed."""
        shard = self._known.get(number)
        if shard is None or shard.rows != len(passages):
            return False
        if damage_of(self.folder, shard):
            return False
        encoded = encode_passages(passages, self.identity.text)
        if files.sha256_bytes(encoded) != shard.sha256_passages:
            stored = gzip.decompress((self.folder / shard.passages).read_bytes())
            if _unplaced(stored) != _unplaced(gzip.decompress(encoded)):
                return False
        self._seen.add(number)
        return True

    def write(self, number: int, passages: Sequence[Passage], memory_NMD: Tensor) -> None:
        """Write one shard (at least one passage) in the stored dtype and record it.

        Raises ArtefactError on a finished corpus (the documents are others, or it is damaged),
        ClaraError where a memory is not finite or the files cannot be written.
        """
        if self._done:
            known = self._known.get(number)
            what = damage_of(self.folder, known) if known else []
            reason = f"{what[0]} is damaged" if what else f"its documents differ at shard {number}"
            message = f"{self.folder} is a finished corpus, and {reason}"
            raise ArtefactError(message, f"use another --out, or delete {self.folder}")
        self.record(number, write_shard(self.folder, self.identity, number, passages, memory_NMD))

    def record(self, number: int, shard: Shard) -> None:
        """Record a shard that `write_shard` wrote, perhaps in another process."""
        self._known[number] = shard
        self._seen.add(number)
        manifest.write_journal(self.folder, self.identity, self._known)

    def finish(self, counts: Mapping[str, int], documents_sha256: str) -> Manifest:
        """Make the corpus finished: manifest last, then the journal and stale shards go.

        `counts` has the keys of `manifest.COUNTS`; `documents_sha256` is the caller's
        fingerprint of the input. Raises ArtefactError where a finished corpus was opened and
        its documents differ.
        """
        count = len(self._seen)
        if self._seen != set(range(count)):
            raise ValueError(f"shards {sorted(self._seen)} were written, with gaps")
        shards = [self._known[number] for number in range(count)]
        if self._done:
            if list(self._done.shards) != shards or self._done.documents_sha256 != documents_sha256:
                message = f"{self.folder} is a finished corpus of other documents"
                raise ArtefactError(message, f"use another --out, or delete {self.folder}")
            files.remove(self.folder / manifest.JOURNAL)
            return self._done
        done = manifest.write_manifest(self.folder, self.identity, counts, documents_sha256, shards)
        files.remove(self.folder / manifest.JOURNAL)
        kept = {name for shard in shards for name in (shard.memory, shard.passages)}
        for sub in ("shards", "passages"):
            for path in sorted((self.folder / sub).iterdir()):
                if f"{sub}/{path.name}" not in kept:
                    files.remove(path)
        return done


def write_shard(
    folder: Path,
    identity: Identity,
    number: int,
    passages: Sequence[Passage],
    memory_NMD: Tensor,
) -> Shard:
    """Write a shard's two files and describe them; records nothing (see `CorpusWriter.record`).

    Raises ClaraError where a memory is not finite in the stored dtype, or the disk refuses.
    """
    from safetensors.torch import save

    stored_NMD = _stored(identity, number, passages, memory_NMD)
    memory, encoded = save({"memory": stored_NMD}), encode_passages(passages, identity.text)
    names = manifest.shard_names(number)
    for name, data in zip(names, (memory, encoded), strict=True):
        files.make_folder((folder / name).parent)
        files.write_atomic(folder / name, data)
    return Shard(
        memory=names[0],
        passages=names[1],
        rows=len(passages),
        sha256_memory=files.sha256_bytes(memory),
        sha256_passages=files.sha256_bytes(encoded),
        bytes_memory=len(memory),
        bytes_passages=len(encoded),
    )


def _stored(
    identity: Identity, number: int, passages: Sequence[Passage], memory_NMD: Tensor
) -> Tensor:
    """The memory as it is stored: on the CPU, contiguous, in the stored dtype, and finite."""
    import torch

    wanted = (len(passages), identity.memory_tokens, identity.hidden)
    if tuple(memory_NMD.shape) != wanted or not passages:
        raise ValueError(f"shard {number}: memory of shape {tuple(memory_NMD.shape)}, not {wanted}")
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    stored_NMD = memory_NMD.detach().to("cpu", dtypes[identity.dtype]).contiguous()
    finite_N = torch.isfinite(stored_NMD).flatten(1).all(1)
    if not bool(finite_N.all()):
        first = passages[int((~finite_N).nonzero()[0])].passage_id
        message = f"the memory of passage {first!r} is not finite as {identity.dtype}"
        raise ClaraError(message, "try --dtype float32 and --store-dtype bf16")
    return stored_NMD


def encode_passages(passages: Sequence[Passage], keep_text: bool) -> bytes:
    """Passages as the bytes of their file: gzip, one JSON object a line, always the same."""
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, buffer, mtime=0) as stream:
        for passage in passages:
            record: dict[str, Any] = asdict(passage)
            if not keep_text:
                del record["text"]
            if not passage.source:
                del record["source"]
            line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            stream.write(f"{line}\n".encode())
    return buffer.getvalue()


def _unplaced(lines: bytes) -> list[dict[str, Any]]:
    """Stored passages without the place they came from: the same documents may have moved."""
    records = [json.loads(line) for line in lines.splitlines()]
    return [{key: r[key] for key in r if key != "source"} for r in records]


def damage_of(folder: Path, shard: Shard) -> list[str]:
    """The files of a shard that are missing or changed, as `name: what`."""
    damage = []
    for name, size, wanted in (
        (shard.memory, shard.bytes_memory, shard.sha256_memory),
        (shard.passages, shard.bytes_passages, shard.sha256_passages),
    ):
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                damage.append(f"{name}: {found:,} bytes, recorded {size:,}")
            elif files.sha256_file(path) != wanted:
                damage.append(f"{name}: its SHA-256 is not the recorded one")
        except FileNotFoundError:
            damage.append(f"{name}: missing")
        except OSError as error:
            damage.append(f"{name}: {error.strerror}")
    return damage
