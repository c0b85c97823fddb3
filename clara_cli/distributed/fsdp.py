"""A backbone over several processes, for GPUs that cannot hold it: FSDP2 on its frozen layers.

Only the layers' frozen weights are cut up: they are nearly all of the memory. LoRA, memory tokens,
embeddings, final norm and head stay whole in every process, so gradients are summed, the optimiser
works and checkpoints are written exactly as without sharding. torch's `fully_shard` is called
itself: accelerate's wrapper of it makes the parameters that train its own.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard

from clara_cli.core.backbone import inner_model
from clara_cli.core.model import ClaraModel
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import UsageError


def layers(model: ClaraModel) -> list[nn.Module]:
    """The backbone's blocks, of which there are many alike."""
    lists = [module for module in inner_model(model.causal_lm).children() if repeated(module)]
    return [block for module in lists for block in module.children()]


def repeated(module: nn.Module) -> bool:
    """Whether a module is a list of blocks of one kind."""
    kinds = {type(child) for child in module.children()}
    return isinstance(module, nn.ModuleList) and len(kinds) == 1


def shard(model: ClaraModel, ranks: Ranks) -> None:
    """Cut the layers' frozen weights up among the processes and move the model to their device.
    From here on every forward has to happen in all processes at once.

    Raises:
        UsageError: where no layers are found.
    """
    blocks = layers(model)
    if not blocks:
        message = f"fsdp = true, but {model.backbone.name} has no list of layers to cut up"
        raise UsageError(message, "omit fsdp")
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    roles = {p for role in model.roles for p in model.role_parameters(role).values()}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=roles & set(block.parameters()))
    cut = {p for block in blocks for p in block.parameters()} - roles
    fully_shard(model, mesh=mesh, ignored_params=set(model.parameters()) - cut)
    with torch.no_grad():
        for tensor in [*(p for p in model.parameters() if p not in cut), *model.buffers()]:
            tensor.data = tensor.data.to(ranks.device)
    ranks.sharded = model.sharded = True
