"""Hashes of files that are one document each, taken before they are read: a file whose hash is
recorded with its document need not be read again."""

from __future__ import annotations

import os
from pathlib import Path

from clara_cli.documents.listing import NEEDS, Source
from clara_cli.records import Document
from clara_cli.storage.files import sha256_bytes, sha256_file


class FileHashes:
    """The hashes of the files of a run; `encoding` is how they are read."""

    def __init__(self, encoding: str | None) -> None:
        self._encoding = encoding
        self._hashes: dict[tuple[str, str], tuple[str, Path, os.stat_result]] = {}

    def hash(self, source: Source) -> str | None:
        """A hash of a file's bytes and of how they are read, None for files of several documents
        and for those that cannot be read."""
        if source.url or (source.kind != "text" and source.kind not in NEEDS):
            return None
        try:
            before = source.path.stat()
            digest = sha256_bytes(f"{self._encoding} {sha256_file(source.path)}".encode())[:32]
        except OSError:  # reading it will tell
            return None
        self._hashes[source.input, source.label] = digest, source.path, before
        return digest

    def note(self, source: Source) -> bool:
        """Take the hash of a file that is about to be read, as any file is."""
        self.hash(source)
        return False

    def of(self, document: Document) -> str:
        """The hash of the file that a document is all of; empty where there is none, or somebody
        wrote to the file meanwhile. It is forgotten then."""
        if not document.is_file:
            return ""
        taken = self._hashes.pop((document.input, document.label), None)
        return taken[0] if taken and _is_as_it_was(*taken[1:]) else ""


def _is_as_it_was(path: Path, before: os.stat_result) -> bool:
    try:
        after = path.stat()
    except OSError:
        return False
    same = ("st_mtime_ns", "st_size", "st_ino")
    return all(getattr(before, name) == getattr(after, name) for name in same)
