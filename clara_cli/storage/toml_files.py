"""TOML read: text, and files that a user names. Knows no keys."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from clara_cli.storage.file_kinds import read_user_file


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as a table. Raises ValueError where it is none, or nested too deeply."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table. Raises OSError where it cannot be read or is no file, ValueError
    where it is no TOML."""
    return parse_toml(read_user_file(path).decode())
