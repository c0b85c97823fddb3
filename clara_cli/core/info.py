"""What a checkpoint says of itself: `clara.json`, every field checked. Knows no weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clara_cli.core.model import ROLES, LoraSettings
from clara_cli.core.prompts import PROMPT_VERSION, Markers
from clara_cli.errors import ArtefactError, UsageError

FORMAT, VERSION = "clara-checkpoint", 1


@dataclass(frozen=True)
class CheckpointInfo:
    """What `clara.json` says. `ratio` is the default one; `table_rows` is set where the embedding
    table was resized (released checkpoints) and its added rows are kept in memory.safetensors."""

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

    @property
    def origin(self) -> str | None:
        """Where a released checkpoint came from, however long ago; None for this program's own."""
        return self.provenance[0].get("origin") if self.provenance else None

    def slots(self, ratio: int | None) -> int:
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
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"{file}: {error.strerror}", "is this a checkpoint folder?") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{file}: not JSON: {error}", "restore the file from a copy") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ArtefactError(f"{file}: not a clara checkpoint", "is this another program's file?")
    if raw.get("version") != VERSION:
        raise ArtefactError(
            f"{file}: format version {raw.get('version')!r}, this clara reads {VERSION}",
            "upgrade clara, or make the checkpoint again",
        )
    try:
        backbone = raw["backbone"]
        info = CheckpointInfo(
            backbone=backbone["name"],
            revision=backbone["revision"],
            backbone_digest=backbone["digest"],
            max_passage_tokens=raw["max_passage_tokens"],
            memory_tokens=raw["memory_tokens"],
            ratio=raw["ratio"],
            ratios=tuple(raw["ratios"]),
            lora=LoraSettings(**{**raw["lora"], "targets": _frozen(raw["lora"]["targets"])}),
            roles=tuple(raw["roles"]),
            prompt_version=raw["prompt_version"],
            stage=raw["stage"],
            provenance=tuple(raw["provenance"]),
            licence=raw["licence"],
            markers=Markers(**{k: _frozen(v) for k, v in raw["markers"].items()}),
            table_rows=raw["table_rows"],
            fingerprint=raw["fingerprint"],
        )
        _check(info)
    except (KeyError, TypeError, ValueError) as error:
        message = f"{file}: bad or missing field: {error}"
        raise ArtefactError(message, "restore the file from a copy") from error
    return info


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(info: CheckpointInfo) -> None:
    for name in ("max_passage_tokens", "memory_tokens", "ratio"):
        value = getattr(info, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}")
    for ratio in (info.ratio, *info.ratios):
        slots = info.max_passage_tokens // ratio if type(ratio) is int and ratio > 0 else 0
        if not 1 <= slots <= info.memory_tokens:
            raise ValueError(f"ratio {ratio!r} with {info.memory_tokens} memory tokens")
    if not info.roles or set(info.roles) - set(ROLES):
        raise ValueError(f"roles are {info.roles!r}")
    if info.prompt_version != PROMPT_VERSION:
        raise ValueError(f"prompt_version is {info.prompt_version!r}, not {PROMPT_VERSION!r}")
    if not all(isinstance(v, str) for v in (info.backbone, info.fingerprint, info.stage)):
        raise ValueError("backbone name, fingerprint and stage are strings")


def describe(info: CheckpointInfo) -> dict[str, Any]:
    """`clara.json` as a dictionary."""
    fields = asdict(info)
    backbone = {
        "name": fields.pop("backbone"),
        "revision": fields.pop("revision"),
        "digest": fields.pop("backbone_digest"),
    }
    return {"format": FORMAT, "version": VERSION, "backbone": backbone, **fields}
