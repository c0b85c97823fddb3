"""The scripts of recipes/backbones, which make a tiny backbone of every kind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "recipes" / "backbones"


def module(name: str):
    """One of the scripts."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


kinds, try_kinds = map(module, ("kinds", "try_kinds"))

TABLE = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]
READ = [line.split("`")[1] for line in TABLE if "| passes" in line]
