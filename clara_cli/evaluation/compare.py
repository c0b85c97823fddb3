"""Two finished runs against each other: paired tests on the questions and rows they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clara_cli.bench_records import CompareResult, Comparison
from clara_cli.errors import ArtefactError, DataError
from clara_cli.evaluation.metrics import mean, permutation_p
from clara_cli.evaluation.predictions import PREDICTIONS, Line, read_lines
from clara_cli.evaluation.scores import paired, per_answer

RowKey = tuple[str, int | None]
_HINT = "give two folders that clara bench --out wrote"


def compare_runs(first: Path, second: Path, seed: int) -> CompareResult:
    """Every row both runs have, by every answer score.

    Raises:
        ArtefactError: for a folder without predictions, or two without a row in common.
        DataError: where the same question has other gold answers.
    """
    a, b = _rows(first), _rows(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise ArtefactError(f"{first} and {second} have no system and ratio in common", _HINT)
    comparisons = []
    for key in shared:
        ids = [number for number in a[key] if number in b[key]]
        if not ids:
            what = f"{first} and {second} have no question of {key[0]} in common"
            raise ArtefactError(what, _HINT)
        lines = [[run[key][number] for number in ids] for run in (a, b)]
        for one, two in zip(*lines, strict=True):
            if one["golden_answers"] != two["golden_answers"]:
                what = f"question {one['id']!r} has other gold answers in {second} than in {first}"
                raise DataError(what, "compare runs over the same data")
        comparisons += _compare_rows(key, lines, seed)
    return CompareResult(str(first), str(second), tuple(comparisons))


def _compare_rows(key: RowKey, lines: Sequence[Sequence[Line]], seed: int) -> list[Comparison]:
    one, two = (per_answer(run) for run in lines)
    comparisons = []
    for metric in one:
        first, second = paired(one[metric], two[metric])
        if first:
            p = permutation_p(first, second, seed)
            comparisons.append(Comparison(*key, metric, len(first), mean(first), mean(second), p))
    return comparisons


def _rows(folder: Path) -> dict[RowKey, dict[tuple[str, int], Line]]:
    """Lines by row, then by question id and how often it came before."""
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ArtefactError(f"{folder}: no {PREDICTIONS} in it", _HINT)
    rows: dict[RowKey, dict[tuple[str, int], Line]] = {}
    seen: dict[tuple[RowKey, str], int] = {}
    for line in read_lines(folder, PREDICTIONS):
        key = (line["system"], line["ratio"])
        again = seen[key, line["id"]] = seen.get((key, line["id"]), -1) + 1
        rows.setdefault(key, {})[line["id"], again] = line
    if not rows:
        raise DataError(f"{path}: no predictions in it", "run clara bench again with this --out")
    return rows
