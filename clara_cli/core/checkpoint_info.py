"""What a checkpoint says of itself: `clara.json`, every field checked. Knows no weights."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from clara_cli.core.adapters import ALL_LINEAR, LoraSettings
from clara_cli.core.model import ROLES
from clara_cli.core.prompts import PROMPT_VERSION, Markers
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.memory_layout import PUBLISHED, MemoryLayout, read_layout
from clara_cli.storage.artefact import Fields, read_object

ReadMode = Literal["memory", "text", "auto"]
READ_MODES: tuple[ReadMode, ...] = ("memory", "text", "auto")

FORMAT, VERSION, READ = "clara-checkpoint", 2, (1, 2, 3)
OTHER_MEMORY = 3  # the version that says how memory is made, where that is not as published
MEMORY = "memory"  # the part of the weights that is no role
MOST_RANK, MOST_PASSAGE, MOST_MEMORY, MOST_NAMES = 4096, 1_000_000, 100_000, 1000
MOST_TABLE = 5_000_000  # rows of an embedding table
LAYER_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
RESTORE = "restore the checkpoint from a copy"


@dataclass(frozen=True)
class ReadingDefaults:
    """How a checkpoint answers best, where nobody says otherwise: what is read, how many passages
    (`memory_passages`: of memory alone, where that is another number), and whether the generator
    has learned to read text (else the bare backbone reads it)."""

    mode: ReadMode = "memory"
    passages: int = 5
    generator_reads_text: bool = False
    memory_passages: int | None = None

    def passages_of(self, mode: ReadMode) -> int:
        """Passages read in a mode."""
        own = self.memory_passages if mode == "memory" else None
        return own or self.passages

    @property
    def text_role(self) -> str | None:
        """Who reads text; None: the bare backbone."""
        return "generator" if self.generator_reads_text else None


@dataclass(frozen=True)
class CheckpointInfo:
    """What `clara.json` says. `ratio` is the default one; `table_rows` is set where the embedding
    table was resized (released checkpoints) and its added rows are kept in memory.safetensors.

    Since version 2 the backbone's digest covers every byte, `backbone_sample` some of every tensor;
    `settings` are those of its config; `weights` has both digests of each role and of the memory
    tokens ("memory"). `older_digest` and `older_fingerprint` are those of version 1. `layout` says
    how memory is made and read; where that is not as published, the version is 3.
    """

    backbone: str
    revision: str | None
    backbone_digest: str
    max_passage_tokens: int
    memory_tokens: int
    ratio: int
    ratios: tuple[int, ...]
    lora: LoraSettings
    roles: tuple[str, ...]
    prompt_version: str = PROMPT_VERSION
    stage: str = "fresh"
    provenance: tuple[dict[str, Any], ...] = ()
    licence: str | None = None
    markers: Markers = field(default_factory=Markers)
    table_rows: int | None = None
    fingerprint: str = ""
    version: int = VERSION
    backbone_sample: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    older_digest: str = ""
    older_fingerprint: str = ""
    reading: ReadingDefaults = field(default_factory=ReadingDefaults)
    layout: MemoryLayout = PUBLISHED

    @property
    def origin(self) -> str | None:
        """Where a released checkpoint came from, however long ago; None for this program's own."""
        return self.provenance[0].get("origin") if self.provenance else None

    def memory_tokens_for(self, ratio: int | None) -> int:
        """M at a ratio (default: the checkpoint's own).

        Raises:
            UsageError: when the checkpoint does not serve it.
        """
        ratio = ratio or self.ratio
        if ratio not in self.ratios:
            served = ", ".join(map(str, self.ratios))
            message = f"--ratio {ratio}: not served by this checkpoint"
            raise UsageError(message, f"it serves {served}")
        return self.max_passage_tokens // ratio


def read_info(path: Path) -> CheckpointInfo:
    """`clara.json`, checked field by field."""
    file = path / "clara.json"
    fields = read_object(file, RESTORE, FORMAT, READ)
    if fields is None:
        raise ArtefactError(f"{file}: no such file", "is this a checkpoint folder?")
    backbone, lora, markers = (fields.object(key) for key in ("backbone", "lora", "markers"))
    info = CheckpointInfo(
        backbone=backbone.get("name", str),
        revision=backbone.optional("revision", str),
        backbone_digest=backbone.get("digest", str),
        max_passage_tokens=fields.count("max_passage_tokens", 1, MOST_PASSAGE),
        memory_tokens=fields.count("memory_tokens", 1, MOST_MEMORY),
        ratio=fields.count("ratio", 1, MOST_PASSAGE),
        ratios=fields.list_of("ratios", int),
        lora=LoraSettings(
            rank=lora.count("rank", 1, MOST_RANK),
            alpha=lora.count("alpha", 1, MOST_RANK * MOST_RANK),
            dropout=lora.number("dropout", 1),
            targets=_targets(lora),
            parameters=_layer_names(lora, "parameters"),
            left_out=_layer_names(lora, "left_out"),
        ),
        roles=fields.list_of("roles", str),
        prompt_version=fields.get("prompt_version", str),
        stage=fields.get("stage", str),
        provenance=fields.list_of("provenance", dict),
        licence=fields.optional("licence", str),
        markers=Markers(
            memory=markers.list_of("memory", str),
            others=markers.list_of("others", str),
            encode=markers.get("encode", str),
            separator=markers.get("separator", str),
        ),
        table_rows=_table_rows(fields),
        fingerprint=fields.get("fingerprint", str),
        version=fields.count("version"),
        reading=_reading(fields),
        layout=read_layout(fields),
    )
    _check(info, fields)
    return info if info.version == 1 else _with_digests(info, fields)


def _with_digests(info: CheckpointInfo, fields: Fields) -> CheckpointInfo:
    """What version 2 says more."""
    backbone, weights = fields.object("backbone"), fields.object("weights")
    parts = {name: weights.object(name) for name in (*info.roles, MEMORY)}
    kinds = ("digest", "sample")
    return replace(
        info,
        backbone_sample=backbone.get("sample", str),
        settings=backbone.get("settings", dict),
        older_digest=backbone.get("first_values", str),
        weights={n: {kind: part.get(kind, str) for kind in kinds} for n, part in parts.items()},
        older_fingerprint=fields.get("older_fingerprint", str),
    )


def _table_rows(fields: Fields) -> int | None:
    """Rows of a resized table; None where it was not resized."""
    resized = fields.values.get("table_rows") is not None
    return fields.count("table_rows", 1, MOST_TABLE) if resized else None


def _targets(lora: Fields) -> str | tuple[str, ...]:
    """Names of layers, or PEFT's word for all of them; never an expression that names them."""
    if lora.values.get("targets") == ALL_LINEAR:
        return ALL_LINEAR
    if isinstance(lora.values.get("targets"), str):
        raise lora.wrong("targets", f"an expression, not {ALL_LINEAR!r} or a list of names")
    names = _layer_names(lora, "targets")
    if not names:
        raise lora.wrong("targets", f"not names of at most {MOST_NAMES} layers")
    return names


def _layer_names(lora: Fields, key: str) -> tuple[str, ...]:
    """Names of layers or of their parameters; none where nothing is said of them."""
    names = lora.list_of(key, str) if key in lora.values else ()
    if len(names) > MOST_NAMES or not all(map(LAYER_NAME.fullmatch, names)):
        raise lora.wrong(key, f"not names of at most {MOST_NAMES} layers")
    return names


def _reading(fields: Fields) -> ReadingDefaults:
    """The defaults of reading; older checkpoints say nothing of them."""
    if "reading" not in fields.values:
        return ReadingDefaults()
    reading = fields.object("reading")
    mode = reading.get("mode", str)
    if mode not in READ_MODES:
        raise reading.wrong("mode", f"{mode!r}, known: {', '.join(READ_MODES)}")
    by_generator = reading.get("generator_reads_text", bool)
    named = "memory_passages" in reading.values
    of_memory = reading.count("memory_passages", 1) if named else None
    return ReadingDefaults(mode, reading.count("passages", 1), by_generator, of_memory)


def _check(info: CheckpointInfo, fields: Fields) -> None:
    names = info.markers.all
    if len(names) > MOST_MEMORY or max(map(len, names)) > MOST_NAMES or not info.markers.memory:
        raise fields.wrong("markers", f"none for memory, more than {MOST_MEMORY:,}, or too long")
    if len(info.ratios) > MOST_NAMES:
        raise fields.wrong("ratios", f"{len(info.ratios)} of them, the most is {MOST_NAMES}")
    for ratio in (info.ratio, *info.ratios):
        memory_tokens = info.max_passage_tokens // ratio if ratio > 0 else 0
        if not 1 <= memory_tokens <= info.memory_tokens:
            raise fields.wrong("ratios", f"{ratio} with {info.memory_tokens} memory tokens")
    if not info.roles or set(info.roles) - set(ROLES):
        raise fields.wrong("roles", f"{list(info.roles)}, known: {', '.join(ROLES)}")
    if info.prompt_version != PROMPT_VERSION:
        raise fields.wrong("prompt_version", f"{info.prompt_version!r}, not {PROMPT_VERSION!r}")


def describe(info: CheckpointInfo) -> dict[str, Any]:
    """`clara.json` as a dictionary."""
    fields = asdict(info)
    backbone = {
        "name": fields.pop("backbone"),
        "revision": fields.pop("revision"),
        "digest": fields.pop("backbone_digest"),
        "sample": fields.pop("backbone_sample"),
        "first_values": fields.pop("older_digest"),
        "settings": fields.pop("settings"),
    }
    if info.reading.memory_passages is None:
        del fields["reading"]["memory_passages"]
    version, memory = fields.pop("version"), info.layout.changes()
    del fields["layout"]
    described = {"format": FORMAT, "version": version, "backbone": backbone, **fields}
    return {**described, "memory": memory} if memory else described
