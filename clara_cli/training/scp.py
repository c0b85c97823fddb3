"""SCP, the stage of `pretrain`: memory is learned by writing from it (paper section 3.1). Pairs in:
questions with their answers, and paraphrases, of one passage each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clara_cli.config import PretrainConfig
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.batch import Batch, pair_length, scp_batch
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.lora_targets import true_targets
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.placement import spread
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS, Prompter
from clara_cli.core.stage_losses import Losses, read_memory_loss
from clara_cli.distributed.ranks import Ranks
from clara_cli.documents.examples import PAIR_KINDS, read_pairs
from clara_cli.errors import UsageError, nearest
from clara_cli.memory_layout import PUBLISHED, MemoryLayout
from clara_cli.records import Pair
from clara_cli.training.runner import load_options
from clara_cli.training.sampling import micro_batches, sample_step
from clara_cli.training.stage import Stage
from clara_cli.training.validation import Example, HeldOutSet, split

DEFAULT_RATIO, PASSAGE_TOKENS, RANK, ALPHA = 16, 256, 16, 32
NO_START = (
    "neither --backbone nor --init",
    "give --backbone a folder, a .gguf file or a Hub id, for fresh roles",
)
MIXED = tuple(kind for kinds in PAIR_KINDS.values() for kind in kinds)


class Scp(Stage):
    """Compressor and generator learn from pairs: the answer's loss, and alignment of memory."""

    name = "scp"
    figures = ("ce", "mse")
    config: PretrainConfig

    @staticmethod
    def read_records(config: PretrainConfig) -> tuple[list[Pair], list[Pair]]:
        """(pairs to train on, mixed as the settings say; pairs to validate on)."""
        named = read_pairs(config.validation) if config.validation else []
        pairs, held_out = split(config, read_pairs(config.pairs), named)
        return mix(pairs, config), held_out

    def facts(self) -> dict[str, Any]:
        """The roles trained, and the scale at which fresh memory tokens began."""
        facts, scale = super().facts(), self.model.backbone.word_scale
        if self.config.init is None and scale != 1:
            facts["memory_scale"] = round(scale, 4)
        return facts

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, all at one number of memory tokens."""
        pairs, rng = sample_step(self.config, step, self.records, pair_length)
        m = rng.choice(self.memory_tokens)
        visits = [(pair, rng.randrange(len(PARAPHRASE_INSTRUCTIONS))) for pair in pairs]
        visits.sort(key=lambda visit: pair_length(visit[0]))
        parts = micro_batches(self.config, self.ranks, visits)
        batches = [self._batch([p for p, _ in part], [i for _, i in part], m) for part in parts]
        for batch in batches:
            self.add_reconstructions(batch, rng)
        return batches

    def _batch(self, pairs: Sequence[Pair], instructions: Sequence[int], m: int) -> Batch:
        limit = self.config.max_length
        return scp_batch(self.model.prompter, pairs, instructions, m, limit)

    def losses(self, batch: Batch, aligned: float) -> Losses:
        """Cross-entropy of the answers and weighted alignment (paper eq. 5)."""
        return read_memory_loss(self.model, batch, self.config.mse_weight * aligned)

    def held_out(self, records: Sequence[Pair]) -> HeldOutSet:
        """Pairs kept aside, each with the first paraphrase instruction."""
        return HeldOutSet(
            [Example(pair) for pair in records],
            lambda part: self._batch(part, [0] * len(part), self.memory_tokens[0]),
            self.losses,
            lambda _: (None, []),
        )


def fresh_lora(config: PretrainConfig, dropout: float = 0.0) -> LoraSettings:
    """LoRA's settings of roles that start fresh."""
    return LoraSettings(config.lora_rank or RANK, config.lora_alpha or ALPHA, dropout)


def mix(pairs: Sequence[Pair], config: PretrainConfig) -> list[Pair]:
    """The pairs of one pass by `config.mix`: a kind of weight 2 comes twice, of weight 0.5 half of
    it comes, the same half in every pass, drawn by the seed.

    Raises:
        UsageError: for a kind that is unknown, in the data but not in the mix, or the other way.
    """
    if config.mix is None:
        return list(pairs)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.kind, []).append(pair)
    check_mix(config.mix, groups)
    mixed = []
    for kind, group in groups.items():
        whole, part = divmod(config.mix[kind], 1)
        picked = random.Random(f"{config.seed} mix {kind}").sample(group, round(part * len(group)))
        mixed += group * int(whole) + picked
    return mixed


def check_mix(weights: dict[str, float], groups: Mapping[str, Sequence[Pair]]) -> None:
    """Weights that cannot be meant."""
    for kind, weight in weights.items():
        if kind not in MIXED:
            raise UsageError(f"mix: no kind {kind!r}", nearest(kind, MIXED))
        if not 0 <= weight < math.inf:
            raise UsageError(f"mix.{kind} is {weight}", "a weight is 0 or more")
        if weight and kind not in groups:
            raise UsageError(f"mix.{kind} is {weight:g}, but no pair is {kind}", "omit it")
    for kind, group in groups.items():
        if kind not in weights:
            message = f"mix says nothing of the {len(group)} {kind} pairs"
            raise UsageError(message, f"add {kind} = 1, or {kind} = 0 to leave them out")
    if not any(weights.values()):
        raise UsageError("mix leaves out every pair", "give one kind a weight above 0")


def refuse_changes(config: PretrainConfig, loaded: Loaded) -> None:
    """Settings of fresh checkpoints cannot change an existing one.

    Raises:
        UsageError: naming the setting and both values.
    """
    info = loaded.info
    if new_layout(config, info.layout) != info.layout:
        return
    fixed = {
        "passage_tokens": info.max_passage_tokens,
        "lora_rank": info.lora.rank,
        "lora_alpha": info.lora.alpha,
    }
    for name, value in fixed.items():
        wanted = getattr(config, name)
        if wanted is not None and wanted != value:
            raise UsageError(
                f"{name} is {wanted}, but {config.init} was made with {value}",
                f"omit {name} with --init, or begin fresh with --backbone",
            )


def open_checkpoint(config: PretrainConfig, ranks: Ranks) -> Loaded:
    """The checkpoint to start from, or fresh roles on a backbone.

    Raises:
        UsageError: where neither is named.
    """
    if config.init is not None:
        loaded = load(load_options(config, config.init, ranks), config.dropout)
        refuse_changes(config, loaded)
        if new_layout(config, loaded.info.layout) != loaded.info.layout:
            loaded = with_new_memory(config, loaded)
        for role in ("compressor", "generator"):
            if role not in loaded.model.roles:
                loaded.model.add_role(role, None)
        return loaded
    if config.backbone is None:
        raise UsageError(*NO_START)
    return fresh_checkpoint(config, config.backbone, ranks)


def new_layout(config: PretrainConfig, before: MemoryLayout) -> MemoryLayout:
    """How memory is made after training with these settings."""
    layer = before.layer if config.memory_layer is None else config.memory_layer or None
    source = config.memory_source or before.source
    return MemoryLayout(source, config.memory_positions or before.positions, layer)


def memory_counts(tokens: int, ratios: Sequence[int]) -> list[int]:
    """Memory tokens of each ratio for passages of at most so many tokens.

    Raises:
        UsageError: for ratios that leave no memory.
    """
    for ratio in ratios:
        if ratio < 1 or ratio > tokens:
            message = f"ratio {ratio} of {tokens}-token passages leaves no memory"
            raise UsageError(message, f"ratios go from 1 to {tokens}")
    return [tokens // ratio for ratio in ratios]


def with_new_memory(config: PretrainConfig, loaded: Loaded) -> Loaded:
    """The same generator with another kind of memory, to be learned from the start: a fresh
    compressor and fresh memory tokens; who reads questions in memory space is left out."""
    model, info = loaded.model, loaded.info
    tokens = config.passage_tokens or info.max_passage_tokens
    ratios = config.ratios or info.ratios
    memory_tokens = max(memory_counts(tokens, ratios))
    seeded = torch.Generator().manual_seed(config.seed)
    word_scale = model.backbone.word_scale
    memory_MD, _ = fresh_memory(memory_tokens, model.table_VD, seeded, word_scale)
    torch.manual_seed(config.seed)
    model.begin_memory_anew(new_layout(config, info.layout), memory_MD, tokens)
    changed = replace(
        info,
        layout=model.layout,
        roles=model.roles,
        max_passage_tokens=tokens,
        memory_tokens=memory_tokens,
        ratio=info.ratio if info.ratio in ratios else ratios[0],
        ratios=tuple(sorted(ratios)),
    )
    return replace(loaded, info=changed)


def fresh_checkpoint(config: PretrainConfig, backbone: str, ranks: Ranks) -> Loaded:
    """Fresh roles and memory tokens on a backbone.

    Raises:
        UsageError: for ratios that leave no memory.
    """
    options = load_options(config, backbone, ranks)
    base = options.open_backbone(backbone)
    tokens = config.passage_tokens or PASSAGE_TOKENS
    ratios = config.ratios or (DEFAULT_RATIO,)
    memory_tokens = max(memory_counts(tokens, ratios))
    layout = new_layout(config, PUBLISHED)
    lora = true_targets(base.model, fresh_lora(config, config.dropout))
    seeded = torch.Generator().manual_seed(config.seed)
    memory_MD, markers_2D = fresh_memory(memory_tokens, base.table_VD, seeded, base.word_scale)
    prompter = Prompter(base.tokenizer, tokens)
    prompter.check_template(f"backbone {base.name}")
    roles = ("compressor", "generator")
    model = ClaraModel(base, prompter, lora, roles, memory_MD, markers_2D, layout=layout)
    model.check_layout()
    info = CheckpointInfo(
        backbone=base.name,
        revision=base.revision,
        backbone_digest=base.digest,
        max_passage_tokens=tokens,
        memory_tokens=memory_tokens,
        ratio=DEFAULT_RATIO if DEFAULT_RATIO in ratios else ratios[0],
        ratios=tuple(sorted(ratios)),
        lora=lora,
        roles=model.roles,
        layout=layout,
    )
    if options.placement.spreads:
        spread(model, str(options.placement.device_map))
    return Loaded(model, info, Path(base.name), base.name)
