"""The settings of a backbone's config that decide what it computes, and whether two configs mean
the same. Knows no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clara_cli.core import loading
from clara_cli.errors import ArtefactError

# settings that say how a model is used or was made, not what it computes
NEUTRAL = frozenset(
    ("architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "return_dict")
    + ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "id2label", "label2id")
    + ("output_attentions", "output_hidden_states", "problem_type", "chunk_size_feed_forward")
    + ("is_encoder_decoder", "model_type", "quantization_config", "name_or_path")
)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a backbone's `config.json` that decide what it computes."""
    raw = loading.read_settings(folder / "config.json", f"backbone {folder}")
    kept = settings_of(raw) if isinstance(raw, dict) else {}
    return {"model_type": raw.get("model_type"), **kept} if isinstance(raw, dict) else kept


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config counts; configs inside it the same way."""
    kept = {}
    for key, value in config.items():
        if key in NEUTRAL or key.startswith("_") or value is None:
            continue
        inner = isinstance(value, dict) and key.endswith("_config")
        kept[key] = settings_of(value) if inner else value
    return kept


def refuse_other_settings(recorded: dict[str, Any], folder: Path, what: str) -> None:
    """Refuse a backbone whose config computes something else than the recorded settings do. Both
    are read by transformers, so that defaults and renamed settings count as what they mean.

    Raises:
        ArtefactError: naming the setting and both values.
    """
    current = read_settings(folder)
    if recorded == current:
        return
    with loading.as_artefact_errors(what, "give a copy of the very model it was trained on"):
        meant, there = effective(recorded), effective(current)
    for key in sorted(meant.keys() | there.keys()):
        if meant.get(key) != there.get(key):
            raise ArtefactError(
                f"{what}: {key} is {there.get(key)!r} in its config.json, "
                f"the checkpoint was trained with {meant.get(key)!r}",
                "restore config.json, or give --backbone a copy of the very model",
            )


def effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with everything that transformers adds and derives."""
    values = {key: value for key, value in settings.items() if key != "model_type"}
    config = loading.new_config(settings["model_type"], **values)
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return {"model_type": settings["model_type"], **settings_of(plain)}
