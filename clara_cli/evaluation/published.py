"""Figures that papers report, from published.json beside this file: percentages, each with its
source and table. Another corpus and model than anything measured here.
"""

from __future__ import annotations

import json
from pathlib import Path

from clara_cli.records import PublishedRow

_FILE = Path(__file__).with_name("published.json")


def rows(dataset: str) -> tuple[PublishedRow, ...]:
    """The figures of one dataset (told by the beginning of a file's name), else all of them."""
    every = [PublishedRow(**entry) for entry in json.loads(_FILE.read_text(encoding="utf-8"))]
    known = {row.dataset for row in every}
    name = Path(dataset).name.lower()
    about = [row for row in every if any(row.dataset == k and name.startswith(k) for k in known)]
    return tuple(about or every)
