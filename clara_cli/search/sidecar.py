"""How an index keeps its files: written whole or not at all, described by a JSON file with sums.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clara_cli.errors import ArtefactError, ClaraError

REBUILD = "build it again: clara index CORPUS"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into one ClaraError naming the folder, which is made; what a killed
    process left half written there goes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()
        yield
    except OSError as error:
        message = f"{error.filename or folder}: cannot be written: {error.strerror or error}"
        raise ClaraError(message, "free some space, or make the corpus writable") from error


def save_file(path: Path, save: Callable[[str], object]) -> dict[str, Any]:
    """Let `save` write a temporary file, then rename it to `path`; returns its name, size and
    sum, as `check_file` reads them. On failure no file is left."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        save(str(temporary))
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = temporary.stat().st_size
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": path.name, "bytes": size, "sha256": digest}


def save_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all, the same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n"
    save_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def read_json(path: Path, form: str, version: int) -> dict[str, Any] | None:
    """A sidecar of the given format and version, None where there is none.
    Raises ArtefactError naming the file and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not readable: {error}", REBUILD) from error
    if not isinstance(value, dict) or value.get("format") != form:
        raise ArtefactError(f"{path}: not a {form} file", REBUILD)
    if value.get("version") != version:
        found = value.get("version")
        raise ArtefactError(f"{path}: version {found!r}, this program reads {version}", REBUILD)
    return value


def check_file(folder: Path, sidecar: Path, entry: Any, name: str) -> Path:
    """The path of the file an entry of `save_file` describes, which must be named `name`.
    Raises ArtefactError where it is missing or not the bytes recorded."""
    if not isinstance(entry, dict) or entry.get("file") != name:
        raise ArtefactError(f"{sidecar}: no record of {name}", REBUILD)
    path = folder / name
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}", REBUILD) from error
    if digest != entry.get("sha256"):
        raise ArtefactError(f"{path}: damaged, its SHA-256 is not the recorded one", REBUILD)
    return path


def field(sidecar: Path, value: dict[str, Any], key: str, kind: type) -> Any:
    """value[key], of exactly type `kind`; raises ArtefactError naming the key."""
    found = value.get(key)
    if type(found) is not kind:
        message = f"{sidecar}: key {key!r} is {str(found)[:60]!r}, not of type {kind.__name__}"
        raise ArtefactError(message, REBUILD)
    return found
