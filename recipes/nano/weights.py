"""A trained backbone as files that travel: safetensors parts of at most 15 MiB and `about.json`.

bfloat16, half the size of what was trained. `read` also takes a native checkpoint with its backbone
inside, so that a run can begin where a published one ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from network import Network
from safetensors.torch import load_file, save_file
from torch import Tensor

PART = 15 * 2**20
TIED = "model.lm_head.weight"  # the embeddings, once more
INNER = "inner."  # the same modules under a second name


def tensors(network: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every parameter once; memory tokens stay in float32."""
    found = {}
    for name, value in network.state_dict().items():
        if name != TIED and not name.startswith(INNER):
            kept = torch.float32 if name.startswith("memory.") else dtype
            found[name] = value.detach().to("cpu", kept).contiguous()
    return found


def parts(found: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors in groups that fit a part; rows of one too large for that are spread over several
    under NAME@0, NAME@1, ..."""
    pieces: list[tuple[str, Tensor]] = []
    for name, value in found.items():
        count = -(-value.nbytes // PART)
        if count == 1:
            pieces.append((name, value))
        else:
            pieces += [(f"{name}@{i}", p.clone()) for i, p in enumerate(value.chunk(count))]
    made: list[dict[str, Tensor]] = [{}]
    for name, value in pieces:
        if sum(v.nbytes for v in made[-1].values()) + value.nbytes > PART:
            made.append({})
        made[-1][name] = value
    return made


def write(folder: Path, network: Network, about: dict[str, Any]) -> None:
    """Write the parts and what is known of the run, `about.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    made = parts(tensors(network, torch.bfloat16))
    for old in folder.glob("part-*.safetensors"):
        if int(old.stem[5:]) >= len(made):
            old.unlink()
    for number, part in enumerate(made):
        save_file(part, folder / f"part-{number}.safetensors")
    (folder / "about.json").write_text(json.dumps(about | {"parts": len(made)}, indent=1) + "\n")


def read(folder: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """(shape, state of a `Network`) from a run's weights/ or from a checkpoint's folder."""
    if (folder / "about.json").exists():
        about = json.loads((folder / "about.json").read_text())
        loose: dict[str, Tensor] = {}
        for number in range(about["parts"]):
            loose |= load_file(folder / f"part-{number}.safetensors")
        shape, found = about["shape"], joined(loose)
    else:
        shape, found = from_checkpoint(folder)
    found = {name: value.float() for name, value in found.items()}
    found[TIED] = found["model.model.embed_tokens.weight"]
    inner = {f"{INNER}{k[12:]}": v for k, v in found.items() if k.startswith("model.model.")}
    return shape, found | inner


def joined(loose: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that were spread over several parts, whole again."""
    whole = {name: value for name, value in loose.items() if "@" not in name}
    for name in {name.split("@")[0] for name in loose if "@" in name}:
        count = sum(other.startswith(f"{name}@") for other in loose)
        whole[name] = torch.cat([loose[f"{name}@{i}"] for i in range(count)])
    return whole


def from_checkpoint(folder: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The backbone and the memory tokens of a native checkpoint; its roles are left out."""
    config = json.loads((folder / "backbone" / "config.json").read_text())
    shape = {
        "vocab": config["vocab_size"],
        "hidden": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "inner": config["intermediate_size"],
    }
    loaded = load_file(folder / "backbone" / "model.safetensors")
    found = {f"model.{name}": value for name, value in loaded.items()}
    memory = load_file(folder / "memory.safetensors")
    encode, separator = memory["markers"]
    found["memory.slots_MD"] = memory["memory"]
    found["memory.markers_2D"] = torch.stack([separator, encode])
    return shape, found
