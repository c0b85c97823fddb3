"""A set of strings whose memory does not grow: a private temporary SQLite table, on the disk once
it outgrows its cache, gone when the process ends. Knows nothing of what the strings mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from clara_cli.errors import ClaraError

_CACHE_KIB = 256


class DiskSet:
    """Strings, each once. One thread at a time may use it, not always the same one."""

    def __init__(self) -> None:
        # an empty name is a temporary database that nobody else can open
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._table.execute(f"PRAGMA {setting}")
        self._table.execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._length = 0

    def add(self, key: str) -> bool:
        """Take a key in; whether it was new. Raises ClaraError where the disk is full."""
        try:
            new = self._table.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,)).rowcount == 1
        except sqlite3.OperationalError as error:
            message = f"the temporary folder does not take the keys of what was read: {error}"
            raise ClaraError(message, "make room in it, or set SQLITE_TMPDIR to another") from error
        self._length += new
        return new

    def __contains__(self, key: str) -> bool:
        cursor = self._table.execute("SELECT 1 FROM keys WHERE key = ?", (key,))
        return cursor.fetchone() is not None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        """The keys, sorted."""
        for (key,) in self._table.execute("SELECT key FROM keys"):
            yield key
