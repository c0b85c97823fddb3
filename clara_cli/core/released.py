"""Reads checkpoints in the released format (apple/ml-clara): `config.json`, `adapters.pth`,
`decoder_first_last_layers.pth`. Pickles are opened with `weights_only=True`: tensors, never code.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import Backbone
from clara_cli.core.checkpoint_info import MOST_MEMORY, MOST_PASSAGE, MOST_RANK, CheckpointInfo
from clara_cli.core.finite import refuse_nonfinite_weights
from clara_cli.core.hub import origin
from clara_cli.core.load_options import Loaded, LoadOptions
from clara_cli.core.memory_space import fingerprint, older_fingerprint
from clara_cli.core.model import ClaraModel
from clara_cli.core.prompts import Markers, Prompter
from clara_cli.core.roles import load_role, set_tables
from clara_cli.errors import ArtefactError, first_line
from clara_cli.storage.artefact import read_object

ADAPTERS = {
    "compressor": "encoder_adapter",
    "query_reasoner": "query_reasoner_adapter",
    "generator": "decoder_adapter",
}
BACKBONES = {"mistral-7b-instruct-v0.2": "mistralai/Mistral-7B-Instruct-v0.2"}
APPLES = "apple-amlr: research use only"
UNKNOWN = f"not known: {APPLES}, where this checkpoint is one of Apple's"


def load_released(path: Path, options: LoadOptions, dropout: float | None = None) -> Loaded:
    """Build a model from a released checkpoint folder; its roles are the adapters found."""
    config = read_config(path / "config.json")
    adapters = read_pickle(path / "adapters.pth")
    tables = read_pickle(path / "decoder_first_last_layers.pth")
    named = {name for name, tensors in adapters.items() if isinstance(tensors, dict)}
    roles = tuple(role for role, adapter in ADAPTERS.items() if adapter in named)
    if not roles:
        raise ArtefactError(
            f"{path / 'adapters.pth'}: none of {', '.join(ADAPTERS.values())} in it",
            "is this a released CLaRa checkpoint?",
        )
    base = options.open_backbone(options.backbone or find_backbone(config, path))
    markers = released_markers(config)
    use_released_bos(base.tokenizer, base.name)
    embedding = fill_tables(base, len(markers.all), tables, path)
    prompter = Prompter(base.tokenizer, config["doc_max_length"], markers)
    prompter.check_template(f"backbone {base.name}")
    count = config["doc_max_length"] // config["compr_rate"]
    memory_MD = embedding[prompter.memory_ids].float()
    if len(markers.memory) == 1:
        memory_MD = memory_MD.repeat(count, 1)
    markers_2D = embedding[[prompter.encode_id, prompter.separator_id]].float()
    rank = config["lora_r"]
    lora = LoraSettings(rank, 2 * rank, 0.1 if dropout is None else dropout)
    model = ClaraModel(base, prompter, lora, roles, memory_MD, markers_2D)
    for role in roles:
        tensors = {k: v for k, v in adapters[ADAPTERS[role]].items() if ".lora_" in k}
        load_role(model, role, tensors, f"{path / 'adapters.pth'}: {ADAPTERS[role]}")
    info = CheckpointInfo(
        backbone=base.name,
        revision=base.revision,
        backbone_digest=base.digest,
        max_passage_tokens=config["doc_max_length"],
        memory_tokens=count,
        ratio=config["compr_rate"],
        ratios=(config["compr_rate"],),
        lora=lora,
        roles=roles,
        stage=str(config.get("training_stage", "unknown")),
        provenance=(provenance(path),),
        licence=licence(path),
        markers=markers,
        table_rows=embedding.shape[0],
        settings=base.settings,
        fingerprint=fingerprint(model, base.digest, base.settings),
        older_fingerprint=older_fingerprint(model, base.older_digest),
    )
    return Loaded(model, info, path, options.name)


def provenance(path: Path) -> dict[str, Any]:
    """Where a released checkpoint came from: its place on the Hub, else its folder's name."""
    repository = origin(path)
    where = "/".join(path.absolute().parts[-2:]) if repository is None else repository[0]
    return {"origin": where, "revision": repository and repository[1], "format": "released"}


def licence(path: Path) -> str:
    """The terms of a released checkpoint, by whose it is."""
    repository = origin(path)
    if repository is None:
        return UNKNOWN
    owner = repository[0].split("/")[0]
    return APPLES if owner == "apple" else f"not known: see huggingface.co/{repository[0]}"


def fill_tables(base: Backbone, added: int, tables: dict[str, Tensor], path: Path) -> Tensor:
    """Resize the backbone's tables by `added` rows and fill them; returns the embedding table."""
    wanted = (len(base.tokenizer) + added, base.model.config.hidden_size)
    embedding = table(tables, "embed_tokens.weight", path)
    if tuple(embedding.shape) != wanted:
        raise ArtefactError(
            f"{path}: embedding table {tuple(embedding.shape)}, "
            f"backbone {base.name} with its added tokens has {wanted}",
            "give the backbone it was trained on with --backbone",
        )
    kept = {"embedding_rows": embedding}
    if not base.model.config.tie_word_embeddings:
        kept["head_rows"] = table(tables, "lm_head.weight", path)
    set_tables(base.model, wanted[0], kept)
    return embedding


def read_config(file: Path) -> dict[str, Any]:
    """config.json with the fields that are needed, checked."""
    fields = read_object(file, "download the folder again")
    if fields is None:
        raise ArtefactError(f"{file}: no such file", "the released folder holds one")
    config = fields.values
    longest, rate = (fields.count(key, 1, MOST_PASSAGE) for key in ("doc_max_length", "compr_rate"))
    fields.count("lora_r", 1, MOST_RANK)
    if longest // rate > MOST_MEMORY:
        tokens = f"{longest:,} in ratio {rate}: the most is {MOST_MEMORY:,} memory tokens"
        raise fields.wrong("doc_max_length", tokens)
    if rate > longest:
        message = f"{file}: compr_rate is {rate}, more than doc_max_length, {longest}"
        raise ArtefactError(message, "such passages have no memory; download the folder again")
    return config


def read_pickle(file: Path) -> dict[str, Any]:
    """A dictionary of tensors, or of such dictionaries, from a torch file, never running what it
    may contain."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ArtefactError(f"{file}: {error.strerror}", "the released folder holds one") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ArtefactError(
            f"{file}: refused or damaged: {first_line(error)}",
            "clara opens tensors only; a file that needs more is not a plain checkpoint",
        ) from error
    if not isinstance(content, dict):
        raise ArtefactError(
            f"{file}: holds a {type(content).__name__}, not named tensors", "download it again"
        )
    for name, part in content.items():
        tensors = part if isinstance(part, dict) else {name: part}
        for inner, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or not isinstance(inner, str):
                raise ArtefactError(f"{file}: {inner!r} is no tensor", "download it again")
        refuse_nonfinite_weights(str(file), tensors)
    return content


def table(tables: dict[str, Tensor], ending: str, path: Path) -> Tensor:
    """The one tensor whose name ends so."""
    tensors = {key: t for key, t in tables.items() if isinstance(t, Tensor)}
    matches = [tensor for key, tensor in tensors.items() if key.endswith(ending)]
    if len(matches) != 1:
        raise ArtefactError(
            f"{path / 'decoder_first_last_layers.pth'}: {ending} is missing", "download it again"
        )
    return matches[0]


def released_markers(config: dict[str, Any]) -> Markers:
    """The added tokens in the released order: memory, <AE>, <ENC>, <SEP>."""
    count = config["doc_max_length"] // config["compr_rate"]
    distinct = config.get("different_mem_tokens", True)
    memory = tuple(f"<MEM{i}>" for i in range(count)) if distinct else ("<MEM>",)
    return Markers(memory, ("<AE>",), "<ENC>", "<SEP>")


def use_released_bos(tokenizer: Any, name: str) -> None:
    """The released code gives Qwen tokenizers, which have no BOS, their first added special."""
    if tokenizer.bos_token is None and "qwen" in name.lower():
        extra = [
            t
            for t in tokenizer.all_special_tokens
            if t not in (tokenizer.eos_token, tokenizer.pad_token)
        ]
        if extra:
            tokenizer.bos_token = extra[0]


def find_backbone(config: dict[str, Any], path: Path) -> str:
    """The backbone a config names, where that is a place one can load from."""
    named = str(config.get("decoder_model_name") or "")
    if Path(named).is_dir():
        return named
    original = str(config.get("compr_base_model_name") or "")
    for candidate in (named, original):
        tail = candidate.rstrip("/").rsplit("/", 1)[-1].lower()
        if tail in BACKBONES:
            return BACKBONES[tail]
    raise ArtefactError(
        f"{path / 'config.json'}: the backbone is {named!r}, a place on somebody else's machine",
        "name it with --backbone: its folder, or its Hub id",
    )
