"""Numbers that must be finite: weights as they are read, logits as they are used.

A value that is not a number passes every comparison unnoticed, and an answer or a judgement made of
it means nothing. B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clara_cli.errors import ArtefactError


class LargestLogits:
    """Keeps the largest logit of every row and step while transformers generates (its logits
    processor's interface); changes nothing. A logit of minus infinity is a token ruled out."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """The logits, as they are."""
        self._steps.append(logits_BV.amax(-1))
        return logits_BV

    def refuse_nonfinite(self, backbone: str) -> None:
        """Raise ArtefactError where a step had no largest logit, or an infinite one."""
        if self._steps:
            refuse_nonfinite_outputs(torch.stack(self._steps), backbone, "logits")


def refuse_nonfinite_outputs(values: Tensor, backbone: str, what: str) -> None:
    """Raise ArtefactError where what a model computed is not finite."""
    if not bool(torch.isfinite(values).all()):
        raise ArtefactError(
            f"backbone {backbone}: its {what} are not finite, nothing can be made of them",
            "try --dtype float32; if it stays so, restore the checkpoint and its backbone",
        )


def refuse_nonfinite_weights(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ArtefactError naming the first tensor of a file with a value that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            message = f"{file}: tensor {name} has values that are not finite"
            raise ArtefactError(message, "restore the checkpoint from a copy")
