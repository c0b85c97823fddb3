"""What commands say of a checkpoint: what it can do, where it comes from and on what terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clara_cli.core.abilities import Abilities
from clara_cli.core.adapters import ALL_LINEAR
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.lora_targets import adapted_sentence
from clara_cli.core.memory_space import is_older
from clara_cli.core.model import ROLES
from clara_cli.corpus.store import Corpus
from clara_cli.printable import shell_word
from clara_cli.records import Report

OLDER = "was written by an older version of clara, which recorded less of its weights"


def note_older(loaded: Loaded, corpora: Sequence[Corpus], report: Report) -> None:
    """Say where a checkpoint or a corpus is compared as version 1 of its format was."""
    if loaded.info.version == 1:
        out = shell_word(f"{Path(loaded.name).name}-anew")
        anew = f"clara train --init {shell_word(loaded.name)} --steps 0 --out {out} writes it anew"
        report.note(f"{loaded.name} {OLDER}: the first values of each are compared; {anew}")
        return
    for corpus in corpora:
        if is_older(corpus.manifest.identity.checkpoint["fingerprint"]):
            by = "its memory space is compared as that version did"
            report.note(f"{corpus.name} was compressed by an older version of clara: {by}")


def note_probe(loaded: Loaded, report: Report) -> None:
    """Say that a backbone was tried, the first time."""
    base = loaded.model.backbone
    if base.probe_seconds is None:
        return
    tried = "ids and embeddings give the same logits and tokens"
    report.note(f"backbone {base.name}: tried once, in {base.probe_seconds:.2f} s: {tried}")
    kind = loaded.model.causal_lm.config.model_type
    if base.settings.get("model_type", kind) != kind:
        report.note(f"backbone {base.name}: of the {base.settings['model_type']}, the text model")
    if not base.pads:
        report.note(f"backbone {base.name}: its state reads padding: prompts are answered alone")


def note_adapted(loaded: Loaded, report: Report) -> None:
    """Say what LoRA adapts and leaves out, where that is not every linear layer."""
    lora = loaded.model.lora
    if lora.targets != ALL_LINEAR:
        report.note(f"backbone {loaded.model.backbone.name}: LoRA on {adapted_sentence(lora)}")


def abilities(loaded: Loaded) -> Abilities:
    """What a loaded checkpoint can do."""
    return Abilities(loaded.name, loaded.model.roles, loaded.info.stage)


def describe_checkpoint(loaded: Loaded, report: Report) -> Abilities:
    """Say what a checkpoint can do, unless it is one of this program's with every role."""
    note_probe(loaded, report)
    can_do = abilities(loaded)
    whole = set(ROLES) <= set(loaded.model.roles)
    if not whole or loaded.info.origin is not None:
        report.note(can_do.sentence())
    if loaded.info.origin is not None:
        report.note(f"from {loaded.info.origin}, licence {loaded.info.licence}")
    return can_do
