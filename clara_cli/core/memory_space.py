"""The identity of a memory space: two checkpoints of one fingerprint read each other's memory.

Version 2 covers the backbone's weights in full, the settings of its config (norm epsilon, rope and
the rest), the scale of the roles, how memory is made where that is not as published, the markers,
the compressor and the memory tokens. Version 1, of
checkpoints and corpora made before, covers the first values of every weight, the compressor and the
memory tokens; it is still computed to open those. M memory tokens, D hidden.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from clara_cli.core.model import ClaraModel
from clara_cli.core.prompts import PROMPT_VERSION
from clara_cli.core.roles import role_tensors

MARK = "v2-"  # how fingerprints of version 2 begin


def is_older(fingerprint: str) -> bool:
    """Whether a fingerprint is of version 1."""
    return not fingerprint.startswith(MARK)


def memory_tensors(model: ClaraModel) -> dict[str, Tensor]:
    """Everything trained that makes memory: memory tokens, markers and the compressor."""
    tensors: dict[str, Tensor] = {"memory": model.memory_MD, "markers": model.markers_2D}
    return tensors | (role_tensors(model, "compressor") if "compressor" in model.roles else {})


def fingerprint(model: ClaraModel, backbone_digest: str, settings: dict[str, Any]) -> str:
    """Version 2, of a model on the backbone of that digest and those settings. A corpus stays
    valid when only the query reasoner or the generator is trained on."""
    facts: dict[str, Any] = {
        "backbone": backbone_digest,
        "settings": settings,
        "rank": model.lora.rank,
        "alpha": model.lora.alpha,
        "markers": asdict(model.prompter.markers),
        "prompts": PROMPT_VERSION,
    }
    if layout := model.layout.changes():
        facts["memory"] = {**layout, "span": model.prompter.max_passage}
    return MARK + hash_tensors(json.dumps(facts, sort_keys=True), memory_tensors(model))


def older_fingerprint(model: ClaraModel, first_values: str) -> str:
    """Version 1, of a model on the backbone of that digest of first values."""
    return hash_tensors(first_values, memory_tensors(model))


def hash_tensors(start: str, tensors: dict[str, Tensor]) -> str:
    """32 hexadecimal digits of a text and of tensors' names and float32 values."""
    digest = hashlib.sha256(start.encode())
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().float().contiguous()
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]
