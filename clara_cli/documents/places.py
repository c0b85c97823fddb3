"""Where in a file a passage begins: a line, a page, a slide, a sheet, a section.

A passage's `source` has it behind the file's name: `notes.txt:12`, `report.pdf#page=3`,
`book.epub#section=The end`, `notes.md:12#section=Mayors`; `letter.docx` has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?P<file>.+):(?P<line>\d+)", re.DOTALL)
_PART = re.compile(
    r"(?P<file>.+?)(?::(?P<line>\d+))?#(?P<kind>page|slide|sheet|section)=(?P<name>.+)", re.DOTALL
)


@dataclass(frozen=True)
class Place:
    """A file, and where in it: a line (0 where it has none), a part by its kind and name, or both.
    All is empty where the source says nothing."""

    file: str = ""
    line: int = 0
    kind: str = ""
    name: str = ""

    @property
    def part(self) -> str:
        """`page 3`; empty for a line."""
        return f"{self.kind} {self.name}" if self.kind else ""

    def __str__(self) -> str:
        """`notes.txt:12`, `report.pdf page 3` or `notes.md:12 section Mayors`."""
        file = f"{self.file}:{self.line}" if self.line else self.file
        return f"{file} {self.part}" if self.kind else file


def place_of(source: str) -> Place:
    """The place that a passage's `source` names."""
    if part := _PART.fullmatch(source):
        return Place(part["file"], int(part["line"] or 0), part["kind"], part["name"])
    if line := _LINE.fullmatch(source):
        return Place(line["file"], int(line["line"]))
    return Place(source)
