"""A backbone's weights in eight bits a number, expanded when they are loaded.

Every matrix is kept as int8 rows with one float16 scale a row (largest absolute value / 127), which
halves a bfloat16 file; vectors stay as they are. Storage only: what computes is the expanded
weights, in the dtype asked for. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.core import loading
from clara_cli.storage.files import make_folder
from clara_cli.storage.tensors import save_tensors

FILE = "model.int8.safetensors"  # instead of model.safetensors, beside config.json
SCALE = ".int8_scale"


def shrink(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """int8 rows and their scales for every matrix; other tensors as they are."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            stored[name] = tensor.contiguous()
            continue
        peak = tensor.float().abs().amax(dim=1, keepdim=True)
        scale = (peak / 127).clamp(min=1e-7).half()
        stored[name] = (tensor.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def expand(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What `shrink` was given, up to half a step of each row's scale."""
    expanded = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        expanded[name] = tensor.to(dtype) if scale is None else (tensor * scale.float()).to(dtype)
    return expanded


def save_backbone(model: Any, folder: Path) -> None:
    """Write a model's config and its weights in eight bits. The model's own weights become what a
    reader of the folder will see."""
    kept = {name: p.detach().to("cpu") for name, p in model.named_parameters()}
    stored = shrink(kept)
    make_folder(folder)
    save_tensors(folder / FILE, stored)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    expanded = expand(stored, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(expanded[name])


def load_backbone(folder: Path, what: str, dtype: torch.dtype) -> Any:
    """The model of such a folder; `what` names it in errors.

    Raises:
        ArtefactError: where it is damaged.
    """
    from safetensors.torch import load_file

    config = loading.load_config(folder, what)
    loading.refuse_adapter(folder, what)
    with loading.as_artefact_errors(f"{what}: {FILE}"):
        tensors = expand(load_file(folder / FILE), dtype)
    with loading.as_artefact_errors(what):
        empty = loading.empty_model(folder, what)
        wanted = {name: tuple(p.shape) for name, p in empty.named_parameters()}
        stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wanted != stored:
            odd = sorted(wanted.items() ^ stored.items())[0]
            place = folder / "config.json"
            raise ValueError(f"{FILE}: {odd[0]} {odd[1]} does not belong to {place}")
        model = loading.new_model(config, dtype)
        model.load_state_dict(tensors, strict=False)
        model.tie_weights()
    settings = loading.load_generation_config(folder, what)
    if settings is not None:
        model.generation_config = settings
    return model
