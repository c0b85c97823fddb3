"""The table of backbones says what its script finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "recipes" / "backbones"
spec = importlib.util.spec_from_file_location("try_kinds", FOLDER / "try_kinds.py")
try_kinds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(try_kinds)
TABLE = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]


def test_the_table_has_every_kind_once():
    assert [line.split("`")[1] for line in TABLE] == list(try_kinds.KINDS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split("`")[1])
def test_a_kind_is_as_the_table_says(row):
    assert try_kinds.row(row.split("`")[1]) == row
