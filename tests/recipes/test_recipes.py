"""Every recipe parses, says what runs before it, is taken by its command, and runs."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest

from clara_cli.cli.app import app
from clara_cli.commands import pretrain, train
from clara_cli.config import PretrainConfig, TrainConfig
from clara_cli.config.fields import read_recipe, with_recipe
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.checkpoint import read_info
from clara_cli.records import NullReport

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
        "clara_cli.cli.app._run", lambda name, config, **_: taken.append((name, config))
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


# --- each is run ---

MODELS = sorted({recipe.parent.name for recipe in RECIPES if (recipe.parent / "scp.toml").exists()})
QUICK = {"steps": 2, "batch_size": 2, "micro_batch": 2, "device": "cpu", "dtype": "float32"}


def data(folder: Path) -> tuple[Path, Path]:
    """Two pairs of each kind, and two questions with pools of six."""
    towns = [("Elmgate", "Nora"), ("Quarrel", "Max"), ("Redwater", "Lia")]
    texts = [f"The mayor of {town} is {name}." for town, name in towns]
    pairs = [
        {"data_type": "qa", "question": ["Who?"], "answers": ["Nora"], "docs": [texts[0]]},
        {"data_type": "paraphrase", "question": [], "answers": ["Max leads."], "docs": [texts[1]]},
    ]
    pool = [{"text": text, "gold": n == 0} for n, text in enumerate(texts * 2)]
    asked = [{"question": f"Who {n}?", "answers": ["Nora"], "paragraphs": pool} for n in range(2)]
    files = folder / "pairs.jsonl", folder / "questions.jsonl"
    for file, records in zip(files, (pairs, asked), strict=True):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


@pytest.mark.parametrize("model", MODELS)
def test_the_recipes_of_a_model_run_one_after_the_other(model, tiny_backbone, tmp_path):
    """Two steps of every stage at the recipe's own settings, but two examples a step, each from the
    checkpoint its header names."""
    pairs, questions = data(tmp_path)
    for stage in ("scp", "instruct", "retrieval", "e2e"):
        recipe = ROOT / "recipes" / model / f"{stage}.toml"
        values = {**read_recipe(recipe), **QUICK, "out": tmp_path / stage}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if stage == "scp":
            config = PretrainConfig(pairs=(str(pairs),), backbone=str(tiny_backbone), **values)
            done = pretrain.run(config, NullReport())
        else:
            before = Path(header(recipe, "before")[0]).stem
            init = str(tmp_path / before)
            config = TrainConfig(questions=(str(questions),), stage=stage, init=init, **values)
            done = train.run(config, NullReport())
        assert done.steps == 2 and math.isfinite(done.ce) and done.ce > 0
        info = read_info(tmp_path / stage / "checkpoint")
        assert info.stage == stage and info.lora == LoraSettings(16, 32, info.lora.dropout)
