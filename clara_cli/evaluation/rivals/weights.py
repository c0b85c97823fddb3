"""Where the weights of rivals come from, and the one call that loads them. Code that comes with
weights never runs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clara_cli.core import hub, loading
from clara_cli.core.backbone import Backbone, is_owner_and_name
from clara_cli.core.probe import answers_padded
from clara_cli.core.writing import forget_settings
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.rivals.registry import MINILM, MINILM_PACKAGE, SystemSpec


@dataclass(frozen=True)
class Weights:
    """A model of transformers with its tokenizer; `folder` is where both were read, `pads` says
    whether prompts padded on the left are answered as they are alone."""

    model: Any
    tokenizer: Any
    folder: Path
    pads: bool = True

    @property
    def longest(self) -> int:
        """The most tokens a text may take."""
        own = int(self.tokenizer.model_max_length)
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None) or own
        offset = 2 if config.model_type in ("roberta", "xlm-roberta") else 0  # of its positions
        return min(own, int(positions) - offset)


def load(
    spec: SystemSpec, task: loading.Task, device: torch.device, dtype: torch.dtype = torch.float32
) -> Weights:
    """The weights a rival names, else its default ones, from a folder or the Hub, for `task`. Of
    one that generates only the ends of its own settings for writing count: greedy is the argmax.

    Raises:
        ArtefactError: where they cannot be had or loaded.
    """
    name = spec.argument or spec.info.weights
    folder = weights_folder(name)
    if (folder / loading.ADAPTER).exists():
        model, tokenizer = _adapted(folder, name, dtype)
    else:
        model = loading.load_task_model(folder, name, dtype, task)
        tokenizer = loading.load_tokenizer(folder, name)
    model.to(device).eval().requires_grad_(False)
    if task != "generate":
        return Weights(model, tokenizer, folder)
    forget_settings(model, tokenizer.eos_token_id)
    pads = answers_padded(Backbone(model, tokenizer, name, None), by_ids=True)
    return Weights(model, tokenizer, folder, pads)


def _adapted(folder: Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A causal language model with a LoRA adapter merged into it: the backbone that the adapter
    names, and its tokenizer."""
    settings = loading.read_settings(folder / loading.ADAPTER, name)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        message = f"{folder / loading.ADAPTER}: base_model_name_or_path names no backbone"
        raise ArtefactError(message, "name the merged model instead")
    backbone = weights_folder(base)
    model = loading.load_model(backbone, base, dtype)
    return loading.merge_adapter(model, folder, name), loading.load_tokenizer(backbone, base)


def weights_folder(name: str) -> Path:
    """The folder of a name: a local one, an installed package's, or one fetched from the Hub
    (owner/name, or owner/name/sub-folder).

    Raises:
        ArtefactError: where there is none.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name == MINILM and (package := importlib.util.find_spec(MINILM_PACKAGE)) is not None:
        assert package.origin is not None
        return Path(package.origin).parent / "model"
    if is_owner_and_name(name):
        folder = hub.download(name, hub.BACKBONE, None, name)
        hub.download(name, ("1_Pooling/config.json",), None, name)  # how its vectors are made
        return folder
    if not hub.is_hub_id(name):
        message = f"{name or 'no name'}: no such folder, and not a Hub id (owner/name)"
        raise ArtefactError(message, "name weights by their folder or Hub id")
    owner, repository, part = name.split("/", 2)
    patterns = tuple(f"{part}/{pattern}" for pattern in hub.BACKBONE)
    return hub.download(f"{owner}/{repository}", patterns, None, name) / part
