"""The card of a checkpoint, `README.md`: what it is, how it was trained, what of its backbone is
adapted and what is not. Knows no weights."""

from __future__ import annotations

import json

from clara_cli.core.backbone import is_owner_and_name
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.lora_targets import adapted_sentence

FILE = "README.md"


def card(info: CheckpointInfo) -> str:
    """The card, in Markdown with the Hub's front matter."""
    revision = "" if info.revision is None else f" at {info.revision}"
    lora = f"rank {info.lora.rank}, alpha {info.lora.alpha}, dropout {info.lora.dropout:g}"
    ratios = ", ".join(map(str, info.ratios))
    rows = {
        "backbone": f"{info.backbone}{revision}",
        "roles": ", ".join(info.roles),
        "stages": ", ".join(_stages(info)) or info.stage,
        "memory": f"{info.memory_tokens} tokens for at most {info.max_passage_tokens} of text, "
        f"ratios {ratios}",
        "LoRA": lora,
        "adapted": adapted_sentence(info.lora),
        "licence": info.licence or "not said",
    }
    if changes := info.layout.changes():
        rows["memory's layout"] = ", ".join(f"{name} {value}" for name, value in changes.items())
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return (
        f"{_front_matter(info)}# A CLaRa checkpoint\n\n"
        "Three LoRA roles on one language model turn documents into memory tokens and answer from "
        "them; `clara compress DOCUMENTS --model THIS` begins.\n\n"
        f"| what | is |\n|---|---|\n{table}\n\n"
        "Each role's folder is in PEFT's layout: `PeftModel.from_pretrained(backbone, \"THIS/"
        f'{info.roles[-1]}")` puts it into the backbone. The memory tokens are in '
        "`memory.safetensors`; `clara.json` says the rest.\n"
    )


def _front_matter(info: CheckpointInfo) -> str:
    lines = ["library_name: peft", "tags: [clara, lora]"]
    if is_owner_and_name(info.backbone):
        lines.insert(0, f"base_model: {json.dumps(info.backbone)}")
    return "---\n" + "\n".join(lines) + "\n---\n"


def _stages(info: CheckpointInfo) -> list[str]:
    """Every stage it went through, with its steps."""
    entries = [(entry.get("stage"), entry.get("steps")) for entry in info.provenance]
    return [f"{stage} ({steps} steps)" for stage, steps in entries if stage and steps]


def _cell(text: str) -> str:
    """Text that stays within a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
