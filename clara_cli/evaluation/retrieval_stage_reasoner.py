"""The query reasoner of `sup`: taken from a checkpoint of `clara train --stage retrieval` and set
beside the roles of the checkpoint that is measured, so that both read the same memory.
"""

from __future__ import annotations

from clara_cli.core.checkpoint import Loaded, reads, resolve
from clara_cli.core.checkpoint_info import read_info
from clara_cli.core.roles import load_role, read_weights
from clara_cli.errors import ArtefactError
from clara_cli.evaluation.systems import SUP_ROLE
from clara_cli.printable import shell_word

_HINT = "give --sup-model a folder that clara train --stage retrieval wrote"


def add_supervised(loaded: Loaded, name: str) -> None:
    """Add the role `sup` from the checkpoint `name`.

    Raises:
        ArtefactError: for a checkpoint without a query reasoner, one that never went through the
            retrieval stage, or one of another memory space.
    """
    path = resolve(name)
    info = read_info(path)
    if "query_reasoner" not in info.roles:
        raise ArtefactError(f"{path}: no query reasoner in this checkpoint", _HINT)
    stages = [*(entry.get("stage") for entry in info.provenance), info.stage]
    if "retrieval" not in stages:
        raise ArtefactError(f"{path}: its query reasoner comes from stage {info.stage}", _HINT)
    recorded = [info.fingerprint]
    if info.version == 1 or loaded.info.version == 1:
        recorded.append(info.older_fingerprint)
    if not any(reads(loaded, one) for one in recorded if one):
        raise ArtefactError(
            f"{path} has the memory space {info.fingerprint}, {loaded.name} has "
            f"{loaded.info.fingerprint}",
            "train it from this one: clara train --stage retrieval --init "
            f"{shell_word(loaded.name)}",
        )
    file = path / "query_reasoner" / "adapter_model.safetensors"
    tensors = read_weights(file)
    loaded.model.add_role(SUP_ROLE, None)
    load_role(loaded.model, SUP_ROLE, tensors, str(file))
