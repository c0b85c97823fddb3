"""Which files of a finished corpus are damaged, and the command that repairs just those.

Knows no tensors and no indexes.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from clara_cli.corpus.manifest import Identity, Part, read_manifest
from clara_cli.corpus.store import verify
from clara_cli.printable import shell_word

_ANEW = "clara compress DOCUMENTS --out ANOTHER.clara"
_FLAGS = ("split", "overlap", "shard_size", "batch_tokens", "load_in")
_USUAL: dict[str, Any] = {
    "load_in": None,
    "split": "sentences",
    "overlap": 0,
    "shard_size": 1024,
    "batch_tokens": 8192,
}


def repairs(folder: Path) -> dict[str, list[str]]:
    """Every damaged file, as `file: what`, under the command that writes it again: a part's own,
    which computes its damaged shards and leaves the others; of a corpus that was edited, which no
    command makes again, one that makes another. {} where all is well.

    Raises ArtefactError where there is no readable manifest.
    """
    damaged = verify(folder)
    manifest = read_manifest(folder)
    if manifest and manifest.edits.times and damaged:
        given = list(dict.fromkeys(one for part in manifest.parts for one in part.origins))
        anew = f"{_ANEW} (it was made of {', '.join(given)})" if given else _ANEW
        return {anew: [f"{item.file}: {item.what}" for item in damaged]}
    found: dict[str, list[str]] = {}
    for number, part in enumerate(manifest.parts if manifest else ()):
        shards = [manifest.shards[n] for n in manifest.shards_of(number)] if manifest else []
        names = {name for shard in shards for name in (shard.memory, shard.passages)}
        names |= {part.documents.file} if part.documents else set()
        what = [f"{item.file}: {item.what}" for item in damaged if item.file in names]
        if what and manifest:
            place = "--append --into" if number else "--out"
            found[_command(manifest.identity, part, f"{place} {shell_word(folder)}")] = what
    return found


def _command(identity: Identity, part: Part, place: str) -> str:
    """The command that made a part: its words, and every option that is not as usual."""
    words: list[Any] = ["clara", "compress", *(part.inputs or ["DOCUMENTS"])]
    words += ["--ratio", identity.ratio]
    if model := identity.checkpoint.get("model"):
        words += ["--model", model]
    for name in _FLAGS:
        if identity.options.get(name, _USUAL[name]) != _USUAL[name]:
            words += ["--" + name.replace("_", "-"), identity.options[name]]
    words += [] if identity.options.get("title", True) else ["--no-title"]
    words += [] if identity.text else ["--no-text"]
    words += ["--store-dtype", identity.dtype]
    words += ["--dtype", identity.compute_dtype] if identity.compute_dtype != "auto" else []
    return f"{shlex.join(map(str, words))} {place}"
