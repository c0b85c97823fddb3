"""What an unfinished corpus remembers: its identity and the shards that are done.

`journal.json` has the identity and the shards known when the writing began (again);
`journal/NNNNN.jsonl` has a line for each shard that rank NNNNN finished since, so that a shard
costs one line whatever the corpus holds. Every key is checked. Knows no tensors and no locks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clara_cli.corpus import files, manifest
from clara_cli.corpus.manifest import Identity, Shard

JOURNAL, LINES = "journal.json", "journal"


@dataclass(frozen=True, slots=True)
class Journal:
    """The shards done so far. `extends` is the fingerprint of the finished corpus they are added
    to, empty for a new one."""

    identity: Identity
    shards: dict[int, Shard]
    extends: str


def write(folder: Path, identity: Identity, shards: Mapping[int, Shard], extends: str = "") -> None:
    """Begin (again): record all that is known in one file. Raises ClaraError."""
    done = {str(number): asdict(shard) for number, shard in sorted(shards.items())}
    data = {"format": "clara-journal", "version": manifest.VERSION, **asdict(identity)}
    encoded = manifest.encode({**data, "extends": extends, "shards": done})
    files.write_atomic(folder / JOURNAL, encoded)
    _remove_lines(folder)


def append(folder: Path, rank: int, number: int, shard: Shard) -> None:
    """Record one more shard; it is on the disk when this returns. Raises ClaraError."""
    line = json.dumps({"number": number, **asdict(shard)}, sort_keys=True) + "\n"
    files.make_folder(folder / LINES)
    files.append(folder / LINES / f"{rank:05d}.jsonl", line.encode())


def read(folder: Path) -> Journal | None:
    """What is known of an unfinished corpus, None where there is no journal.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / JOURNAL
    found = manifest.read_json(path, "clara-journal")
    if found is None:
        return None
    value, _ = found
    records = manifest.get(path, value, "shards", dict)
    if not all(name.isascii() and name.isdigit() for name in records):
        raise manifest.malformed(path, "shards", "its keys are not shard numbers")
    shards = {int(name): manifest.shard_of(path, r, int(name)) for name, r in records.items()}
    shards.update(_lines(folder))
    extends = manifest.get(path, value, "extends", str)
    return Journal(manifest.read_identity(path, value), shards, extends)


def _lines(folder: Path) -> Iterator[tuple[int, Shard]]:
    for path in sorted((folder / LINES).glob("*.jsonl")):
        *whole, torn = path.read_bytes().split(b"\n")  # a killed process leaves half a line
        for position, line in enumerate(whole, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise manifest.malformed(path, f"line {position}", str(error)) from error
            number = record.pop("number", None) if isinstance(record, dict) else None
            if type(number) is not int:
                raise manifest.malformed(path, f"line {position}", "no shard number")
            yield number, manifest.shard_of(path, record, number)


def remove(folder: Path) -> None:
    """Forget: the corpus is finished. Raises ClaraError."""
    files.remove(folder / JOURNAL)
    _remove_lines(folder)


def _remove_lines(folder: Path) -> None:
    if (folder / LINES).is_dir():
        for path in sorted((folder / LINES).iterdir()):
            files.remove(path)
        files.remove_folder(folder / LINES)
