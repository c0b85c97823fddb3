"""Checkpoints on disk: the native form, how any form is recognised, and what one can do.

A native checkpoint is `clara.json`, one PEFT folder per role, `memory.safetensors`, and possibly
its own `backbone/`. Nothing is ever unpickled here (`core.released` reads the released form).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from clara_cli.bundled import BUNDLED
from clara_cli.core import card
from clara_cli.core.adapter_config import check_adapter
from clara_cli.core.adapters import ReadingAdapters
from clara_cli.core.backbone import Backbone, backbone_folder
from clara_cli.core.backbone_settings import refuse_other_settings
from clara_cli.core.checkpoint_info import (
    MEMORY,
    OTHER_MEMORY,
    RESTORE,
    VERSION,
    CheckpointInfo,
    describe,
    read_info,
)
from clara_cli.core.digests import backbone_digest, full_digest, sample_digest
from clara_cli.core.hub import fetch, is_hub_id, local_folder
from clara_cli.core.llama import Llama
from clara_cli.core.load_options import Loaded, LoadOptions
from clara_cli.core.loading import refuse_code
from clara_cli.core.memory_space import fingerprint, is_older, older_fingerprint
from clara_cli.core.model import ClaraModel
from clara_cli.core.placement import spread
from clara_cli.core.prompts import Prompter
from clara_cli.core.released import load_released
from clara_cli.core.roles import load_role, read_weights, role_tensors, set_tables
from clara_cli.errors import ArtefactError
from clara_cli.printable import shell_word
from clara_cli.storage.files import copy_tree, make_folder, new_folder, write_atomic
from clara_cli.storage.tensors import open_tensors, save_tensors

ADAPTER_FILE = "adapter_model.safetensors"
CHANGED = "a file was changed or damaged; restore the checkpoint from a copy"


def resolve(name: str, ratio: int | None = None, configs_only: bool = False) -> Path:
    """The directory behind `--model`; a Hub id is fetched (its config alone where `configs_only`),
    `ratio` choosing among the released checkpoints of one repository.

    Raises:
        ArtefactError: when there is none.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    path = Path(name)
    if (path / "checkpoint" / "clara.json").is_file():
        return path / "checkpoint"
    if path.is_dir():
        return path / local_folder(path, ratio)
    if is_hub_id(name):
        return fetch(name, ratio, configs_only)
    hint = "--model takes smol, nano, a directory or owner/name"
    raise ArtefactError(f"checkpoint {name}: no such directory", hint)


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
        hint = f"it is a plain language model: give it as --backbone {shell_word(path)}, and as "
        hint += "--model a checkpoint that was trained on it"
    message = f"{path}: not a checkpoint (neither clara.json nor adapters.pth in it)"
    return ArtefactError(message, hint)


def _load_native(path: Path, options: LoadOptions, dropout: float | None) -> Loaded:
    info = read_info(path)
    for folder in (path, *(path / role for role in info.roles)):
        refuse_code(folder, f"checkpoint {path}")
    for role in info.roles:
        check_adapter(path / role, info.lora)
    source = backbone_source(path, info, options)
    revision = None if options.backbone else info.revision
    base = options.open_for_reading(source, revision) if info.table_rows is None else None
    base = base or options.open_backbone(source, revision)
    check_backbone(base, info, options.verify)
    parts = {name: read_weights(part_file(path, name)) for name in (*info.roles, MEMORY)}
    check_parts(path, info, options.verify)
    tensors = parts[MEMORY]
    expected = (info.memory_tokens, base.hidden)
    if "memory" not in tensors or tuple(tensors["memory"].shape) != expected:
        message = f"{path / 'memory.safetensors'}: no `memory` of shape {expected}"
        raise ArtefactError(message, RESTORE)
    if info.table_rows is not None:
        set_tables(base.model, info.table_rows, tensors)
    lora = replace(info.lora, dropout=info.lora.dropout if dropout is None else dropout)
    prompter = Prompter(base.tokenizer, info.max_passage_tokens, info.markers)
    prompter.check_template(f"backbone {base.name}")
    adapters = None
    if isinstance(base.model, Llama):
        adapters = ReadingAdapters(base.model, lora, info.roles)
    memory_MD, markers_2D = tensors["memory"], tensors["markers"]
    parameters = (memory_MD, markers_2D, adapters, info.layout)
    model = ClaraModel(base, prompter, lora, info.roles, *parameters)
    for role in info.roles:
        load_role(model, role, parts[role], str(part_file(path, role)))
    older = older_fingerprint(model, base.older_digest)
    if info.version == 1:
        computed, info = older, replace(info, older_fingerprint=older)
    else:
        computed = fingerprint(model, info.backbone_digest, info.settings)
    if computed != info.fingerprint:
        raise ArtefactError(
            f"{path}: the compressor's weights do not match the fingerprint in clara.json", CHANGED
        )
    return Loaded(model, info, path, options.name)


def check_files(path: Path, bundled: bool = False) -> None:
    """See that a native checkpoint's own files are all there and what was written, those of a
    `bundled` backbone at least whole.

    Raises:
        ArtefactError: for the first file that is not.
    """
    info, backbone = read_info(path), path / "backbone"
    if bundled and not (backbone / "config.json").is_file():
        raise ArtefactError(f"{backbone / 'config.json'}: missing", RESTORE)
    files = [part_file(path, name) for name in (MEMORY, *info.roles)]
    for file in (*files, *backbone.glob("*.safetensors")):
        open_tensors(file, RESTORE)
    check_parts(path, info, verify=True)


def check_backbone(base: Backbone, info: CheckpointInfo, verify: bool) -> None:
    """See that a backbone is the one a checkpoint was trained on: by every byte, or by a sample of
    every tensor; and by its settings.

    Raises:
        ArtefactError: where it is not.
    """
    if info.version == 1:
        same = base.older_digest == info.backbone_digest
    elif verify:
        fresh = "" if base.folder is None else backbone_digest(base.folder, fresh=True)
        same = fresh == info.backbone_digest
    else:
        same = base.sample == info.backbone_sample
    what = f"backbone {base.name}"
    if info.version == 1 and not base.older_digest:
        message = f"{what}: its files do not have the digest that this older checkpoint records"
        raise ArtefactError(message, "load it without --load-in, and not in float16")
    if not same:
        raise ArtefactError(
            f"{what} is not the one this checkpoint was trained on ({info.backbone})",
            "omit --backbone, or give a copy of that very model: a file of this one was changed, "
            "or it is another model",
        )
    if info.version > 1 and base.folder is not None:
        refuse_other_settings(info.settings, base.folder, what)


def check_parts(path: Path, info: CheckpointInfo, verify: bool) -> None:
    """See that roles and memory tokens are those that were written, as above.

    Raises:
        ArtefactError: naming the file that is not.
    """
    for name, recorded in info.weights.items():
        files = [part_file(path, name)]
        computed = full_digest(files) if verify else sample_digest(files)
        if computed != recorded["digest" if verify else "sample"]:
            message = f"{files[0]}: its weights are not those that clara.json records"
            raise ArtefactError(message, CHANGED)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A native checkpoint and its backbone as they lie on the disk."""

    path: Path
    info: CheckpointInfo
    backbone: Backbone

    def verify(self) -> None:
        """Compare every stored byte with what `clara.json` records.

        Raises:
            ArtefactError: for the first part that differs.
        """
        check_backbone(self.backbone, self.info, verify=True)
        check_parts(self.path, self.info, verify=True)


def find_stored(options: LoadOptions) -> StoredCheckpoint:
    """A native checkpoint and its backbone, no model loaded.

    Raises:
        ArtefactError: where one of them is not here, or the checkpoint is of another form.
    """
    path = resolve(options.name, options.ratio)
    info = read_info(path)
    source = backbone_source(path, info, options)
    folder = backbone_folder(source, None if options.backbone else info.revision)
    return StoredCheckpoint(path, info, Backbone(None, None, source, None, folder))


def backbone_source(path: Path, info: CheckpointInfo, options: LoadOptions) -> str:
    """Where a checkpoint's backbone comes from: as given, beside it, or by the name it has."""
    bundled = path / "backbone"
    return options.backbone or (str(bundled) if bundled.is_dir() else info.backbone)


def part_file(path: Path, name: str) -> Path:
    """The file of a role, or of the memory tokens ("memory")."""
    return path / (f"{name}.safetensors" if name == MEMORY else f"{name}/{ADAPTER_FILE}")


def reads(loaded: Loaded, recorded: str) -> bool:
    """Whether a checkpoint reads memory of the space with the `recorded` fingerprint, which may be
    of either version."""
    info, base = loaded.info, loaded.model.backbone
    if recorded in (info.fingerprint, info.older_fingerprint):
        return True
    if info.version > 1 or is_older(recorded):
        return False
    return fingerprint(loaded.model, base.digest, base.settings) == recorded


def save(
    model: ClaraModel, info: CheckpointInfo, path: Path, backbone: Path | None = None
) -> CheckpointInfo:
    """Write a native checkpoint, with a copy of its `backbone` if given, whole or not at all."""
    from clara_cli.core.peft_adapters import save_config

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
            save_config(model.adapters, role, folder, info.backbone)
            save_tensors(part_file(work, role), role_tensors(model, role))
        save_tensors(part_file(work, MEMORY), extra)
        info = info_with_digests(model, info, work)
        described = json.dumps(describe(info), indent=2, ensure_ascii=False)
        write_atomic(work, "clara.json", f"{described}\n".encode())
        write_atomic(work, card.FILE, card.card(info).encode())
    return info


def info_with_digests(model: ClaraModel, info: CheckpointInfo, folder: Path) -> CheckpointInfo:
    """What a checkpoint says of itself, with the digests of its backbone and of its parts, which
    lie in `folder`."""
    base = model.backbone
    weights = {}
    for name in (*model.roles, MEMORY):
        files = [part_file(folder, name)]
        weights[name] = {"digest": full_digest(files), "sample": sample_digest(files)}
    return replace(
        info,
        version=OTHER_MEMORY if info.layout.changes() else VERSION,
        roles=model.roles,
        backbone_digest=base.digest,
        backbone_sample=base.sample,
        settings=base.settings,
        older_digest=base.older_digest,
        weights=weights,
        fingerprint=fingerprint(model, base.digest, base.settings),
        older_fingerprint=older_fingerprint(model, base.older_digest),
    )


def kept_rows(model: ClaraModel, info: CheckpointInfo) -> dict[str, Tensor]:
    """The rows of a resized table that its backbone lacks: all of them, so nothing is lost."""
    rows: dict[str, Tensor] = {"embedding_rows": model.table_VD}
    if not model.causal_lm.config.tie_word_embeddings:
        rows["head_rows"] = model.causal_lm.get_output_embeddings().weight
    return rows
