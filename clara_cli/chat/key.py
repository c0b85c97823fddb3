"""An API key kept out of everything that is said or written.

A server that was sent the key may repeat it, whole or in part, in a refusal or in a reply. Knows no
servers and no files.
"""

from __future__ import annotations

import re
from typing import Any

IN_REFUSALS, IN_LINES = 4, 8  # characters of the key in a row that are cut out
HIDDEN = "***"


class KeyGuard:
    """Cuts a key, and longer parts of it, out of text; without a key, text stays as it is."""

    def __init__(self, key: str | None) -> None:
        self._key = key or ""

    def refusal(self, text: str) -> str:
        """What a server says of its refusal: parts of 4 characters go, as in `sk-a***wxyz`."""
        return self._cut(text, IN_REFUSALS)

    def line(self, record: dict[str, Any], given: frozenset[str]) -> dict[str, Any]:
        """A record for a file, as a copy: parts of 8 characters go from every string, or a shorter
        key where it stands whole, except under the names in `given`, which no server wrote."""
        return {
            name: value if name in given else self._cut_all(value) for name, value in record.items()
        }

    def _cut_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._cut(value, IN_LINES)
        if isinstance(value, list | tuple):
            return [self._cut_all(item) for item in value]
        if isinstance(value, dict):
            return {name: self._cut_all(item) for name, item in value.items()}
        return value

    def _cut(self, text: str, length: int) -> str:
        key = self._key.casefold()
        length = min(length, len(key))
        if not length:
            return text
        parts = {key[at : at + length] for at in range(len(key) - length + 1)}
        pattern = f"(?=({'|'.join(map(re.escape, sorted(parts)))}))"
        kept, end = "", 0
        for match in re.finditer(pattern, text, re.IGNORECASE | re.ASCII):
            if not end or match.start() > end:  # else it goes on with the part before
                kept += text[end : match.start()] + HIDDEN
            end = match.start() + length
        return kept + text[end:]
