"""The table of backbones says what its script finds."""

from __future__ import annotations

import pytest
from helpers.tiny_kinds import FOLDER, try_kinds

TABLE = [line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]


def test_the_table_has_every_kind_once():
    assert [line.split("`")[1] for line in TABLE] == list(try_kinds.KINDS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split("`")[1])
def test_a_kind_is_as_the_table_says(row):
    assert try_kinds.row(row.split("`")[1]) == row
