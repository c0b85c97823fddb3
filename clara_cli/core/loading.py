"""The one place where a library loads models: configs, tokenizers, weights, empty models.

Everything is read from a folder that is here; nothing is looked up by name. A folder that names
code of its own is refused before a library sees it: nothing of a stranger's runs, and nobody is
asked whether it may.
"""

from __future__ import annotations

import json
import re
import reprlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from clara_cli.errors import ArtefactError, ClaraError, first_line, is_out_of_memory
from clara_cli.storage.artefact import parse
from clara_cli.storage.file_kinds import read_file, special_file, why_unreadable

SETTINGS = ("*config*.json", "special_tokens_map.json", "clara.json")  # what may name code
MOST_SETTINGS = 64 * 2**20  # bytes of one such file; a tokenizer's lists its added tokens
CODE_KEYS = ("auto_map", "auto_mapping", "custom_code", "custom_generate", "custom_pipelines")
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation")
OWN_LIBRARIES = re.compile(r"(transformers|peft)(\.\w+)*")
SCRIPT = re.compile(r"[\w./-]*\w\.py")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLDER_ADAPTER_WEIGHTS = "adapter_model.bin"
Task = Literal["generate", "vectors", "score", "label tokens", "rewrite"]
TASKS: dict[Task, str] = {
    "generate": "AutoModelForCausalLM",
    "vectors": "AutoModel",
    "score": "AutoModelForSequenceClassification",
    "label tokens": "AutoModelForTokenClassification",
    "rewrite": "AutoModelForSeq2SeqLM",
}
MOST = {  # of a config's numbers, an order above any published model's
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 1000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 200_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 10_000),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 10_000),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "n_inner", "d_ff"), 2_000_000),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 5_000_000),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 200_000_000),
}
TEXT_WEIGHTS = {  # names in the files of a model that reads images or sound too: of its text model
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": "model.",
}
HEAD = "lm_head.weight"
PACKED = 2  # numbers a byte holds at most, in four bits
NO_CODE = {"trust_remote_code": False}
HINT = "its folder needs config.json, *.safetensors and the tokenizer's files"


# --- what is refused ---


def refuse_code(folder: Path, what: str) -> None:
    """Refuse a folder whose settings name code that comes with them, and one with a pipe or a
    device in it, for which a library would wait without end.

    Raises:
        ArtefactError: naming the file, the setting and its value.
    """
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if special := why_unreadable(file) if file.is_symlink() else special_file(file):
            raise ArtefactError(f"{what}: {file.name}: {special}", HINT)
    for file in settings_files(folder):
        settings = read_settings(file, what)
        for key, value in code_named(settings):
            shown = json.dumps(value, ensure_ascii=False)
            shown = shown if len(shown) <= 120 else f"{shown[:120]}..."
            raise ArtefactError(
                f"{what}: {file.name} names code of its own: {key} = {shown}",
                code_hint(settings, key),
            )


def settings_files(folder: Path) -> list[Path]:
    """The files of a folder in which a library looks for settings."""
    return sorted({file for pattern in SETTINGS for file in folder.glob(pattern)})


def read_settings(file: Path, what: str) -> Any:
    """A JSON file of settings.

    Raises:
        ArtefactError: where it is none, or larger than any is.
    """
    try:
        if file.stat().st_size > MOST_SETTINGS:
            message = f"{what}: {file.name} has more than {MOST_SETTINGS >> 20} MiB"
            raise ArtefactError(message, HINT)
        return parse(read_file(file))
    except OSError as error:
        raise ArtefactError(f"{what}: {file.name}: {error.strerror}", HINT) from error
    except ValueError as error:
        message = f"{what}: {file.name}: not JSON: {first_line(error)}"
        raise ArtefactError(message, HINT) from error


def code_named(settings: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every setting, however deep, that names code which is not a library's."""
    levels = [settings]
    while levels:
        level = levels.pop()
        if isinstance(level, list):
            levels += level
        if not isinstance(level, dict):
            continue
        for key, value in level.items():
            if names_code(key, value):
                yield key, value
            levels.append(value)


def names_code(key: str, value: Any) -> bool:
    """Whether one setting names code."""
    if key == "auto_mapping" and isinstance(value, dict):  # PEFT's, of the class it adapts
        return not OWN_LIBRARIES.fullmatch(str(value.get("parent_library") or "peft"))
    if key in CODE_KEYS:
        return bool(value)
    if not isinstance(value, str):
        return False
    if key in KERNEL_KEYS:  # owner/name: compiled code from the Hub
        return "/" in value
    return key != "content" and SCRIPT.fullmatch(value) is not None


def code_hint(settings: Any, key: str) -> str:
    """What to do about a folder that names code."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind in CONFIG_MAPPING_NAMES:
        built_in = f"transformers knows the kind {kind} itself"
        return (
            f"{built_in}: take {key} out of config.json in a copy of the folder, and give the copy"
        )
    return "clara runs no code that comes with a model: give one of a kind transformers knows"


def refuse_sizes(folder: Path, what: str) -> None:
    """Refuse a config with a number that no model has, before anything is made of it.

    Raises:
        ArtefactError: naming the setting and the most it may be.
    """
    levels = [read_settings(folder / "config.json", what)]
    while levels:
        level = levels.pop()
        levels += level if isinstance(level, list) else []
        for key, value in level.items() if isinstance(level, dict) else ():
            most = MOST.get(key)
            if most is not None and isinstance(value, int | float) and not 0 <= value <= most:
                shown = reprlib.repr(value)
                message = f"{what}: config.json: {key} is {shown}, the most is {most:,}"
                raise ArtefactError(message, HINT)
            levels.append(value)


def check_folder(folder: Path, what: str) -> None:
    """Everything that is seen to before a library reads a folder.

    Raises:
        ArtefactError: for code of its own, and for impossible numbers.
    """
    refuse_code(folder, what)
    if (folder / "config.json").exists():
        refuse_sizes(folder, what)


def refuse_more_than_stored(folder: Path, what: str) -> None:
    """Refuse a config that makes more numbers than the folder's files hold bytes, before memory is
    taken for them.

    Raises:
        ArtefactError: with both.
    """
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    wanted = sum(parameter.numel() for parameter in empty_model(folder, what).parameters())
    if wanted > PACKED * stored:
        message = f"{what}: config.json makes {wanted:,} numbers, its files have {stored:,} bytes"
        raise ArtefactError(message, HINT)


def refuse_adapter(folder: Path, what: str) -> None:
    """Refuse a backbone with a LoRA adapter beside it, which would be in force or not by chance.

    Raises:
        ArtefactError: where there is one.
    """
    names = (ADAPTER, ADAPTER_WEIGHTS, OLDER_ADAPTER_WEIGHTS)
    if name := next((name for name in names if (folder / name).exists()), None):
        raise ArtefactError(
            f"{what}: {name}: an adapter lies in the backbone's folder",
            "merge it into the weights (PEFT's merge_and_unload, then save_pretrained), or give "
            "the folder without it",
        )


@contextmanager
def as_artefact_errors(what: str, hint: str = HINT) -> Iterator[None]:
    """Whatever a library raises over the files it loads, as one error that names them."""
    try:
        yield
    except ClaraError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a library written in Rust
        if not (panic or isinstance(error, Exception)) or is_out_of_memory(error):
            raise
        raise ArtefactError(f"{what}: {first_line(error)}", hint) from error


# --- what loads ---


def load_tokenizer(folder: Path, what: str) -> Any:
    """The tokenizer of a folder; `what` names it in errors.

    Raises:
        ArtefactError: where there is none, or it names code of its own.
    """
    from transformers import AutoTokenizer

    check_folder(folder, what)
    with as_artefact_errors(what):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **NO_CODE)


def load_config(folder: Path, what: str) -> Any:
    """The config of a backbone's folder.

    Raises:
        ArtefactError: where there is none, or the folder names code of its own.
    """
    from transformers import AutoConfig

    check_folder(folder, what)
    with as_artefact_errors(what):
        return AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE)


def load_text_config(folder: Path, what: str) -> Any:
    """The config of a backbone's folder; of a model that reads images or sound too, that of its
    text model.

    Raises:
        ArtefactError: where there is none; the folder names code of its own; or there is no text
            model of it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = load_config(folder, what)
    text: Any = getattr(config, "text_config", None)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        with as_artefact_errors(what):
            names = stored_names(folder)
        has_head = any(name.endswith(HEAD) for name in names)
        if names and not has_head and config.tie_word_embeddings:
            text.tie_word_embeddings = True  # the whole model's setting, which its text's may lack
        return text
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        message = f"{what}: transformers has no text model of the kind {config.model_type!r}"
        raise ArtefactError(message, "take a causal language model; recipes/backbones lists kinds")
    return config


def stored_names(folder: Path) -> list[str]:
    """The names of all tensors in a folder's files."""
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names += stored.keys()
    return names


def load_model(folder: Path, what: str, dtype: torch.dtype, **placement: Any) -> Any:
    """The causal language model of a backbone's folder, from safetensors, on the CPU or where
    `placement` (transformers' `quantization_config` and `device_map`) puts it.

    Raises:
        ArtefactError: where it cannot be loaded; names code of its own; or has an adapter.
    """
    from transformers import AutoModelForCausalLM

    refuse_adapter(folder, what)
    refuse_more_than_stored(folder, what)
    stored: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, **NO_CODE}
    config = load_text_config(folder, what)
    if config.model_type != load_config(folder, what).model_type:
        stored |= {"config": config, "key_mapping": TEXT_WEIGHTS}
    with as_artefact_errors(what):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **stored, **placement
        )
    model, facts = loaded
    if missing := sorted(facts["missing_keys"]):
        message = f"{what}: {len(missing)} weights are not in its files: {', '.join(missing[:3])}"
        raise ArtefactError(message, HINT)
    return model


def load_task_model(folder: Path, what: str, dtype: torch.dtype, task: Task) -> Any:
    """A model of a folder for `task`, from safetensors, on the CPU.

    Raises:
        ArtefactError: where it cannot be loaded, or names code of its own.
    """
    import transformers

    check_folder(folder, what)
    with as_artefact_errors(what):
        return getattr(transformers, TASKS[task]).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **NO_CODE
        )


def merge_adapter(model: Any, folder: Path, what: str) -> Any:
    """A causal language model with a folder's LoRA adapter merged into its weights.

    Raises:
        ArtefactError: where it cannot be loaded; names code of its own; or is no safetensors.
    """
    from peft import PeftModel

    check_folder(folder, what)
    if not (folder / ADAPTER_WEIGHTS).exists():
        message = f"{what}: no {ADAPTER_WEIGHTS}"
        raise ArtefactError(message, "save the adapter as safetensors first")
    with as_artefact_errors(what):
        return PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()


def load_generation_config(folder: Path, what: str) -> Any:
    """The generation settings of a folder; None where it has none."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return None
    with as_artefact_errors(what):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def plain_generation(**settings: Any) -> Any:
    """Greedy generation with these settings, nothing of a backbone's own."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, num_beams=1, **settings)


def new_model(config: Any, dtype: torch.dtype | None = None) -> Any:
    """A model of a config, its weights random, on torch's current default device."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype, **NO_CODE)


def new_config(kind: str, **settings: Any) -> Any:
    """A config of one of transformers' own kinds."""
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **settings)


def empty_model(folder: Path, what: str) -> Any:
    """A backbone's architecture without weights, from its config alone.

    Raises:
        ArtefactError: where there is no config, or the folder names code of its own.
    """
    config = load_text_config(folder, what)
    with as_artefact_errors(what), torch.device("meta"):
        return new_model(config)


@contextmanager
def gguf_folder(file: Path) -> Iterator[dict[str, Any]]:
    """What the libraries take to load a GGUF file; no other file of its folder is read."""
    with tempfile.TemporaryDirectory(prefix="clara-gguf-") as folder:
        (Path(folder) / file.name).symlink_to(file.absolute())
        named = {"pretrained_model_name_or_path": folder, "gguf_file": file.name}
        yield {**named, "local_files_only": True, **NO_CODE}


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file."""
    from transformers import AutoTokenizer

    with gguf_folder(file) as named:
        return AutoTokenizer.from_pretrained(**named)


def load_gguf_model(file: Path, head_width: int | None = None) -> Any:
    """The model of a GGUF file, in float32. `head_width` is the file's own, which transformers
    takes from the kind's default for some kinds (Qwen3: 128; seen in 5.24)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with gguf_folder(file) as named:
        config = AutoConfig.from_pretrained(**named)
        if head_width is not None and hasattr(config, "head_dim"):
            config.head_dim = head_width
        return AutoModelForCausalLM.from_pretrained(config=config, dtype="float32", **named)
