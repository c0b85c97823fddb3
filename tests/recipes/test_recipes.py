"""Every recipe parses, says what runs before it, and its command is one the program takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from clara_cli.app import app
from clara_cli.config import PretrainConfig, TrainConfig
from clara_cli.fields import read_recipe, with_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/*.toml"))


def header(recipe: Path, word: str) -> list[str]:
    lines = recipe.read_text().splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(f"# {word}:")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recipe_is_taken_by_its_own_command(recipe, monkeypatch):
    (command,) = header(recipe, "run")
    words = shlex.split(command)
    assert words[0] == "clara" and str(recipe.relative_to(ROOT)) in words
    taken = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        "clara_cli.app._run", lambda name, config, **_: taken.append((name, config))
    )
    with pytest.raises(SystemExit) as left:
        app(words[1:])
    assert left.value.code == 0
    (name, config), values = taken[0], read_recipe(recipe)
    assert isinstance(config, PretrainConfig if name == "pretrain" else TrainConfig)
    for key, value in values.items():
        found = getattr(config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
    assert with_recipe(config) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_runs_before_a_recipe_exists(recipe):
    for before in header(recipe, "before"):
        named = [word for word in shlex.split(before) if word.startswith("recipes/")]
        assert named and all((ROOT / word).exists() for word in named)
