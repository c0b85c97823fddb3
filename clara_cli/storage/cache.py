"""Where the user's cache lies."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$CLARA_CACHE, else the platform's cache folder for `clara`."""
    from platformdirs import user_cache_path

    named = os.environ.get("CLARA_CACHE")
    return Path(named) if named else user_cache_path("clara", appauthor=False)
