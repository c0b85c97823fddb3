"""What a finished corpus says of itself, `manifest.json`, read with every key checked.

Knows no tensors, no passages and no locks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clara_cli.corpus import quantize
from clara_cli.storage import artefact
from clara_cli.storage.artefact import Fields
from clara_cli.storage.files import sha256_bytes, write_atomic

MANIFEST = "manifest.json"
VERSION = 1
COUNTS = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
_SHA256 = re.compile(r"[0-9a-f]{64}")
REPAIR = "clara compress the documents again with another --out, or delete it first"


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

    def earlier(self) -> set[str]:
        """The fingerprints the corpus had before each addition to it."""
        states = []
        for count, part in enumerate(self.parts[1:], 1):
            shards = self.shards[: part.first_shard]
            states.append(_described(self.identity, self.parts[:count], shards))
        return {sha256_bytes(artefact.encode(state)) for state in states}

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
    data = _described(identity, parts, shards)
    encoded = artefact.encode(data)
    manifest = _manifest(Fields(data, folder / MANIFEST, REPAIR), sha256_bytes(encoded))
    write_atomic(folder, MANIFEST, encoded)
    return manifest


def _described(
    identity: Identity, parts: Sequence[Part], shards: Sequence[Shard]
) -> dict[str, Any]:
    totals = {name: sum(part.counts[name] for part in parts) for name in COUNTS}
    return {
        "format": "clara-corpus",
        "version": VERSION,
        **asdict(identity),
        "quantisation": quantize.described(identity.dtype),
        "counts": totals,
        "parts": [{**asdict(part), "inputs": list(part.inputs)} for part in parts],
        "shards": [asdict(shard) for shard in shards],
    }


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished corpus, None where there is none.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / MANIFEST
    data = artefact.read_bytes(path, REPAIR)
    if data is None:
        return None
    fields = artefact.fields_of(data, path, REPAIR)
    return _manifest(artefact.check_form(fields, "clara-corpus", VERSION), sha256_bytes(data))


def refuse_difference(folder: Path, stored: Identity, wanted: Identity, hint: str = "") -> None:
    """Raise ArtefactError naming the first key in which two identities differ, and both values;
    `hint` says what to do, unless it is to use another folder."""
    artefact.refuse_difference(folder, asdict(stored), asdict(wanted), hint)


def _manifest(fields: Fields, sha256: str) -> Manifest:
    counts = _counts(fields.object("counts"))
    shards = tuple(shard_of(record, n) for n, record in enumerate(fields.objects("shards")))
    rows = sum(shard.rows for shard in shards)
    if counts["passages"] != rows:
        wrong = f"{counts['passages']}, and its shards have {rows} rows"
        raise fields.wrong("counts.passages", wrong)
    identity = read_identity(fields)
    if fields.values.get("quantisation") != quantize.described(identity.dtype):
        raise fields.wrong("quantisation", f"not that of {identity.dtype}")
    if "parts" in fields.values:
        parts = tuple(map(_part, fields.objects("parts")))
    else:  # written before corpora had several
        parts = (Part(0, "", fields.get("documents_sha256", str), (), counts),)
    firsts = [part.first_shard for part in parts]
    if firsts[:1] != [0] or sorted(set(firsts)) != firsts or firsts[-1] >= max(1, len(shards)):
        raise fields.wrong("parts", f"they begin at shards {firsts} of {len(shards)}")
    return Manifest(identity, parts, shards, sha256)


def _part(fields: Fields) -> Part:
    return Part(
        first_shard=fields.count("first_shard"),
        first_document=fields.get("first_document", str),
        documents_sha256=fields.get("documents_sha256", str),
        inputs=fields.list_of("inputs", str),
        counts=_counts(fields.object("counts")),
    )


def _counts(fields: Fields) -> dict[str, int]:
    return {name: fields.count(name) for name in COUNTS}


def read_identity(fields: Fields) -> Identity:
    """The identity in a manifest or journal. Raises ArtefactError naming the key."""
    checkpoint = fields.object("checkpoint")
    checkpoint.get("fingerprint", str)
    dtype = fields.get("dtype", str)
    if dtype not in quantize.DTYPES:
        raise fields.wrong("dtype", f"{dtype!r}, known: {', '.join(quantize.DTYPES)}")
    return Identity(
        checkpoint=checkpoint.values,
        memory_tokens=fields.count("memory_tokens", 1),
        hidden=fields.count("hidden", 1),
        ratio=fields.count("ratio", 1),
        dtype=dtype,
        text=fields.get("text", bool),
        options=fields.get("options", dict),
    )


def shard_of(fields: Fields, number: int) -> Shard:
    """The record of a shard. Raises ArtefactError naming the key."""
    for key, name in zip(("memory", "passages"), shard_names(number), strict=True):
        if (given := fields.get(key, str)) != name:
            raise fields.wrong(key, f"{given[:80]!r}, not {name!r}")
    for key in ("sha256_memory", "sha256_passages"):
        if not _SHA256.fullmatch(fields.get(key, str)):
            raise fields.wrong(key, "not a SHA-256")
    memory, passages = shard_names(number)
    return Shard(
        memory=memory,
        passages=passages,
        rows=fields.count("rows", 1),
        sha256_memory=fields.get("sha256_memory", str),
        sha256_passages=fields.get("sha256_passages", str),
        bytes_memory=fields.count("bytes_memory"),
        bytes_passages=fields.count("bytes_passages"),
    )
