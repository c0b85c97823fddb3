"""The rivals' recipe: its table is the program's, its workers and commands are there."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from clara_cli.cli.app import app
from clara_cli.evaluation.rivals.registry import BY_NAME, parse_systems

RECIPE = Path(__file__).parents[2] / "recipes" / "rivals"
README = (RECIPE / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_the_programs() -> None:
    table = runpy.run_path(str(RECIPE / "table.py"))["table"]()
    assert table in README, "run python recipes/rivals/table.py"
    assert all(f"`{name}" in table for name in BY_NAME)


def test_every_worker_it_names_is_there_and_none_is_left_out() -> None:
    named = set(re.findall(r"^\| `(\w+\.py)`", README, re.M))
    assert named | {"protocol.py"} == {path.name for path in (RECIPE / "workers").glob("*.py")}


def test_its_bench_commands_are_ones_the_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara_cli.cli.app._run", lambda *_, **__: None)
    commands = [shlex.split(line) for line in README.splitlines() if line.startswith("clara ")]
    assert len(commands) >= 4
    for words in commands:
        with pytest.raises(SystemExit) as left:
            app(words[1:])
        assert left.value.code == 0, words
        if "--system" in words:
            assert parse_systems(words[words.index("--system") + 1])
