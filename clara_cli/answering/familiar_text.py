"""Whether text is like what a checkpoint's backbone has learned: how unlikely the bare backbone
finds its tokens, against a threshold that was measured and lies beside the checkpoint.

A checkpoint without `familiar_text.json` is not judged. Knows no session and no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clara_cli.core.decode import log_likelihoods
from clara_cli.core.model import ClaraModel
from clara_cli.records import Passage
from clara_cli.storage.artefact import read_object

FILE, FORMAT, VERSION = "familiar_text.json", "clara-familiar-text", 1
PASSAGES, TOKENS = 3, 64  # that are looked at: the best passages, the first tokens of each
_MOST_NATS = 100.0
_RESTORE = "take the file from where the checkpoint came from, or delete it"


@dataclass(frozen=True)
class FamiliarText:
    """The most nats a token that text like the training text takes."""

    most_nats: float

    def has(self, model: ClaraModel, passages: Sequence[Passage]) -> bool:
        """Whether the best of some passages are like it; passages without text are."""
        nats = nats_per_token(model, [p.text for p in passages[:PASSAGES] if p.text])
        return nats is None or nats <= self.most_nats


def read_familiar_text(folder: Path, *fingerprints: str) -> FamiliarText | None:
    """A checkpoint's `familiar_text.json`; None where it has none, or one of another memory space
    than these stand for.

    Raises:
        ArtefactError: where the file is damaged.
    """
    fields = read_object(folder / FILE, _RESTORE, FORMAT, VERSION)
    if fields is None or fields.get("fingerprint", str) not in fingerprints:
        return None
    return FamiliarText(fields.number("most_nats", _MOST_NATS))


@torch.inference_mode()
def nats_per_token(model: ClaraModel, texts: Sequence[str]) -> float | None:
    """Mean negative log-likelihood of the first tokens of texts under the bare backbone, each text
    counting alike; None where no text has two tokens."""
    tokenizer = model.prompter.tokenizer
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return None
    first, rest = [row[:1] for row in rows], [row[1:] for row in rows]
    likelihoods = log_likelihoods(model, first, rest, None, role=None)
    return -sum(likelihoods) / len(likelihoods)
