"""A backbone for reading alone, without transformers: `core.llama` and `core.fast_tokenizer` in the
place of transformers' own, where they were found to give the same (`core.probe`).

Opening a checkpoint so takes a third of the time. What is not a plain Llama is opened by
transformers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from clara_cli.core import digests, int8, loading
from clara_cli.core.backbone import inner_model
from clara_cli.core.fast_tokenizer import FastTokenizer, read_tokenizer
from clara_cli.core.llama import Llama, LlamaConfig
from clara_cli.errors import ArtefactError
from clara_cli.storage.tensors import read_tensors

HINT = "restore the backbone from a copy"
OWN_HEAD = "lm_head.weight"
# settings that must have this value, or be absent, for a config to be a plain Llama's
PLAIN = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}


def read_llama_config(folder: Path, what: str) -> LlamaConfig | None:
    """The config of a backbone's folder, None where it is not a plain Llama's.

    Raises:
        ArtefactError: where it is no JSON.
    """
    raw = loading.read_settings(folder / "config.json", what)
    if not isinstance(raw, dict) or any(raw.get(key) not in PLAIN[key] for key in PLAIN):
        return None
    rope = raw.get("rope_parameters") or {"rope_theta": raw.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        return None
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return None
    try:
        return LlamaConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(raw["intermediate_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // heads),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope["rope_theta"]),
            max_position_embeddings=int(raw["max_position_embeddings"]),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError):
        return None  # transformers knows what a config may leave out


def end_ids(folder: Path, what: str) -> list[int]:
    """The tokens that end an answer by the folder's settings for writing."""
    file = folder / "generation_config.json"
    if not file.is_file():
        file = folder / "config.json"
    settings = loading.read_settings(file, what)
    own = settings.get("eos_token_id") if isinstance(settings, dict) else None
    return [i for i in (own if isinstance(own, list) else [own]) if type(i) is int and i >= 0]


def open_model(folder: Path, what: str, dtype: torch.dtype) -> Llama | None:
    """The model of a backbone's folder on the CPU, None where it is not a plain Llama's.

    Raises:
        ArtefactError: for what `core.loading` refuses, and for tensors that are not the config's.
    """
    loading.check_folder(folder, what)
    loading.refuse_adapter(folder, what)
    config = read_llama_config(folder, what)
    if config is None or (folder / int8.FILE).exists():
        return None
    with torch.device("meta"):
        model = Llama(config, end_ids(folder, what))
    tensors: dict[str, torch.Tensor] = {}
    for file in digests.weight_files(folder):
        tensors |= read_tensors(file, HINT)
    fill(model, tensors, dtype, what)
    return model


def fill(model: Llama, tensors: dict[str, Any], dtype: torch.dtype, what: str) -> None:
    """Give an empty model its weights, as they are where they have the type.

    Raises:
        ArtefactError: naming the first that is missing or has another shape.
    """
    wanted = dict(model.named_parameters())
    for name, parameter in wanted.items():
        stored = tensors.get(name)
        if stored is None or stored.shape != parameter.shape:
            shape = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
            message = f"{what}: {name} is {shape}, config.json needs {tuple(parameter.shape)}"
            raise ArtefactError(message, HINT)
    kept = {name: tensors[name].detach().to(dtype) for name in wanted}
    model.load_state_dict(kept, strict=False, assign=True)
    model.tie()
    model.eval().requires_grad_(False)


# --- whether they give what transformers gives ---

SAMPLE = (
    "In 1,024 of 3.5 cases\n\n  the  café's naïve ½ cost $12.50 (Łódź, 東京 \U0001f600)\t1. one\n"
    "2. two <b>&amp;</b> [x](y) don't WE'LL --- x_y  \r\n end"
)
TOLERANCE = 1e-3  # of the largest hidden state


def agrees(folder: Path, causal_lm: Any, tokenizer: Any) -> bool:
    """Whether model and tokenizer of this module give what transformers' give, those of the same
    folder: the tokens of a text with every kind of character, the special tokens, and the hidden
    states of a batch, padded and not. The weights are shared, not read again."""
    what = f"backbone {folder}"
    config = read_llama_config(folder, what)
    own = None if config is None else read_tokenizer(folder, what)
    if config is None or own is None or (folder / int8.FILE).exists():
        return False
    return same_tokens(own, tokenizer) and same_states(config, causal_lm)


def same_tokens(own: FastTokenizer, theirs: Any) -> bool:
    """Whether two tokenizers read and write alike, and name the same special tokens."""
    texts = [SAMPLE, *theirs.all_special_tokens, SAMPLE + "".join(theirs.all_special_tokens)]
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        plain: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}
        if own(text, add_special_tokens=False)["input_ids"] != ids:
            return False
        if own(text, **plain)["input_ids"] != theirs(text, **plain)["input_ids"]:
            return False
        for skip in (True, False):
            if own.decode(ids, skip) != theirs.decode(ids, skip_special_tokens=skip):
                return False
    named = {name: str(token) for name, token in theirs.special_tokens_map.items()}
    return (
        own.special_tokens_map == {name: named[name] for name in own.special_tokens_map}
        and sorted(own.all_special_tokens) == sorted(map(str, theirs.all_special_tokens))
        and own.added_tokens_decoder.keys() == theirs.added_tokens_decoder.keys()
        and own.chat_template == theirs.chat_template
        and len(own) == len(theirs)
    )


@torch.no_grad()
def same_states(config: LlamaConfig, causal_lm: Any) -> bool:
    """Whether a model of this module on the same weights computes what transformers' does."""
    with torch.device("meta"):
        model = Llama(config)
    stored = dict(causal_lm.named_parameters())
    if dict(model.named_parameters()).keys() != stored.keys():
        return False
    table_VD = causal_lm.get_input_embeddings().weight
    fill(model, stored, table_VD.dtype, "backbone")
    rows = min(24, len(table_VD) - 1)
    embeds_BTD = table_VD[: 2 * rows].reshape(2, -1, table_VD.shape[1]) * math.sqrt(2.0)
    mask_BT = torch.ones(embeds_BTD.shape[:2], dtype=torch.long, device=table_VD.device)
    mask_BT[1, :5] = 0
    places_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    positions = {"attention_mask": mask_BT, "position_ids": places_BT}
    for extra in ({}, positions):
        own_BTD = model.model(embeds_BTD, **extra).last_hidden_state
        theirs = inner_model(causal_lm)(inputs_embeds=embeds_BTD, use_cache=False, **extra)
        theirs_BTD = theirs.last_hidden_state
        real = mask_BT.bool() if extra else torch.ones_like(mask_BT, dtype=torch.bool)
        apart = (own_BTD - theirs_BTD)[real].abs().max()
        if not apart <= TOLERANCE * theirs_BTD.abs().max():
            return False
    return True
