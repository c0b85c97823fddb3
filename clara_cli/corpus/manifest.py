"""What a finished corpus says of itself, `manifest.json`, read with every key checked.

Knows no tensors, no passages and no locks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from clara_cli.corpus import quantize
from clara_cli.corpus.files import sha256_bytes, write_atomic
from clara_cli.errors import ArtefactError

MANIFEST = "manifest.json"
VERSION = 1
COUNTS = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPAIR = "clara compress the documents again with another --out, or delete it first"
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a corpus's bytes besides the documents; two runs may share files only where
    all of it agrees.

    `checkpoint` holds at least `fingerprint`; `memory_tokens` is M, `hidden` is D, `ratio` text
    tokens per memory token, `dtype` one of `quantize.DTYPES`, `text` whether passages keep their
    text, `options` any further JSON values that change the result.
    """

    checkpoint: dict[str, Any]
    memory_tokens: int
    hidden: int
    ratio: int
    dtype: str
    text: bool
    options: dict[str, Any]

    @property
    def compute_dtype(self) -> str:
        """The number format of the computation, in the words of --dtype; auto if not recorded."""
        words = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        return words.get(self.options.get("compute_dtype", ""), "auto")


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
class Part:
    """What one command put into a corpus: what it was given (`inputs`), `counts` and the
    fingerprint of its documents, its first shard and its first document's id."""

    first_shard: int
    first_document: str
    documents_sha256: str
    inputs: tuple[str, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished corpus: the parts it was made of, at least one, and the shards of them all.
    `sha256` is the manifest file's own sum: the corpus's fingerprint."""

    identity: Identity
    parts: tuple[Part, ...]
    shards: tuple[Shard, ...]
    sha256: str

    @property
    def counts(self) -> dict[str, int]:
        """`COUNTS` over all parts."""
        return {name: sum(part.counts[name] for part in self.parts) for name in COUNTS}

    def shards_of(self, part: int) -> range:
        """The numbers of a part's shards."""
        later = [other.first_shard for other in self.parts[part + 1 :]]
        return range(self.parts[part].first_shard, later[0] if later else len(self.shards))

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
    folder: Path, identity: Identity, parts: Sequence[Part], shards: Sequence[Shard]
) -> Manifest:
    """Write `manifest.json`, which makes the corpus finished. Raises ClaraError."""
    totals = {name: sum(part.counts[name] for part in parts) for name in COUNTS}
    data = {
        "format": "clara-corpus",
        "version": VERSION,
        **asdict(identity),
        "quantisation": quantize.described(identity.dtype),
        "counts": totals,
        "parts": [{**asdict(part), "inputs": list(part.inputs)} for part in parts],
        "shards": [asdict(shard) for shard in shards],
    }
    encoded = encode(data)
    made = _manifest(folder / MANIFEST, data, sha256_bytes(encoded))
    write_atomic(folder / MANIFEST, encoded)
    return made


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished corpus, None where there is none.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / MANIFEST
    read = read_json(path, "clara-corpus")
    return None if read is None else _manifest(path, *read)


def refuse_difference(folder: Path, stored: Identity, wanted: Identity, hint: str = "") -> None:
    """Raise ArtefactError naming the first key in which two identities differ, and both values;
    `hint` says what to do, unless it is to use another folder."""
    old, new = _flat(asdict(stored)), _flat(json.loads(json.dumps(asdict(wanted))))
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "ratio", key)):
        before, now = old.get(key, _MISSING), new.get(key, _MISSING)
        if before != now or type(before) is not type(now):
            shown = ["absent" if v is _MISSING else repr(v) for v in (before, now)]
            message = f"{folder} was made with {key} = {shown[0]}, this command has {shown[1]}"
            raise ArtefactError(message, hint or f"use another --out, or delete {folder}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def encode(data: dict[str, Any]) -> bytes:
    """A JSON object as the bytes of its file, always the same."""
    text = json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def read_json(path: Path, form: str) -> tuple[dict[str, Any], str] | None:
    """A file of ours and its SHA-256, None where there is none. Raises ArtefactError."""
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
        raise malformed(path, "format", f"not {form!r}")
    if value.get("version") != VERSION:
        found = value.get("version")
        message = f"{path}: format version {found!r}, this program reads {VERSION}"
        raise ArtefactError(message, _REPAIR)
    return value, sha256_bytes(data)


def _manifest(path: Path, value: dict[str, Any], sha256: str) -> Manifest:
    counts = _counts(path, get(path, value, "counts", dict), "counts.")
    records = get(path, value, "shards", list)
    shards = tuple(shard_of(path, record, number) for number, record in enumerate(records))
    rows = sum(shard.rows for shard in shards)
    if counts["passages"] != rows:
        wrong = f"{counts['passages']}, and its shards have {rows} rows"
        raise malformed(path, "counts.passages", wrong)
    parts = get(path, {"parts": [_only_part(value)], **value}, "parts", list)
    identity = read_identity(path, value)
    if value.get("quantisation") != quantize.described(identity.dtype):
        raise malformed(path, "quantisation", f"not that of {identity.dtype}")
    made = tuple(_part(path, record, number) for number, record in enumerate(parts))
    firsts = [part.first_shard for part in made]
    if firsts[:1] != [0] or sorted(set(firsts)) != firsts or firsts[-1] >= max(1, len(shards)):
        raise malformed(path, "parts", f"they begin at shards {firsts} of {len(shards)}")
    return Manifest(identity, made, shards, sha256)


def _only_part(value: dict[str, Any]) -> dict[str, Any]:
    """The one part of a corpus written before corpora had several."""
    kept = {name: value.get(name) for name in ("documents_sha256", "counts")}
    return {"first_shard": 0, "first_document": "", "inputs": [], **kept}


def _part(path: Path, record: Any, number: int) -> Part:
    prefix = f"parts[{number}]."
    if not isinstance(record, dict):
        raise malformed(path, prefix[:-1], "not an object")
    return Part(
        first_shard=_count(path, record, "first_shard", prefix),
        first_document=get(path, record, "first_document", str, prefix),
        documents_sha256=get(path, record, "documents_sha256", str, prefix),
        inputs=tuple(map(str, get(path, record, "inputs", list, prefix))),
        counts=_counts(path, get(path, record, "counts", dict, prefix), f"{prefix}counts."),
    )


def _counts(path: Path, value: dict[str, Any], prefix: str) -> dict[str, int]:
    return {name: _count(path, value, name, prefix) for name in COUNTS}


def read_identity(path: Path, value: dict[str, Any]) -> Identity:
    """The identity in a manifest or journal. Raises ArtefactError naming the key."""
    checkpoint = get(path, value, "checkpoint", dict)
    get(path, checkpoint, "fingerprint", str, "checkpoint.")
    dtype = get(path, value, "dtype", str)
    if dtype not in quantize.DTYPES:
        raise malformed(path, "dtype", f"{dtype!r}, known: {', '.join(quantize.DTYPES)}")
    numbers = {
        name: _count(path, value, name, least=1) for name in ("memory_tokens", "hidden", "ratio")
    }
    text, options = get(path, value, "text", bool), get(path, value, "options", dict)
    return Identity(checkpoint=checkpoint, dtype=dtype, text=text, options=options, **numbers)


def shard_of(path: Path, record: Any, number: int) -> Shard:
    """The record of a shard. Raises ArtefactError naming the key."""
    prefix = f"shards[{number}]."
    if not isinstance(record, dict):
        raise malformed(path, prefix[:-1], "not an object")
    for key, name in zip(("memory", "passages"), shard_names(number), strict=True):
        if record.get(key) != name:
            raise malformed(path, prefix + key, f"{str(record.get(key))[:80]!r}, not {name!r}")
    for key in ("sha256_memory", "sha256_passages"):
        if not _SHA256.fullmatch(get(path, record, key, str, prefix)):
            raise malformed(path, prefix + key, "not a SHA-256")
    for key, least in (("rows", 1), ("bytes_memory", 0), ("bytes_passages", 0)):
        _count(path, record, key, prefix, least)
    return Shard(**{field.name: record[field.name] for field in fields(Shard)})


def _count(path: Path, value: dict[str, Any], key: str, prefix: str = "", least: int = 0) -> int:
    number = get(path, value, key, int, prefix)
    if number < least:
        raise malformed(path, prefix + key, f"{number}, the least is {least}")
    return int(number)


def get(path: Path, value: dict[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    """value[key], of exactly the type `kind` (a bool is no int)."""
    found = value.get(key, _MISSING)
    if found is _MISSING:
        raise malformed(path, prefix + key, "missing")
    if type(found) is not kind:
        raise malformed(path, prefix + key, f"{str(found)[:80]!r}, not of type {kind.__name__}")
    return found


def malformed(path: Path, key: str, what: str) -> ArtefactError:
    """The error for a key that is not what it must be."""
    return ArtefactError(f"{path}: key {key!r}: {what}", _REPAIR)
