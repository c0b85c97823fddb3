"""Checkpoints on disk: the native form, how any form is recognised, and what one can do.

A native checkpoint is `clara.json`, one PEFT folder per role, `memory.safetensors`, and possibly
its own `backbone/`. Nothing is ever unpickled here (`core.released` reads the released form).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.config.common import CheckpointOptions, PlacementOptions
from clara_cli.core.backbone import Backbone, load_backbone, pick_device, pick_dtype
from clara_cli.core.finite import refuse_nonfinite_weights
from clara_cli.core.hub import fetch, is_hub_id, local_folder
from clara_cli.core.info import RESTORE, CheckpointInfo, describe, read_info
from clara_cli.core.loading import refuse_code
from clara_cli.core.model import ClaraModel
from clara_cli.core.placement import WHOLE, BackbonePlacement, spread
from clara_cli.core.prompts import Prompter
from clara_cli.errors import ArtefactError
from clara_cli.storage.files import copy_tree, make_folder, new_folder, write_atomic
from clara_cli.storage.tensors import read_tensors, save_tensors

PREFIX = "base_model.model."
NANO = Path(__file__).parent.parent / "models" / "nano"


@dataclass
class Loaded:
    """A checkpoint in memory: the model, what it says of itself, and where it lies."""

    model: ClaraModel
    info: CheckpointInfo
    path: Path
    name: str


def resolve(name: str, ratio: int | None = None, configs_only: bool = False) -> Path:
    """The directory behind `--model`; a Hub id is fetched (its config alone where `configs_only`),
    `ratio` choosing among the released checkpoints of one repository.

    Raises:
        ArtefactError: when there is none.
    """
    if name == "nano":
        return NANO
    path = Path(name)
    if (path / "checkpoint" / "clara.json").is_file():
        return path / "checkpoint"
    if path.is_dir():
        return path / local_folder(path, ratio)
    if is_hub_id(name):
        return fetch(name, ratio, configs_only)
    hint = "--model takes nano, a directory or owner/name"
    raise ArtefactError(f"checkpoint {name}: no such directory", hint)


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is opened, from a command's options to `load`.

    `name` is what --model takes. `backbone` stands for the one the checkpoint names. `ratio`
    matters only where a Hub repository holds one released checkpoint per ratio.
    """

    name: str
    backbone: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    placement: BackbonePlacement = WHOLE
    ratio: int | None = None

    @classmethod
    def of(cls, config: CheckpointOptions, name: str, ratio: int | None = None) -> LoadOptions:
        """The options of a command, for the checkpoint `name`."""
        device_map = config.device_map if isinstance(config, PlacementOptions) else None
        placement = BackbonePlacement(config.load_in, device_map)
        return cls(name, config.backbone, config.device, config.dtype, placement, ratio)

    def open_backbone(self, source: str, revision: str | None = None) -> Backbone:
        """A backbone as these options place it; one that is going to be spread, in main memory."""
        device = pick_device(self.device)
        dtype = pick_dtype(self.dtype, device)
        quantised = self.placement.arguments(device, dtype)
        first = torch.device("cpu") if self.placement.spreads else device
        return load_backbone(source, first, dtype, revision, quantised)


def load(options: LoadOptions, dropout: float | None = None) -> Loaded:
    """Load a checkpoint of any form, recognised by its content.

    `dropout` overrides the LoRA dropout (training); reading never applies any.

    Raises:
        ArtefactError: where there is none, or its parts do not belong together.
    """
    path = resolve(options.name, options.ratio)
    if (path / "clara.json").is_file():
        loaded = _load_native(path, options, dropout)
    elif (path / "adapters.pth").is_file():
        from clara_cli.core.released import load_released

        loaded = load_released(path, options, dropout)
    else:
        raise not_a_checkpoint(path)
    if options.placement.spreads:
        spread(loaded.model, str(options.placement.device_map))
    return loaded


def not_a_checkpoint(path: Path) -> ArtefactError:
    """The error for a folder that holds none; a plain language model is named as what it is."""
    hint = "give what clara pretrain or clara train wrote, or a released compression-N folder"
    if (path / "config.json").is_file():
        hint = f"it is a plain language model: give it as --backbone {path}, and as --model a "
        hint += "checkpoint that was trained on it"
    message = f"{path}: not a checkpoint (neither clara.json nor adapters.pth in it)"
    return ArtefactError(message, hint)


def _load_native(path: Path, options: LoadOptions, dropout: float | None) -> Loaded:
    info = read_info(path)
    for folder in (path, *(path / role for role in info.roles)):
        refuse_code(folder, f"checkpoint {path}")
    bundled = path / "backbone"
    source = options.backbone or (str(bundled) if bundled.is_dir() else info.backbone)
    base = options.open_backbone(source, None if options.backbone else info.revision)
    if base.digest != info.backbone_digest:
        raise ArtefactError(
            f"backbone {source} is not the one this checkpoint was trained on ({info.backbone})",
            "leave --backbone out, or give a copy of that very model",
        )
    tensors = read_weights(path / "memory.safetensors")
    expected = (info.memory_tokens, base.hidden)
    if "memory" not in tensors or tuple(tensors["memory"].shape) != expected:
        message = f"{path / 'memory.safetensors'}: no `memory` of shape {expected}"
        raise ArtefactError(message, RESTORE)
    if info.table_rows is not None:
        set_tables(base.model, info.table_rows, tensors)
    lora = replace(info.lora, dropout=info.lora.dropout if dropout is None else dropout)
    prompter = Prompter(base.tokenizer, info.max_passage_tokens, info.markers)
    model = ClaraModel(base, prompter, lora, info.roles, tensors["memory"], tensors["markers"])
    for role in info.roles:
        file = path / role / "adapter_model.safetensors"
        load_role(model, role, read_weights(file), str(file))
    if fingerprint(model, info.backbone_digest) != info.fingerprint:
        raise ArtefactError(
            f"{path}: the compressor's weights do not match the fingerprint in clara.json",
            "a file was changed or damaged; restore the checkpoint",
        )
    return Loaded(model, info, path, options.name)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of one of a checkpoint's files, all finite. Raises ArtefactError."""
    tensors = read_tensors(file, RESTORE)
    refuse_nonfinite_weights(str(file), tensors)
    return tensors


def set_tables(causal_lm: Any, rows: int, tensors: dict[str, Tensor]) -> None:
    """Resize embedding and head to `rows` and fill the rows kept with the checkpoint: the last ones
    of `embedding_rows` / `head_rows` (a tied head has none of its own)."""
    causal_lm.resize_token_embeddings(rows, mean_resizing=False)
    tables = {"embedding_rows": causal_lm.get_input_embeddings()}
    if "head_rows" in tensors:
        tables["head_rows"] = causal_lm.get_output_embeddings()
    with torch.no_grad():
        for key, table in tables.items():
            kept = tensors[key]
            table.weight[rows - kept.shape[0] :].copy_(kept)
            table.weight.requires_grad_(False)


def load_role(model: ClaraModel, role: str, tensors: dict[str, Tensor], source: str) -> None:
    """Fill a role's LoRA from tensors named as PEFT names them in a file (with or without its
    `base_model.model.` prefix).

    Raises:
        ArtefactError: on a missing, unexpected or misshapen tensor, naming it.
    """
    given = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    for name, parameter in model.role_parameters(role).items():
        key = name.removeprefix(PREFIX).replace(f".{role}.", ".")
        tensor = given.pop(key, None)
        if tensor is None or tensor.shape != parameter.shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ArtefactError(
                f"{source}: {key} is {found}, the backbone needs {tuple(parameter.shape)}",
                "checkpoint and backbone do not belong together",
            )
        with torch.no_grad():
            parameter.copy_(tensor)
    if given:
        raise ArtefactError(
            f"{source}: {next(iter(given))} has no place in the backbone",
            "checkpoint and backbone do not belong together",
        )


def role_tensors(model: ClaraModel, role: str) -> dict[str, Tensor]:
    """A role's LoRA as PEFT names it in `adapter_model.safetensors`."""
    return {
        name.replace(f".{role}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in sorted(model.role_parameters(role).items())
    }


def fingerprint(model: ClaraModel, backbone_digest: str) -> str:
    """Identity of the memory space: backbone, compressor and memory tokens. A corpus stays valid
    when only the query reasoner or the generator is trained on."""
    digest = hashlib.sha256(backbone_digest.encode())
    tensors: dict[str, Tensor] = {"memory": model.memory_MD, "markers": model.markers_2D}
    if "compressor" in model.roles:
        tensors |= role_tensors(model, "compressor")
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().float().contiguous()
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def save(
    model: ClaraModel, info: CheckpointInfo, path: Path, backbone: Path | None = None
) -> CheckpointInfo:
    """Write a native checkpoint, with a copy of its `backbone` if given, whole or not at all."""
    info = replace(info, roles=model.roles, fingerprint=fingerprint(model, info.backbone_digest))
    extra: dict[str, Tensor] = {"memory": model.memory_MD, "markers": model.markers_2D}
    extra |= {} if info.table_rows is None else kept_rows(model, info)
    parts = [p for role in model.roles for p in model.role_parameters(role).values()]
    needed = sum(t.numel() * t.element_size() for t in [*parts, *extra.values()])
    bundled = backbone.rglob("*") if backbone is not None else ()
    needed += sum(file.stat().st_size for file in bundled)
    with new_folder(path.parent, path.name, needed) as work:
        if backbone is not None:
            copy_tree(backbone, work, "backbone")
        for role in model.roles:
            folder = make_folder(work, role)
            config = model.lora.config()
            config.base_model_name_or_path = info.backbone
            config.inference_mode = True
            found: Any = model.peft.peft_config[role]
            config.target_modules = sorted(found.target_modules or [])
            config.save_pretrained(str(folder))
            save_tensors(folder / "adapter_model.safetensors", role_tensors(model, role))
        save_tensors(work / "memory.safetensors", extra)
        described = json.dumps(describe(info), indent=2, ensure_ascii=False)
        write_atomic(work, "clara.json", f"{described}\n".encode())
    return info


def kept_rows(model: ClaraModel, info: CheckpointInfo) -> dict[str, Tensor]:
    """The rows of a resized table that its backbone lacks: all of them, so nothing is lost."""
    causal = model.causal_lm
    rows: dict[str, Tensor] = {"embedding_rows": model.table_VD}
    if not causal.config.tie_word_embeddings:
        rows["head_rows"] = causal.get_output_embeddings().weight
    return rows
