"""Loads any Hugging Face causal language model and answers the few questions the method asks of it.

Nothing here assumes a `model.model`, rotary positions or a BOS token.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clara_cli.core import digests, gguf, hub, int8, loading
from clara_cli.core.backbone_settings import read_settings
from clara_cli.core.losses import IGNORE
from clara_cli.core.shared_prefix import attention_mask, pack
from clara_cli.errors import ArtefactError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """A causal LM with its tokenizer, where it came from and in which revision.

    It lies in `folder`; `older_digest`, of its first values, is what version 1 of checkpoints has.
    `probe_seconds` is what trying it took, None where it was tried before; `pads` says whether
    prompts padded on the left are answered as they are alone.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    folder: Path | None = None
    older_digest: str = ""
    probe_seconds: float | None = None
    pads: bool = True

    @cached_property
    def digest(self) -> str:
        """The full digest of its stored weights; empty where they were never stored."""
        return "" if self.folder is None else digests.backbone_digest(self.folder)

    @cached_property
    def sample(self) -> str:
        """The digest of a sample of every stored tensor."""
        return "" if self.folder is None else digests.backbone_sample(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of its config that decide what it computes."""
        return {} if self.folder is None else read_settings(self.folder)

    @property
    def table_VD(self) -> nn.Parameter:
        """The input embeddings, a row a token."""
        return self.model.get_input_embeddings().weight

    @property
    def word_scale(self) -> float:
        """What the embedding module multiplies a row by when it is read (Gemma 3: about the square
        root of the width; others: 1)."""
        ids = torch.arange(min(64, len(self.table_VD)), device=self.table_VD.device)
        with torch.no_grad():
            read, stored = self.model.get_input_embeddings()(ids), self.table_VD[ids]
        return 1.0 if torch.equal(read, stored) else (read.norm() / stored.norm()).item()

    @property
    def hidden(self) -> int:
        """D."""
        return self.table_VD.shape[1]


def pick_device(name: str) -> torch.device:
    """The device to compute on; "auto" prefers CUDA, then Apple's GPU, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((n for n, there in available.items() if there), "cpu"))
    if not available.get(name, True):
        raise UsageError(f"--device {name}: none here", "omit --device, or use cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype; "auto" is bfloat16 on a GPU that has it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def load_backbone(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    quantised: dict[str, Any] | None = None,
) -> Backbone:
    """Load a backbone from a directory or by Hub id, `quantised` as these arguments of
    transformers say.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    folder = backbone_folder(name, revision)  # first: its progress is shown
    quieten()
    what = f"backbone {name}"
    tokenizer = loading.load_tokenizer(folder, what)
    if not (folder / int8.FILE).exists():
        model = loading.load_model(folder, what, dtype, **(quantised or {}))
    elif quantised:
        message = f"--load-in: the backbone {name} is stored in eight bits of its own"
        raise UsageError(message, "omit --load-in: it is small already")
    else:
        model = int8.load_backbone(folder, what, dtype)
    if not quantised:
        model.to(device)
    model.eval().requires_grad_(False)
    fetched = hub.origin(folder)
    as_computed = not quantised and dtype != torch.float16  # float16 rounds what bfloat16 does not
    older = first_values_digest(model) if as_computed else stored_first_values_digest(folder)
    return Backbone(model, tokenizer, name, fetched[1] if fetched else revision, folder, older)


def backbone_folder(name: str, revision: str | None, configs_only: bool = False) -> Path:
    """The folder of a backbone: a local one, or one fetched from the Hub.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    if (file := gguf.gguf_file(name)) is not None:
        return gguf.unpack(file)
    if (repository := gguf.hub_repository(name)) is not None:
        return gguf.unpack_named(name, lambda: hub.fetch_file(repository, name, revision))
    if Path(name).is_dir():
        return Path(name)
    if not is_owner_and_name(name):
        raise ArtefactError(
            f"backbone {name}: no such directory, and not a Hub id (owner/name)",
            "give the backbone's directory or Hub id with --backbone",
        )
    return hub.fetch_backbone(name, revision, configs_only)


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer: a local one, or one fetched from the Hub without any weights.

    Raises:
        ArtefactError: when it cannot be had; the message says why.
    """
    if Path(name).is_dir():
        return Path(name)
    if not is_owner_and_name(name):
        message = f"tokenizer {name}: no such directory, and not a Hub id (owner/name)"
        raise ArtefactError(message, "give a directory or a Hub id")
    return hub.fetch_tokenizer(name)


def is_owner_and_name(name: str) -> bool:
    """Whether a name has the form of a Hub id."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def quieten() -> None:
    """Keep the libraries' progress bars and deprecation notes off the terminal."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def inner_model(causal_lm: Any) -> nn.Module:
    """The part below the language-model head; its `last_hidden_state` is after the final norm."""
    for name in (causal_lm.base_model_prefix, "model"):  # Llama 4's prefix is of another class
        if (inner := getattr(causal_lm, name, None)) is not None:
            return inner
    return causal_lm.get_decoder()


class _Reached(Exception):
    """Ends a forward pass at a layer, whose input it carries."""

    def __init__(self, hidden_BTD: torch.Tensor) -> None:
        super().__init__()
        self.hidden_BTD = hidden_BTD


def layers_of(inner: nn.Module) -> nn.ModuleList:
    """The layers of a model below its head, in order.

    Raises:
        ArtefactError: where they are not one list.
    """
    config: Any = inner.config
    count = config.get_text_config().num_hidden_layers
    lists = (m for m in inner.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    layers = next(lists, None)
    if layers is None:
        message = f"{type(inner).__name__}: its {count} layers are not in one list"
        raise ArtefactError(message, "memory from its last layer works: omit the memory's layer")
    return layers


def hidden_before(inner: nn.Module, layer: int, **given: Any) -> torch.Tensor:
    """Hidden states (B, T, D) as layer number `layer`, counted from 0, receives them; the layers
    from there on are not computed."""

    def stop(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else named["hidden_states"])

    hook = layers_of(inner)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        inner(**given)
    except _Reached as reached:
        return reached.hidden_BTD
    finally:
        hook.remove()
    raise ArtefactError(f"{type(inner).__name__} does not run its layers", "use another backbone")


def is_whole(causal_lm: Any) -> bool:
    """Whether the weights are as saved, on one device: neither quantised nor spread."""
    quantised = getattr(causal_lm, "is_quantized", False)
    return not (quantised or getattr(causal_lm, "hf_device_map", None))


def head_logits(causal_lm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states after the final norm, as the model's own forward makes them: the
    head, then the scale or soft cap of the families that have one (Cohere, Granite, Gemma 2)."""
    config = causal_lm.config.get_text_config()
    logits = causal_lm.get_output_embeddings()(hidden).to(hidden.device)
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def check_head(causal_lm: Any) -> None:
    """Losses are computed from hidden states by `head_logits`; see that they would be right.

    Raises:
        ArtefactError: for a backbone that makes its logits in another way.
    """
    embeds_BTD = causal_lm.get_input_embeddings().weight[None, :2].detach()
    with torch.no_grad():
        own = causal_lm(inputs_embeds=embeds_BTD, use_cache=False).logits
        hidden = inner_model(causal_lm)(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
        logits = head_logits(causal_lm, hidden)
    if own.shape != logits.shape or not torch.allclose(own, logits, rtol=1e-2, atol=1e-2):
        raise ArtefactError(
            f"{type(causal_lm).__name__} makes its logits in a way this program does not know",
            "train on another backbone; reading and answering work with this one",
        )


def first_values_digest(causal_lm: Any) -> str:
    """The digest of backbones in version 1 of checkpoints: names, shapes and the first 16 values of
    every parameter, rounded to bfloat16."""
    digest = hashlib.sha256()
    for name, parameter in sorted(causal_lm.named_parameters()):
        _add(digest, name, tuple(parameter.shape), parameter.detach().flatten()[:16])
    return digest.hexdigest()


def _add(digest: Any, name: str, shape: tuple[int, ...], first: torch.Tensor) -> None:
    values = first.to("cpu", torch.bfloat16).float()
    digest.update(f"{name}{shape}".encode() + values.numpy().tobytes())


def stored_first_values_digest(folder: Path) -> str:
    """The same digest from a backbone's files, whatever it is loaded in; empty where they name its
    weights otherwise than the model does (experts one by one, which it holds in one parameter)."""
    from safetensors import safe_open

    empty = loading.empty_model(folder, f"backbone {folder}")
    wanted = {n: tuple(p.shape) for n, p in empty.named_parameters()}
    first: dict[str, torch.Tensor] = {}
    for file in digests.weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            for key in names & set(wanted):
                rows = -(-16 // max(1, math.prod(wanted[key][1:])))
                values = stored.get_slice(key)[:rows]
                if (scale := key + int8.SCALE) in names:
                    values = values * stored.get_slice(scale)[:rows].float()
                first[key] = values.flatten()[:16]
    if first.keys() != wanted.keys():
        return ""
    digest = hashlib.sha256()
    for key, shape in sorted(wanted.items()):
        _add(digest, key, shape, first[key])
    return digest.hexdigest()


def sliding_window(causal_lm: Any) -> int | None:
    """Positions that the backbone's local attention layers see, None where all see everything."""
    config = causal_lm.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def shares_prefixes(causal_lm: Any) -> bool:
    """Whether the backbone takes a mask of its own and positions, so that two rows packed on their
    common beginning (`core.shared_prefix`) give the hidden states they give alone."""
    config = causal_lm.config
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    rows = [[3, 4, 5, 6, 7], [3, 4, 5, 8, 9]]
    (packed,) = pack(rows, [[IGNORE] * 4 + [1]] * 2, [0, 0], least_saved=1)
    table = causal_lm.get_input_embeddings().weight.detach()
    inner, device = inner_model(causal_lm), table.device
    with torch.no_grad():
        alone_BTD = inner(inputs_embeds=table[torch.tensor(rows)], use_cache=False)
        alone_BTD = alone_BTD.last_hidden_state
        together_TD = inner(
            inputs_embeds=table[torch.tensor([packed.ids])],
            attention_mask=attention_mask([packed], table.dtype, device),
            position_ids=torch.tensor([packed.positions], device=device),
            use_cache=False,
        ).last_hidden_state[0]
    expected_TD = torch.cat([alone_BTD[0], alone_BTD[1, 3:]])
    scale = expected_TD.abs().max().clamp(min=1e-6)
    return bool((together_TD - expected_TD).abs().max() <= 0.02 * scale)


def window(causal_lm: Any) -> int | None:
    """Longest input in positions, None where the architecture sets no limit. Of LongRoPE (Phi-3) it
    is the original window: beyond it every position is encoded anew, which what is cached, and the
    shorter rows of a batch, are not or should not be."""
    config = causal_lm.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None), longrope_window(config)]
    return min((limit for limit in limits if limit is not None), default=None)


def longrope_window(config: Any) -> int | None:
    """The positions up to which LongRoPE encodes as it was first trained, None for other kinds."""
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    own = getattr(config, "original_max_position_embeddings", None)
    windows = [
        layer.get("original_max_position_embeddings", own)
        for layer in layers
        if layer.get("rope_type") == "longrope"
    ]
    return min((limit for limit in windows if limit is not None), default=None)
