"""Digests of weights as they are stored: names, shapes, number formats and bytes of the tensors of
safetensors files, however they are cut into files and in whatever format they are loaded.

The full digest reads every byte. The sample reads the sizes and 16 windows of every tensor: it
notices other weights at once, a damaged file often. Knows no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_cli.core import gguf, int8
from clara_cli.errors import ArtefactError, ClaraError, first_line
from clara_cli.storage.artefact import parse
from clara_cli.storage.cache import cache_folder, private, private_folder
from clara_cli.storage.file_kinds import open_file, read_file
from clara_cli.storage.files import write_atomic

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_WEIGHTS = ("adapter", "consolidated")  # beginnings of files that are not the model's own
MOST_HEADER = 100 * 2**20  # bytes, the format's own limit
WINDOWS, WINDOW = 16, 256  # windows of a tensor's sample, bytes of one
CHUNK = 8 * 2**20
HINT = "restore it from a copy"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: its bytes are `start` to `end`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    def described(self) -> bytes:
        """Name, number format and shape, as they enter a digest."""
        return json.dumps([self.name, self.dtype, self.shape], ensure_ascii=False).encode() + b"\n"


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        ArtefactError: where it is missing, cut or no such file.
    """
    try:
        size = file.stat().st_size
        with open_file(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
            if length > min(MOST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = parse(stream.read(length))
        start = 8 + length
        tensors = [
            stored_tensor(file, name, facts, start, size)
            for name, facts in header.items()
            if name != "__metadata__"
        ]
    except OSError as error:
        raise ArtefactError(f"{file}: {error.strerror}", HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{file}: damaged: {first_line(error)}", HINT) from error
    if max((tensor.end for tensor in tensors), default=start) != size:
        raise ArtefactError(f"{file}: damaged: its tensors do not end where it does", HINT)
    return tensors


def stored_tensor(file: Path, name: str, facts: Any, start: int, size: int) -> StoredTensor:
    """One entry of a header; raises ValueError, KeyError or TypeError where it is none."""
    first, last = facts["data_offsets"]
    whole = all(type(number) is int for number in (first, last, *facts["shape"]))
    if not whole or not 0 <= first <= last <= size - start:
        raise ValueError(f"{name} lies outside of it")
    shape = tuple(facts["shape"])
    return StoredTensor(name, str(facts["dtype"]), shape, file, start + first, start + last)


def weight_files(folder: Path) -> list[Path]:
    """The files a backbone's weights are loaded from.

    Raises:
        ArtefactError: where there are none.
    """
    for name in (int8.FILE, WHOLE):
        if (folder / name).is_file():
            return [folder / name]
    if (folder / INDEX).is_file():
        return indexed_files(folder / INDEX)
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if not file.name.startswith(NOT_WEIGHTS)]
    if not files:
        raise ArtefactError(f"{folder}: no *.safetensors in it", "give a backbone's folder")
    return files


def indexed_files(index: Path) -> list[Path]:
    """The files an index names, all of them beside it."""
    try:
        names = set(parse(read_file(index))["weight_map"].values())
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("a file of weight_map is not beside it")
    except OSError as error:
        raise ArtefactError(f"{index}: {error.strerror}", HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{index}: damaged: {first_line(error)}", HINT) from error
    return sorted(index.parent / name for name in names)


def stored_tensors(files: Sequence[Path]) -> list[StoredTensor]:
    """The tensors of several files, by name.

    Raises:
        ArtefactError: where two files hold one of the same name.
    """
    by_name: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            other = by_name.setdefault(tensor.name, tensor)
            if other is not tensor:
                message = f"{file}: {tensor.name} is in {other.file.name} too"
                raise ArtefactError(message, HINT)
    return [by_name[name] for name in sorted(by_name)]


def full_digest(files: Sequence[Path]) -> str:
    """The SHA-256 of every tensor's name, number format, shape and bytes."""
    return combine(stored_tensors(files), whole_tensor)


def sample_digest(files: Sequence[Path]) -> str:
    """The same over 16 windows of every tensor: the first bytes, the last ones, and between."""
    return combine(stored_tensors(files), sampled_tensor)


def combine(tensors: Sequence[StoredTensor], digest: Callable[[StoredTensor], bytes]) -> str:
    """One digest of many, in the order of their names; computed by several threads."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return hashlib.sha256(b"".join(threads.map(digest, tensors))).hexdigest()


def whole_tensor(tensor: StoredTensor) -> bytes:
    """The digest of one tensor."""
    return digest_of(tensor, chunks(tensor))


def chunks(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """(place, length) of every part of a tensor."""
    for place in range(tensor.start, tensor.end, CHUNK):
        yield place, min(CHUNK, tensor.end - place)


def sampled_tensor(tensor: StoredTensor) -> bytes:
    """The digest of one tensor's sample."""
    room = tensor.end - tensor.start - WINDOW
    if room <= WINDOW * (WINDOWS - 1):
        return digest_of(tensor, chunks(tensor))
    places = (tensor.start + room * number // (WINDOWS - 1) for number in range(WINDOWS))
    return digest_of(tensor, ((place, WINDOW) for place in places))


def digest_of(tensor: StoredTensor, parts: Iterator[tuple[int, int]]) -> bytes:
    """The SHA-256 of what a tensor is called and of some of its bytes."""
    digest = hashlib.sha256(tensor.described())
    try:
        with open_file(tensor.file) as stream:
            for place, length in parts:
                stream.seek(place)
                digest.update(stream.read(length))
    except OSError as error:
        raise ArtefactError(f"{tensor.file}: {error.strerror}", HINT) from error
    return digest.digest()


def backbone_digest(folder: Path, fresh: bool = False) -> str:
    """The full digest of a backbone's folder; of one that comes from a GGUF file, that file's
    SHA-256. A digest is computed once for files of the same identity, `fresh` each time."""
    if (source := gguf.source_digest(folder)) is not None:
        return source
    files = weight_files(folder)
    remembered = None if fresh else read_known(files)
    if remembered is not None:
        return remembered
    digest = full_digest(files)
    keep_known(files, digest)
    return digest


def backbone_sample(folder: Path) -> str:
    """The sample of a backbone's folder; of a GGUF file, which is hashed whole when it is opened,
    its SHA-256."""
    return gguf.source_digest(folder) or sample_digest(weight_files(folder))


# --- digests computed before ---


def known_file(files: Sequence[Path]) -> Path:
    """Where the cache keeps the digest of files with their present identities."""
    facts = []
    for file in files:
        at = file.stat()
        identity = (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        facts.append([str(file.resolve()), *identity])
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache_folder() / "digests" / key


def read_known(files: Sequence[Path]) -> str | None:
    """The digest computed before for these files; None where there is none."""
    try:
        kept = read_file(known_file(files)).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return kept if len(kept) == 64 and set(kept) <= set("0123456789abcdef") else None


def keep_known(files: Sequence[Path], digest: str) -> None:
    """Keep a digest for the next time; where that cannot be written it is computed again."""
    with contextlib.suppress(OSError, ClaraError):
        name = known_file(files).name
        with private():
            write_atomic(private_folder("digests"), name, digest.encode())
