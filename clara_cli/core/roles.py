"""The trained tensors of a checkpoint: a role's LoRA and the rows of a resized table, in and out of
a model. Knows no folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.core.checkpoint_info import RESTORE
from clara_cli.core.finite import refuse_nonfinite_weights
from clara_cli.core.model import ClaraModel
from clara_cli.errors import ArtefactError
from clara_cli.storage.tensors import read_tensors

PREFIX = "base_model.model."


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
    unread = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    for name, parameter in model.role_parameters(role).items():
        key = name.removeprefix(PREFIX).replace(f".{role}.", ".")
        tensor = unread.pop(key, None)
        if tensor is None or tensor.shape != parameter.shape:
            problem = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ArtefactError(
                f"{source}: {key} is {problem}, the backbone needs {tuple(parameter.shape)}",
                "checkpoint and backbone do not belong together",
            )
        with torch.no_grad():
            parameter.copy_(tensor)
    if unread:
        raise ArtefactError(
            f"{source}: {next(iter(unread))} has no place in the backbone",
            "checkpoint and backbone do not belong together",
        )


def role_tensors(model: ClaraModel, role: str) -> dict[str, Tensor]:
    """A role's LoRA as PEFT names it in `adapter_model.safetensors`."""
    return {
        name.replace(f".{role}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in sorted(model.role_parameters(role).items())
    }
