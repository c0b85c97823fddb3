"""Lines written one by one into a gzip file that is whole or not there."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import IO

from clara_cli.storage import files
from clara_cli.storage.errors import cannot_write

_LEVEL = 6


class PackedLines:
    """Writes lines to a temporary file of a folder inside an artefact; the same lines give the same
    bytes. Either `finish` or `discard` ends it."""

    def __init__(self, folder: Path, name: str) -> None:
        """Begin, in `folder / name`, which is made. Raises ClaraError."""
        files.make_folder(folder, name)
        self._folder, self._name = folder, f"{name}/{files.TEMPORARY}{os.getpid()}-lines"
        self._path = files.inside(folder, self._name)
        try:
            self._file: IO[bytes] | None = self._path.open("wb")
            self._packed = gzip.GzipFile("", "wb", _LEVEL, self._file, mtime=0)
        except OSError as error:
            cannot_write(self._path, 0, error)

    def write(self, line: str) -> None:
        """Write a line. Raises ClaraError."""
        try:
            self._packed.write(f"{line}\n".encode())
        except OSError as error:
            cannot_write(self._path, 0, error)

    def finish(self) -> tuple[str, int]:
        """Put the file on the disk; its SHA-256 and its bytes. Raises ClaraError."""
        assert self._file is not None, "neither finished nor discarded"
        try:
            self._packed.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            return files.sha256_file(self._path), self._path.stat().st_size
        except OSError as error:
            cannot_write(self._path, 0, error)

    def place(self, name: str) -> None:
        """Give the finished file its name in the artefact. Raises ClaraError."""
        files.rename(self._folder, self._name, name)

    def discard(self) -> None:
        """Leave nothing of the file, unless it has its name."""
        if self._file is not None:
            self._packed.close()
            self._file.close()
            self._file = None
        files.remove(self._folder, self._name)
