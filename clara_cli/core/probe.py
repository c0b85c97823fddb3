"""Whether a backbone can be read by embeddings, tried once: the method gives a model vectors where
others give it tokens. What was found right is remembered for the same weights, settings, tokenizer
and library; what is wrong is refused each time. B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_cli.core import loading
from clara_cli.core.backbone import Backbone, inner_model
from clara_cli.core.reading_backbone import agrees
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.storage.cache import cache_folder, private, private_folder
from clara_cli.storage.file_kinds import read_file
from clara_cli.storage.files import write_atomic

VERSION = 3  # of what is tried
PLAIN = b"plain"  # what is remembered of one that `core.llama` computes alike
ALONE = b"alone"  # of one whose prompts are answered one by one
POSITIONS, NEW = 8, 2  # tokens read and written
TOLERANCE = 1e-3  # of the largest logit
ROUNDED_TOLERANCE = 2e-2  # the same of a padded prompt in number formats of 16 bits
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
HINT = "take another backbone; recipes/backbones lists the kinds that were tried"


def probe(base: Backbone) -> Backbone:
    """Try a backbone, unless it was found right before; the same with what was found.

    Raises:
        ArtefactError: naming what does not work.
    """
    kept = None if base.folder is None else kept_file(base)
    if kept is not None and kept.is_file():
        return replace(base, pads=read_file(kept) != ALONE)
    began = time.perf_counter()
    check_tokens(base)
    check_reading(base)
    pads = answers_padded(base)
    plain = pads and base.folder is not None and agrees(base.folder, base.model, base.tokenizer)
    seconds = time.perf_counter() - began
    if kept is not None:
        keep(kept, PLAIN if plain else b"" if pads else ALONE)
    return replace(base, probe_seconds=seconds, pads=pads)


def is_plain(base: Backbone) -> bool:
    """Whether a backbone of which only the folder is known was found right, and `core.llama` to
    compute the same."""
    try:
        return read_file(kept_file(base)) == PLAIN
    except OSError:
        return False


def kept_file(base: Backbone) -> Path:
    """Where the cache remembers that a backbone was found right."""
    assert base.folder is not None
    facts = [VERSION, version("transformers"), base.sample, base.settings]
    for name in TOKENIZER_FILES:
        file = base.folder / name
        content = read_file(file) if file.is_file() else b""
        facts.append(hashlib.sha256(content).hexdigest())
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "probes" / key


def keep(file: Path, result: bytes) -> None:
    """Remember; where that cannot be written the backbone is tried again."""
    with contextlib.suppress(OSError, ClaraError), private():
        write_atomic(private_folder(file.parent.name), file.name, result)


def check_tokens(base: Backbone) -> None:
    """Every token has a row, and the tokenizer says where in a text its tokens stand.

    Raises:
        ArtefactError: naming the tokens and both sizes.
    """
    rows, what = base.table_VD.shape[0], f"backbone {base.name}"
    beyond = sorted((i, token) for token, i in base.tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:3])
        message = f"{what}: {len(beyond)} tokens of its tokenizer have no row among {rows:,}: "
        raise ArtefactError(message + named, "its tokenizer belongs to another model")
    if not getattr(base.tokenizer, "is_fast", False):
        message = f"{what}: its tokenizer has no fast form, which says where its tokens stand"
        raise ArtefactError(message, "add its tokenizer.json")


@torch.no_grad()
def check_reading(base: Backbone) -> None:
    """Embeddings in and ids in give the same logits and the same greedy tokens, and outputs have
    the names they are asked for by.

    Raises:
        ArtefactError: naming what does not work.
    """
    what = f"backbone {base.name} ({type(base.model).__name__})"
    ids_BT = probe_ids(base)
    with loading.as_artefact_errors(f"{what} cannot be read by embeddings", HINT):
        embeds_BTD = base.model.get_input_embeddings()(ids_BT)
        by_ids = base.model(input_ids=ids_BT, use_cache=False).logits
        by_embeddings = base.model(inputs_embeds=embeds_BTD, use_cache=False).logits
        hidden = inner_model(base.model)(inputs_embeds=embeds_BTD, use_cache=False)
        width = hidden.last_hidden_state.shape[-1]
        written = [greedy(base, input_ids=ids_BT), greedy(base, inputs_embeds=embeds_BTD)]
        between_BTD = (embeds_BTD + embeds_BTD.roll(1, 1)) / 2  # of no token, as memory is
        base.model(inputs_embeds=between_BTD, use_cache=False)
    largest = by_ids.float().abs().max()
    apart = (by_ids.float() - by_embeddings.float()).abs().max()
    if not apart <= TOLERANCE * largest:
        message = f"{what}: logits from embeddings and from tokens are {apart / largest:.0%} apart"
        raise ArtefactError(f"{message}: it reads more of a token than its embedding", HINT)
    if width != base.hidden:
        message = f"{what}: embeddings are {base.hidden} wide, hidden states {width}"
        raise ArtefactError(message, HINT)
    if not torch.equal(written[0][:, -NEW:], written[1][:, -NEW:]):
        raise ArtefactError(f"{what} writes other tokens from embeddings than from tokens", HINT)


def answers_together(base: Backbone) -> bool:
    """Whether a backbone that is only given tokens (`clara synth`) answers padded prompts as alone:
    as its probe found, else tried. Kinds that embeddings cannot be given to are tried each time."""
    kept = None if base.folder is None else kept_file(base)
    if kept is not None and kept.is_file():
        return read_file(kept) != ALONE
    return answers_padded(base, by_ids=True)


@torch.no_grad()
def answers_padded(base: Backbone, by_ids: bool = False) -> bool:
    """Whether a prompt padded on the left, beside a longer one, is answered with the logits that it
    gets alone. Kinds with a recurrent state may read the padding into it."""
    ids_T = probe_ids(base)[0]
    short_T = ids_T[: max(1, len(ids_T) // 3)]
    padded_T = torch.cat([ids_T.new_zeros(len(ids_T) - len(short_T)), short_T])
    both = step_logits(
        base, torch.stack([ids_T, padded_T]), [len(ids_T), len(short_T)], by_ids=by_ids
    )
    alone = step_logits(base, short_T[None], [len(short_T)], by_ids=by_ids)
    tolerance = TOLERANCE if base.table_VD.dtype == torch.float32 else ROUNDED_TOLERANCE
    for together_BV, single_BV in zip(both, alone, strict=True):
        largest, apart = single_BV.abs().max(), (together_BV[1] - single_BV[0]).abs().max()
        if not apart <= tolerance * largest:
            return False
        if together_BV[1].argmax() != single_BV[0].argmax():
            break  # a near tie: what follows is of another text
    return True


def step_logits(base: Backbone, ids_BT: Tensor, lengths: list[int], by_ids: bool) -> list[Tensor]:
    """The logits (B, V) of each new token after prompts of these lengths, padded on the left, given
    as embeddings or as ids."""
    steps: list[Tensor] = []

    def keep_logits(ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        steps.append(logits_BV.float().clone())
        return logits_BV

    width = ids_BT.shape[1]
    mask = [[0] * (width - length) + [1] * length for length in lengths]
    mask_BT = torch.tensor(mask, device=ids_BT.device)
    embeds = base.model.get_input_embeddings()
    prompts = {"input_ids": ids_BT} if by_ids else {"inputs_embeds": embeds(ids_BT)}
    config = loading.plain_generation(max_new_tokens=NEW, pad_token_id=0)
    with nothing_of_its_own(base.model):
        base.model.generate(
            **prompts,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=[keep_logits],
        )
    return steps


def probe_ids(base: Backbone) -> Tensor:
    """Ordinary tokens, spread over the vocabulary."""
    special = set(base.tokenizer.all_special_ids)
    ids = sorted(i for i in base.tokenizer.get_vocab().values() if i not in special)
    step = max(1, len(ids) // POSITIONS)
    return torch.tensor([ids[::step][:POSITIONS]], device=base.table_VD.device)


def greedy(base: Backbone, **given: Tensor) -> Tensor:
    """Tokens written greedily after tokens, or after embeddings."""
    config = loading.plain_generation(max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
    length = next(iter(given.values())).shape[1]
    mask_BT = torch.ones(1, length, dtype=torch.long, device=base.table_VD.device)
    with nothing_of_its_own(base.model):
        out: Any = base.model.generate(**given, attention_mask=mask_BT, generation_config=config)
    return out


@contextlib.contextmanager
def nothing_of_its_own(causal_lm: Any) -> Iterator[None]:
    """Without a backbone's own settings for writing, from which transformers fills gaps."""
    kept, causal_lm.generation_config = causal_lm.generation_config, loading.plain_generation()
    try:
        yield
    finally:
        causal_lm.generation_config = kept
