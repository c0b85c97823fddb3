"""Documents asked about without a corpus of their own: where the user's cache keeps their memory,
named by what they hold and who compresses them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from clara_cli.corpus.sources import list_sources
from clara_cli.errors import UsageError

KEY_LETTERS = 20


def cache_folder() -> Path:
    """$CLARA_CACHE, else the platform's cache folder for `clara`."""
    from platformdirs import user_cache_path

    named = os.environ.get("CLARA_CACHE")
    return Path(named) if named else user_cache_path("clara", appauthor=False)


def cached_corpus(documents: Sequence[str], maker: Sequence[str | None]) -> Path:
    """Where the corpus of these files and folders lies, or will: its name covers their names within
    their folders, their bytes, and the `maker`, all that decides their memory beside them.

    Raises:
        UsageError: for a path that does not exist or cannot be read, or stdin.
    """
    if "-" in documents:
        raise UsageError("documents from stdin cannot be kept", "name a file or folder")
    digest = hashlib.sha256(json.dumps(list(maker)).encode())
    for source in list_sources(documents):
        try:
            with source.path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            hint = "check the file's permissions"
            raise UsageError(f"{source.name}: {error.strerror}", hint) from error
        digest.update(json.dumps([source.label, found]).encode())
    return cache_folder() / "corpora" / f"{digest.hexdigest()[:KEY_LETTERS]}.clara"
