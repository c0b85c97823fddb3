"""Figures that papers report, from published.json beside this file: percentages, each with its
source and table. Another corpus and model than anything measured here.
"""

from __future__ import annotations

import json
from pathlib import Path

from clara_cli.records import PublishedRow

_FILE = Path(__file__).with_name("published.json")
DATASETS = ("nq", "hotpotqa", "musique", "2wiki", "average")


def rows(dataset: str) -> tuple[PublishedRow, ...]:
    """The figures of one data set (told by the beginning of a file's name), else all of them; in
    the order of the papers' tables."""
    name = Path(dataset).name.lower()
    wanted = [known for known in DATASETS if name.startswith(known)] or DATASETS
    found: dict[tuple[str, str, str, int | None], dict[str, float]] = {}
    for entry in json.loads(_FILE.read_text(encoding="utf-8")):
        if entry["dataset"] in wanted:
            key = (entry["source"], entry["metric"], entry["system"], entry["ratio"])
            found.setdefault(key, {})[entry["dataset"]] = entry["value"]
    return tuple(
        PublishedRow(system, ratio, metric, values, source)
        for (source, metric, system, ratio), values in found.items()
    )
