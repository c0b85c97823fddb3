"""What a finished corpus says of itself, `manifest.json`, read with every key checked.

A corpus is edited by shards that are added at its end and by a list of deleted rows; the manifest
names both, so that replacing it, at once, is what changes a corpus. Rows are numbered over all
shards in their order, deleted ones too: an edit leaves every number as it is.

Knows no tensors, no passages and no locks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any

from clara_cli.corpus import quantize
from clara_cli.memory_layout import MemoryLayout, read_layout
from clara_cli.storage import artefact
from clara_cli.storage.artefact import Fields
from clara_cli.storage.files import sha256_bytes, write_atomic

MANIFEST = "manifest.json"
VERSION, VERSIONS = 2, (1, 2, 3)  # written, and read
OTHER_MEMORY = 3  # written where memory is not made as published
NEEDS = "0.1.0"  # the first release of this program that reads what is written
COUNTS = ("documents", "passages", "empty", "skipped", "truncated", "text_tokens")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"shards/(\d{5,9})\.safetensors")
_LISTED = re.compile(r"documents/[0-9a-f]{16}\.(?:jsonl\.gz|rows)")
REPAIR = "clara compress the documents again with another --out, or delete it first"


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a corpus's bytes besides the documents; two runs may share files only where
    all of it agrees.

    `checkpoint` holds at least `fingerprint`; `memory_tokens` is M, `hidden` is D, `ratio` text
    tokens per memory token, `dtype` one of `quantize.FORMATS`, `text` whether passages keep their
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
    def layout(self) -> MemoryLayout:
        """How the memory was made, and so how fewer memory tokens are had of it."""
        return MemoryLayout(**self.checkpoint.get("memory", {}))

    @property
    def version(self) -> int:
        """The least version of the format that says all of this."""
        return OTHER_MEMORY if self.layout.changes() else VERSION

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

    @property
    def number(self) -> int:
        """The number in the names of its files."""
        return int(PurePath(self.memory).stem)


@dataclass(frozen=True, slots=True)
class ListFile:
    """A file that lists documents or deleted rows, named by what it holds: `count` of them."""

    file: str
    sha256: str
    bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one command put into a corpus: what it was given (`inputs`), `counts` and the
    fingerprint of its documents, its first shard and its first document's id; where those are
    listed (`documents`, None in corpora of version 1), and the places they are from (`origins`,
    `documents_table`)."""

    first_shard: int
    first_document: str
    documents_sha256: str
    inputs: tuple[str, ...]
    counts: dict[str, int]
    documents: ListFile | None = None
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edits:
    """What was done to a corpus since it was made, beside what was added to it: how often it was
    brought to the state of its documents or lost some (`times`), the rows deleted, `counts` of what
    was deleted, and the fingerprints of the states whose rows had other numbers."""

    times: int = 0
    deleted: ListFile | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    renumbered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished corpus: the parts it was made of, at least one, and the shards of them all.
    `sha256` is the manifest file's own sum: the corpus's fingerprint."""

    identity: Identity
    parts: tuple[Part, ...]
    shards: tuple[Shard, ...]
    sha256: str
    edits: Edits = Edits()

    @property
    def counts(self) -> dict[str, int]:
        """`COUNTS` over all parts, without what was deleted."""
        gone = self.edits.counts
        return {n: sum(part.counts[n] for part in self.parts) - gone[n] for n in COUNTS}

    def shards_of(self, part: int) -> range:
        """The places of a part's shards in `shards`."""
        later = [other.first_shard for other in self.parts[part + 1 :]]
        return range(self.parts[part].first_shard, later[0] if later else len(self.shards))

    @property
    def states(self) -> dict[int, str]:
        """The fingerprint of the rows for each number of them that the corpus had, the present one
        last: an edit adds rows and renumbers none, so an index of some of them stays one."""
        ends = {self.shards_of(number).stop for number in range(len(self.parts))}
        rows = list(accumulate((shard.rows for shard in self.shards), initial=0))
        digest = hashlib.sha256()
        states = {0: digest.hexdigest()}  # of no rows
        for count, shard in enumerate(self.shards, 1):
            digest.update(f"{shard.sha256_memory} {shard.sha256_passages}\n".encode())
            if count in ends:
                states[rows[count]] = digest.hexdigest()
        return states

    @property
    def fingerprint(self) -> str:
        """That of all rows, deleted ones too."""
        return self.states[self.rows]

    @property
    def next_shard(self) -> int:
        """The number of the shard that is added next."""
        return 1 + max((shard.number for shard in self.shards), default=-1)

    @property
    def rows(self) -> int:
        """Rows of all shards, deleted ones too."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.bytes_memory + shard.bytes_passages for shard in self.shards)

    @property
    def lists(self) -> list[ListFile]:
        """The lists of documents and of deleted rows."""
        lists = [part.documents for part in self.parts] + [self.edits.deleted]
        return [listed for listed in lists if listed is not None]


def shard_names(number: int) -> tuple[str, str]:
    """Where shard `number` keeps its memory and its passages, relative to the corpus."""
    return f"shards/{number:05d}.safetensors", f"passages/{number:05d}.jsonl.gz"


def write_manifest(
    folder: Path,
    identity: Identity,
    parts: Sequence[Part],
    shards: Sequence[Shard],
    edits: Edits = Edits(),
) -> Manifest:
    """Write `manifest.json`, which makes the corpus finished. Raises ClaraError."""
    data = {
        "format": "clara-corpus",
        "version": identity.version,
        "needs": NEEDS,
        **asdict(identity),
        "quantisation": quantize.described(identity.dtype),
        "parts": [{**asdict(part), **_lists(part)} for part in parts],
        "shards": [asdict(shard) for shard in shards],
        "edits": {**asdict(edits), "renumbered": list(edits.renumbered)},
    }
    totals = Manifest(identity, tuple(parts), tuple(shards), "", edits).counts
    encoded = artefact.encode({**data, "counts": totals})
    data = artefact.parse(encoded)
    manifest = _manifest(Fields(data, folder / MANIFEST, REPAIR), sha256_bytes(encoded))
    write_atomic(folder, MANIFEST, encoded)
    return manifest


def _lists(part: Part) -> dict[str, list[str]]:
    return {"inputs": list(part.inputs), "origins": list(part.origins)}


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished corpus, None where there is none.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / MANIFEST
    data = artefact.read_bytes(path, REPAIR)
    if data is None:
        return None
    fields = artefact.fields_of(data, path, REPAIR)
    return _manifest(artefact.check_form(fields, "clara-corpus", VERSIONS), sha256_bytes(data))


def refuse_difference(folder: Path, stored: Identity, wanted: Identity, hint: str = "") -> None:
    """Raise ArtefactError naming the first key in which two identities differ, and both values;
    `hint` says what to do, unless it is to use another folder."""
    artefact.refuse_difference(folder, asdict(stored), asdict(wanted), hint)


def _manifest(fields: Fields, sha256: str) -> Manifest:
    counts = _counts(fields.object("counts"))
    shards = tuple(shard_of(record) for record in fields.objects("shards"))
    if len({shard.number for shard in shards}) != len(shards):
        raise fields.wrong("shards", "two of one name")
    edits = _edits(fields.object("edits")) if "edits" in fields.values else Edits()
    rows = sum(shard.rows for shard in shards)
    deleted = edits.deleted.count if edits.deleted else 0
    if counts["passages"] != rows - deleted:
        wrong = f"{counts['passages']}, and its shards have {rows} rows, {deleted} deleted"
        raise fields.wrong("counts.passages", wrong)
    identity = read_identity(fields)
    if fields.values.get("quantisation") != quantize.described(identity.dtype):
        raise fields.wrong("quantisation", f"not that of {identity.dtype}")
    if "parts" in fields.values:
        parts = tuple(map(_part, fields.objects("parts")))
    else:  # written before corpora had several
        parts = (Part(0, "", fields.get("documents_sha256", str), (), counts),)
    firsts = [part.first_shard for part in parts]
    if firsts[:1] != [0] or sorted(firsts) != firsts or firsts[-1] > len(shards):
        raise fields.wrong("parts", f"they begin at shards {firsts} of {len(shards)}")
    return Manifest(identity, parts, shards, sha256, edits)


def _part(fields: Fields) -> Part:
    listed = fields.optional("documents", dict) if "documents" in fields.values else None
    return Part(
        first_shard=fields.count("first_shard"),
        first_document=fields.get("first_document", str),
        documents_sha256=fields.get("documents_sha256", str),
        inputs=fields.list_of("inputs", str),
        counts=_counts(fields.object("counts")),
        documents=None if listed is None else _list_file(fields.object("documents")),
        origins=fields.list_of("origins", str) if "origins" in fields.values else (),
    )


def _edits(fields: Fields) -> Edits:
    deleted = fields.optional("deleted", dict)
    return Edits(
        times=fields.count("times"),
        deleted=None if deleted is None else _list_file(fields.object("deleted")),
        counts=_counts(fields.object("counts")),
        renumbered=fields.list_of("renumbered", str),
    )


def _list_file(fields: Fields) -> ListFile:
    if not _LISTED.fullmatch(name := fields.get("file", str)):
        raise fields.wrong("file", f"{name[:80]!r}, not the name of a list")
    if not _SHA256.fullmatch(digest := fields.get("sha256", str)):
        raise fields.wrong("sha256", "not a SHA-256")
    return ListFile(name, digest, fields.count("bytes"), fields.count("count"))


def _counts(fields: Fields) -> dict[str, int]:
    return {name: fields.count(name) for name in COUNTS}


def read_identity(fields: Fields) -> Identity:
    """The identity in a manifest or journal. Raises ArtefactError naming the key."""
    checkpoint = fields.object("checkpoint")
    checkpoint.get("fingerprint", str)
    read_layout(checkpoint)
    dtype = fields.get("dtype", str)
    if dtype not in quantize.FORMATS:
        raise fields.wrong("dtype", f"{dtype!r}, known: {', '.join(quantize.FORMATS)}")
    return Identity(
        checkpoint=checkpoint.values,
        memory_tokens=fields.count("memory_tokens", 1),
        hidden=fields.count("hidden", 1),
        ratio=fields.count("ratio", 1),
        dtype=dtype,
        text=fields.get("text", bool),
        options=fields.get("options", dict),
    )


def shard_of(fields: Fields) -> Shard:
    """The record of a shard. Raises ArtefactError naming the key."""
    if not (match := _SHARD.fullmatch(memory := fields.get("memory", str))):
        raise fields.wrong("memory", f"{memory[:80]!r}, not the name of a shard")
    names = shard_names(int(match[1]))
    for key, name in zip(("memory", "passages"), names, strict=True):
        if (given := fields.get(key, str)) != name:
            raise fields.wrong(key, f"{given[:80]!r}, not {name!r}")
    for key in ("sha256_memory", "sha256_passages"):
        if not _SHA256.fullmatch(fields.get(key, str)):
            raise fields.wrong(key, "not a SHA-256")
    return Shard(
        memory=names[0],
        passages=names[1],
        rows=fields.count("rows", 1),
        sha256_memory=fields.get("sha256_memory", str),
        sha256_passages=fields.get("sha256_passages", str),
        bytes_memory=fields.count("bytes_memory"),
        bytes_passages=fields.count("bytes_passages"),
    )
