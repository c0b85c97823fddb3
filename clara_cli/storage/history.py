"""Histories: files of JSON lines that only grow, so that a killed run can go on.

A process that dies while it writes leaves half a line: it is never read, and cut off before more is
written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clara_cli.errors import ArtefactError
from clara_cli.storage.artefact import Fields, fields_of
from clara_cli.storage.file_kinds import open_file
from clara_cli.storage.files import append, truncate


class History:
    """One file of them; `hint` is what mends a line that is damaged."""

    def __init__(self, folder: Path, name: str, hint: str) -> None:
        self.folder, self.name, self.hint = folder, name, hint
        self.path = folder / name

    def lines(self) -> Iterator[Fields]:
        """Every whole line, one at a time; none where there is no file. Raises ArtefactError
        naming a line that is no JSON object."""
        try:
            with open_file(self.path) as stream:
                for number, line in enumerate(stream, 1):
                    if not line.endswith(b"\n"):
                        return
                    yield fields_of(line, f"{self.path}:{number}", self.hint)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> ArtefactError:
        return ArtefactError(f"{self.path}: not readable: {error.strerror}", self.hint)

    def keep(self, count: int) -> None:
        """Keep the first `count` lines and nothing else. Raises ClaraError."""
        if not self.path.exists():
            return
        try:
            with open_file(self.path) as stream:
                size = sum(len(stream.readline()) for _ in range(count))
        except OSError as error:
            raise self._unreadable(error) from error
        truncate(self.folder, self.name, size)

    def append(self, records: Iterable[Mapping[str, Any]], sync: bool = True) -> None:
        """Add a line for each record; they are on the disk (`sync`) when this returns. Raises
        ClaraError."""
        append(self.folder, self.name, b"".join(map(encode_line, records)), sync)


def encode_line(record: Mapping[str, Any]) -> bytes:
    """A record as its line; letters as they are wherever UTF-8 has them."""
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate in the data
        return (json.dumps(record) + "\n").encode()
