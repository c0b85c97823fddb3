"""What a corpus says of itself: `manifest.json` when finished, `journal.json` while it is made.

Both are read with every key checked. Knows no tensors, no passages and no locks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clara_cli.corpus.files import sha256_bytes, write_atomic
from clara_cli.errors import ArtefactError

MANIFEST, JOURNAL = "manifest.json", "journal.json"
VERSION = 1
DTYPES = {"float32": "F32", "bf16": "BF16", "fp16": "F16"}  # our name: safetensors' name
DTYPE_BYTES = {"float32": 4, "bf16": 2, "fp16": 2}
COUNTS = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPAIR = "clara compress the documents again with another --out, or delete it first"
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a corpus's bytes besides the documents; two runs may share files only where
    all of it agrees.

    `checkpoint` holds at least `fingerprint`; `memory_tokens` is M, `hidden` is D, `ratio` text
    tokens per memory token, `dtype` one of float32 bf16 fp16, `text` whether passages keep
    their text, `options` any further JSON values that change the result.
    """

    checkpoint: dict[str, Any]
    memory_tokens: int
    hidden: int
    ratio: int
    dtype: str
    text: bool
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shard:
    """One run of consecutive passages: its two files, relative to the corpus, and their sums."""

    memory: str
    passages: str
    rows: int
    sha256_memory: str
    sha256_passages: str
    bytes_memory: int
    bytes_passages: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished corpus. `sha256` is the manifest file's own sum: the corpus's fingerprint."""

    identity: Identity
    counts: dict[str, int]
    documents_sha256: str
    shards: tuple[Shard, ...]
    sha256: str

    @property
    def rows(self) -> int:
        """Passages in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.bytes_memory + shard.bytes_passages for shard in self.shards)


def shard_names(number: int) -> tuple[str, str]:
    """Where shard `number` keeps its memory and its passages, relative to the corpus."""
    return f"shards/{number:05d}.safetensors", f"passages/{number:05d}.jsonl.gz"


def write_manifest(
    folder: Path,
    identity: Identity,
    counts: Mapping[str, int],
    documents_sha256: str,
    shards: list[Shard],
) -> Manifest:
    """Write `manifest.json`, which makes the corpus finished. Raises ClaraError."""
    data = {
        "format": "clara-corpus",
        "version": VERSION,
        **asdict(identity),
        "counts": {name: int(counts[name]) for name in COUNTS},
        "documents_sha256": documents_sha256,
        "shards": [asdict(shard) for shard in shards],
    }
    encoded = _encode(data)
    manifest = _manifest(folder / MANIFEST, data, sha256_bytes(encoded))
    write_atomic(folder / MANIFEST, encoded)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished corpus, None where there is none.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / MANIFEST
    read = _read(path, "clara-corpus")
    return None if read is None else _manifest(path, *read)


def write_journal(folder: Path, identity: Identity, shards: Mapping[int, Shard]) -> None:
    """Record the shards done so far. Raises ClaraError."""
    done = {str(number): asdict(shard) for number, shard in sorted(shards.items())}
    data = {"format": "clara-journal", "version": VERSION, **asdict(identity), "shards": done}
    write_atomic(folder / JOURNAL, _encode(data))


def read_journal(folder: Path) -> tuple[Identity, dict[int, Shard]] | None:
    """The identity and the finished shards of an unfinished corpus, None where there is none.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / JOURNAL
    read = _read(path, "clara-journal")
    if read is None:
        return None
    shards = _get(path, read[0], "shards", dict)
    if not all(name.isascii() and name.isdigit() for name in shards):
        raise _malformed(path, "shards", "its keys are not shard numbers")
    return _identity(path, read[0]), {
        int(name): _shard(path, record, int(name)) for name, record in shards.items()
    }


def refuse_difference(folder: Path, stored: Identity, wanted: Identity) -> None:
    """Raise ArtefactError naming the first key in which two identities differ, and both values."""
    old, new = _flat(asdict(stored)), _flat(json.loads(json.dumps(asdict(wanted))))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "ratio", key)):
        before, now = old.get(key, _MISSING), new.get(key, _MISSING)
        if before != now or type(before) is not type(now):
            shown = ["absent" if v is _MISSING else repr(v) for v in (before, now)]
            message = f"{folder} was made with {key} = {shown[0]}, this command has {shown[1]}"
            raise ArtefactError(message, f"use another --out, or delete {folder}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _encode(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def _read(path: Path, form: str) -> tuple[dict[str, Any], str] | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}", _REPAIR) from error
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not JSON: {error}", _REPAIR) from error
    if not isinstance(value, dict) or value.get("format") != form:
        raise _malformed(path, "format", f"not {form!r}")
    if value.get("version") != VERSION:
        found = value.get("version")
        message = f"{path}: format version {found!r}, this program reads {VERSION}"
        raise ArtefactError(message, _REPAIR)
    return value, sha256_bytes(data)


def _manifest(path: Path, value: dict[str, Any], sha256: str) -> Manifest:
    counts = _get(path, value, "counts", dict)
    counts = {name: _count(path, counts, name, "counts.") for name in COUNTS}
    records = _get(path, value, "shards", list)
    shards = tuple(_shard(path, record, number) for number, record in enumerate(records))
    rows = sum(shard.rows for shard in shards)
    if counts["passages"] != rows:
        wrong = f"{counts['passages']}, and its shards have {rows} rows"
        raise _malformed(path, "counts.passages", wrong)
    documents_sha256 = _get(path, value, "documents_sha256", str)
    return Manifest(_identity(path, value), counts, documents_sha256, shards, sha256)


def _identity(path: Path, value: dict[str, Any]) -> Identity:
    checkpoint = _get(path, value, "checkpoint", dict)
    _get(path, checkpoint, "fingerprint", str, "checkpoint.")
    dtype = _get(path, value, "dtype", str)
    if dtype not in DTYPES:
        raise _malformed(path, "dtype", f"{dtype!r}, known: {', '.join(DTYPES)}")
    numbers = {
        name: _count(path, value, name, least=1) for name in ("memory_tokens", "hidden", "ratio")
    }
    text, options = _get(path, value, "text", bool), _get(path, value, "options", dict)
    return Identity(checkpoint=checkpoint, dtype=dtype, text=text, options=options, **numbers)


def _shard(path: Path, record: Any, number: int) -> Shard:
    prefix = f"shards[{number}]."
    if not isinstance(record, dict):
        raise _malformed(path, prefix[:-1], "not an object")
    for key, name in zip(("memory", "passages"), shard_names(number), strict=True):
        if record.get(key) != name:
            raise _malformed(path, prefix + key, f"{str(record.get(key))[:80]!r}, not {name!r}")
    for key in ("sha256_memory", "sha256_passages"):
        if not _SHA256.fullmatch(_get(path, record, key, str, prefix)):
            raise _malformed(path, prefix + key, "not a SHA-256")
    for key, least in (("rows", 1), ("bytes_memory", 0), ("bytes_passages", 0)):
        _count(path, record, key, prefix, least)
    return Shard(**{field.name: record[field.name] for field in fields(Shard)})


def _count(path: Path, value: dict[str, Any], key: str, prefix: str = "", least: int = 0) -> int:
    number = _get(path, value, key, int, prefix)
    if number < least:
        raise _malformed(path, prefix + key, f"{number}, the least is {least}")
    return int(number)


def _get(path: Path, value: dict[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    """value[key], of exactly the type `kind` (a bool is no int)."""
    found = value.get(key, _MISSING)
    if found is _MISSING:
        raise _malformed(path, prefix + key, "missing")
    if type(found) is not kind:
        raise _malformed(path, prefix + key, f"{str(found)[:80]!r}, not of type {kind.__name__}")
    return found


def _malformed(path: Path, key: str, what: str) -> ArtefactError:
    return ArtefactError(f"{path}: key {key!r}: {what}", _REPAIR)
