"""The user's cache: where it lies, and that nobody else reads it (folders 0700, files 0600)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from clara_cli.storage.files import make_folder


def cache_folder() -> Path:
    """$CLARA_CACHE, else the platform's cache folder for `clara`."""
    from platformdirs import user_cache_path

    named = os.environ.get("CLARA_CACHE")
    return Path(named) if named else user_cache_path("clara", appauthor=False)


def private_folder(name: str) -> Path:
    """A folder of the cache, made if need be, that only the user may enter. Raises ClaraError."""
    with private():
        folder = make_folder(cache_folder(), name)
    own = [folder] if os.environ.get("CLARA_CACHE") else [cache_folder(), folder]
    for path in own:  # those of earlier versions
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o077:
                path.chmod(0o700)
    return folder


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Make what is written meanwhile, by any thread, the user's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
