"""The table of backbones says what its script finds."""

from __future__ import annotations

import pytest
from helpers.tiny_kinds import TABLE, try_kinds


def test_the_table_has_every_kind_once():
    assert [line.split("`")[1] for line in TABLE] == list(try_kinds.KINDS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.split("`")[1])
def test_a_kind_is_as_the_table_says(row):
    assert try_kinds.row(row.split("`")[1]) == row


@pytest.mark.parametrize("kind", ["llama", "rwkv"])
def test_prompts_get_the_same_answers_together_as_alone_in_float32(kind):
    assert try_kinds.equal_share(kind, "float32") == 1.0
    cells = try_kinds.share_row(kind).split("|")
    assert cells[1:3] == [f" `{kind}` ", " 1.00 "] and 0.5 <= float(cells[3]) <= 1


def test_a_kind_that_cannot_be_read_has_no_share():
    assert try_kinds.share_row("bamba") == "| `bamba` |  |  |"
