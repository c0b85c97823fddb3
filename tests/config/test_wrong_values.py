"""Recipes, device maps and settings of any depth and size: one error each, never a fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from clara_cli.config.fields import option, setting, with_recipe
from clara_cli.core.placement import read_map
from clara_cli.core.released import read_config
from clara_cli.errors import ArtefactError, UsageError

DEEP = {"recipe": "steps = " + "[" * 5_000 + "]" * 5_000, "json": "[" * 100_000}
NINES = "9" * 5_000


@dataclass(frozen=True)
class Config:
    """A config of one setting of each kind."""

    steps: int | None = setting("Steps.", None)
    rate: float = setting("Rate.", 0.1)
    ratios: tuple[int, ...] = setting("Ratios.", ())
    recipe: Path | None = option("Recipe.", None)
    set: tuple[str, ...] = option("Settings.", ())


@pytest.mark.parametrize(
    "line",
    [
        DEEP["recipe"],
        f"steps = {NINES}",
        "steps = 9223372036854775808",
        "steps = -9223372036854775808",
        "rate = nan",
        "rate = -inf",
        f"rate = {'9' * 400}",
        "ratios = [4, 9223372036854775808]",
        "steps = 1979-05-27",
        "steps = {a = 1}",
        "ratios = [[4]]",
    ],
)
def test_a_recipes_wrong_value_is_one_error(tmp_path: Path, line: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(line)
    with pytest.raises(UsageError, match=r"r\.toml: ") as caught:
        with_recipe(Config(recipe=recipe))
    assert len(caught.value.message) < 300
    with pytest.raises(UsageError, match="--set: "):
        with_recipe(Config(set=(line.replace(" = ", "=", 1),)))


@pytest.mark.parametrize("text", [DEEP["json"], NINES, "{", "[]", "{}", '{"a": {"b": 1}}', "\xff"])
def test_a_device_maps_wrong_value_is_one_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "map.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"--device-map .*map\.json: "):
        read_map(str(file))


@pytest.mark.parametrize(
    "text",
    [
        *(DEEP["json"], NINES, "[]", "{}", '{"doc_max_length": true}'),
        '{"doc_max_length": 256, "compr_rate": 16, "lora_r": ' + "9" * 4_000 + "}",
        '{"doc_max_length": 256, "compr_rate": 16.0, "lora_r": 16}',
        '{"doc_max_length": 256, "compr_rate": 512, "lora_r": 16}',
    ],
)
def test_a_released_configs_wrong_value_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"config\.json: ") as caught:
        read_config(tmp_path / "config.json")
    assert len(caught.value.message) < 400
