"""Figures that papers report, from published.json beside this file: percentages, each with its
source and table. Another corpus and model than anything measured here.
"""

from __future__ import annotations

import json
from pathlib import Path

from clara_cli.bench_records import PublishedRow

_FILE = Path(__file__).with_name("published.json")
AVERAGE = "average"


def rows(dataset: str | None = None) -> tuple[PublishedRow, ...]:
    """The figures of one data set (recognised by the beginning of a file's name) with the
    average over all, else every figure; in the order of the papers' tables."""
    file = json.loads(_FILE.read_text(encoding="utf-8"))
    name = "" if dataset is None else Path(dataset).name.lower()
    wanted = [each for each in file["datasets"] if name.startswith(each)]
    wanted = [*wanted, AVERAGE] if wanted else file["datasets"]
    published = []
    for table in file["tables"]:
        for system, ratio, *values in table["rows"]:
            by_dataset = dict(zip(file["datasets"], values, strict=True))
            kept = {key: by_dataset[key] for key in wanted if by_dataset[key] is not None}
            if kept:
                row = PublishedRow(system, ratio, table["metric"], kept, table["source"])
                published.append(row)
    return tuple(published)
