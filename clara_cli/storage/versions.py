"""Files that belong together and are replaced at once, beside readers: an index.

One small file describes them, with the sum of each, and names the folder they lie in. New ones are
written into a folder of their own, named after what they hold; then the description is replaced;
then the folder before goes. A reader whose files went meanwhile reads the description again. A
description that names no folder is of an earlier layout: its files lie beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from clara_cli.errors import ArtefactError
from clara_cli.storage import artefact, files
from clara_cli.storage.artefact import Fields
from clara_cli.storage.cache import private
from clara_cli.storage.remote_folder import RemoteFolder

Opened = TypeVar("Opened")

_NAME = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"\w[\w.-]{0,60}")
_MOST_DESCRIPTION = 2**30  # bytes of one at a URL: it may list a vocabulary


@dataclass(frozen=True)
class Version:
    """What a description says, and the folder of its files."""

    fields: Fields
    folder: Path

    def file(self, key: str, name: str) -> Path:
        """The file that `save_file` described under a key, which must be named so. Raises
        ArtefactError where it is missing or not the bytes recorded."""
        entry, path = self.fields.object(key), self.folder / name
        if entry.get("file", str) != name:
            raise entry.wrong("file", f"{entry.values['file'][:60]!r}, not {name!r}")
        try:
            digest = files.sha256_file(path)
        except OSError as error:
            raise ArtefactError(f"{path}: {error.strerror}", self.fields.hint) from error
        if digest != entry.get("sha256", str):
            message = f"{path}: damaged, its SHA-256 is not the recorded one"
            raise ArtefactError(message, self.fields.hint)
        return path


def save_file(folder: Path, name: str, save: Callable[[str], object]) -> dict[str, Any]:
    """Write one file of a new version, and describe it: name, bytes, sum. Raises ClaraError."""
    path = files.save_file(folder, name, save)
    return {"file": name, "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}


def publish(
    root: Path,
    place: str,
    description: str,
    names: Sequence[str],
    fill: Callable[[Path], dict[str, Any]],
) -> int:
    """Replace the version at `root / place`, which the file `description` there describes: `fill`
    writes the new files, of these names, into the folder it is given, and returns what to say of
    them. Returns the bytes of all. A failure leaves the version before; raises ClaraError."""

    def at(*names: str) -> str:
        return str(PurePath(place, *names))

    files.make_folder(root, place)
    files.remove_temporaries(root, place)
    work = f"{files.TEMPORARY}{os.getpid()}-version"
    try:
        described = fill(files.make_folder(root, at(work)))
        version = files.sha256_bytes(artefact.encode(described))[:16]
        if (root / at(version)).is_dir():  # of the same bytes, unless damaged
            for path in sorted((root / at(work)).iterdir()):
                files.rename(root, at(work, path.name), at(version, path.name))
        else:
            files.rename(root, at(work), at(version))
        encoded = artefact.encode({**described, "folder": version})
        files.write_atomic(root, at(description), encoded)
    finally:
        files.remove_tree(root, at(work))
    _remove_others(root, place, names, version)
    return len(encoded) + sum(path.stat().st_size for path in (root / at(version)).iterdir())


def copy_remote(remote: RemoteFolder, place: str, description: str, hint: str) -> None:
    """Copy the version published in a folder at a URL, the description last; where there is none,
    have none here. Raises ArtefactError."""
    name = f"{place}/{description}"
    data = remote.read(name, _MOST_DESCRIPTION)
    if data is None:
        files.remove(remote.local, name)
        return
    fields = artefact.fields_of(data, f"{remote.url}/{name}", hint)
    folder = _folder(Path(place), fields).as_posix()
    for key, value in fields.values.items():
        if isinstance(value, dict) and "sha256" in value:
            entry = fields.object(key)
            if not _FILE.fullmatch(file := entry.get("file", str)):
                raise entry.wrong("file", f"{file[:60]!r}, not the name of a file")
            remote.copy(f"{folder}/{file}", entry.get("sha256", str), entry.count("bytes"))
    with private():
        files.write_atomic(remote.local, name, data)


def withdraw(root: Path, place: str, description: str, names: Sequence[str]) -> None:
    """Leave no version. Raises ClaraError."""
    files.remove(root, str(PurePath(place, description)))
    _remove_others(root, place, names)


def _remove_others(root: Path, place: str, names: Sequence[str], kept: str = "") -> None:
    for name in names:  # an earlier layout's
        files.remove(root, str(PurePath(place, name)))
    for path in sorted((root / place).glob("*")):
        if _NAME.fullmatch(path.name) and path.name != kept:
            files.remove_tree(root, str(PurePath(place, path.name)))


def read(
    folder: Path,
    description: str,
    form: tuple[str, int],
    hint: str,
    use: Callable[[Version], Opened],
    older: Sequence[int] = (),
) -> Opened | None:
    """What `use` makes of the version published in a folder, None where there is none, or one of an
    `older` form; called again with the next version where this one is replaced meanwhile.

    Raises ArtefactError where the description is not of this format and version, and as `use` does.
    """
    path = folder / description
    while (data := artefact.read_bytes(path, hint)) is not None:
        fields = artefact.fields_of(data, path, hint)
        artefact.check_form(fields, form[0], (form[1], *older))
        if fields.values["version"] in older:
            return None
        try:
            return use(Version(fields, _folder(folder, fields)))
        except ArtefactError:
            if artefact.read_bytes(path, hint) == data:
                raise
    return None


def _folder(folder: Path, fields: Fields) -> Path:
    if "folder" not in fields.values:
        return folder
    if not _NAME.fullmatch(name := fields.get("folder", str)):
        raise fields.wrong("folder", f"{name[:60]!r}, not the name of a version")
    return folder / name
