"""PEFT's own description of a role, `adapter_config.json`: nothing in it that would change what the
role computes is ignored.

clara writes plain LoRA: B A x alpha / rank beside a linear layer. A folder that came from elsewhere
may ask for more (rank-stabilised scaling, DoRA, biases, patterns, parameters, whole modules); that
is refused, since reading it as plain LoRA would give other numbers unnoticed. Knows no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.checkpoint_info import RESTORE
from clara_cli.errors import ArtefactError
from clara_cli.storage.artefact import Fields, read_object

FILE = "adapter_config.json"
# what says nothing of the numbers: names, versions, the start of training, settings of what is off
OF_NO_EFFECT = frozenset((
    "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "corda_config",
    "eva_config", "inference_mode", "init_lora_weights", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
))  # fmt: skip
COMPARED = ("r", "lora_alpha", "target_parameters")  # with what clara.json says
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others change the backbone too


def check_adapter(folder: Path, lora: LoraSettings) -> None:
    """See that a role's `adapter_config.json`, where there is one, says what `clara.json` says and
    no more.

    Raises:
        ArtefactError: naming the first setting that does not.
    """
    fields = read_object(folder / FILE, RESTORE)
    if fields is None:
        return
    if fields.values.get("peft_type") != "LORA":
        raise fields.wrong("peft_type", f"{fields.values.get('peft_type')!r}, not 'LORA'")
    for key, wanted in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if fields.count(key) != wanted:
            raise fields.wrong(key, f"{fields.values[key]}, clara.json has {wanted}")
    parameters = fields.values.get("target_parameters") or []
    if not isinstance(parameters, list) or sorted(map(str, parameters)) != sorted(lora.parameters):
        known = ", ".join(lora.parameters) or "none"
        raise fields.wrong("target_parameters", f"{str(parameters)[:80]}, clara.json has {known}")
    start = fields.values.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise _not_plain(fields, "init_lora_weights")
    for key, value in fields.values.items():
        if key not in OF_NO_EFFECT and key not in COMPARED and not _is_off(value):
            raise _not_plain(fields, key)


def _is_off(value: Any) -> bool:
    """Whether a setting is off: absent, false, empty, or PEFT's word for none."""
    return value in (None, False, "none") or value == [] or value == {}


def _not_plain(fields: Fields, key: str) -> ArtefactError:
    error = fields.wrong(key, f"{str(fields.values[key])[:80]!r} is more than plain LoRA")
    return ArtefactError(error.message, "train it again with clara, or fold it into the backbone")
