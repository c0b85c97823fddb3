"""What an unfinished corpus remembers: its identity and the shards that are done.

`journal.json` has the identity and the shards known when the writing began (again);
`journal/NNNNN.jsonl` has a line for each shard that rank NNNNN finished since, so that a shard
costs one line whatever the corpus holds. Every key is checked. Knows no tensors and no locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clara_cli.corpus import manifest
from clara_cli.corpus.manifest import Identity, Shard
from clara_cli.storage import artefact, files
from clara_cli.storage.artefact import Fields
from clara_cli.storage.history import History

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
    data = {"format": "clara-journal", "version": identity.version, **asdict(identity)}
    encoded = artefact.encode({**data, "extends": extends, "shards": done})
    files.write_atomic(folder, JOURNAL, encoded)
    files.remove_tree(folder, LINES)


def append(folder: Path, rank: int, number: int, shard: Shard) -> None:
    """Record one more shard; it is on the disk when this returns. Raises ClaraError."""
    files.make_folder(folder, LINES)
    _history(folder, f"{rank:05d}.jsonl").append([{"number": number, **asdict(shard)}])


def read(folder: Path) -> Journal | None:
    """What is known of an unfinished corpus, None where there is no journal.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    path = folder / JOURNAL
    fields = artefact.read_object(path, manifest.REPAIR, "clara-journal", manifest.VERSIONS)
    if fields is None:
        return None
    records = fields.object("shards")
    if not all(name.isascii() and name.isdigit() for name in records.values):
        raise fields.wrong("shards", "its keys are not shard numbers")
    shards = {int(n): _shard(records.object(n), int(n)) for n in records.values}
    shards.update(_lines(folder))
    return Journal(manifest.read_identity(fields), shards, fields.get("extends", str))


def stored_identity(folder: Path) -> Identity | None:
    """What decides the bytes of a corpus, finished or not; None where there is none yet.

    Raises ArtefactError naming the file and the key where it is malformed.
    """
    stored = manifest.read_manifest(folder) or read(folder)
    return stored.identity if stored else None


def _lines(folder: Path) -> Iterator[tuple[int, Shard]]:
    for path in sorted((folder / LINES).glob("*.jsonl")):
        for fields in _history(folder, path.name).lines():
            number = fields.count("number")
            yield number, _shard(fields, number)


def _shard(fields: Fields, number: int) -> Shard:
    shard = manifest.shard_of(fields)
    if shard.number != number:
        raise fields.wrong("memory", f"{shard.memory!r}, of another shard than {number}")
    return shard


def _history(folder: Path, name: str) -> History:
    return History(folder, f"{LINES}/{name}", manifest.REPAIR)


def remove(folder: Path) -> None:
    """Forget: the corpus is finished. Raises ClaraError."""
    files.remove(folder, JOURNAL)
    files.remove_tree(folder, LINES)
