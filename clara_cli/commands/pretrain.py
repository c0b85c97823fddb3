"""`clara pretrain`: SCP. Pairs in, a checkpoint with a compressor and a generator out."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clara_cli.commands.checkpoint_notes import note_older, note_probe, tell
from clara_cli.commands.dry_run import of_training
from clara_cli.config import PretrainConfig
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import check_head
from clara_cli.core.batch import Batch, pair_length, scp_batch
from clara_cli.core.checkpoint import Loaded, load
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.placement import spread
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS, Prompter
from clara_cli.core.stages import Losses, read_memory_loss
from clara_cli.distributed.ranks import Ranks, join
from clara_cli.documents.examples import PAIR_KINDS, read_pairs
from clara_cli.errors import UsageError, nearest
from clara_cli.records import MemoryNeed, Pair, Report, TrainResult
from clara_cli.training.runner import (
    Task,
    check_settings,
    draw,
    load_options,
    micro,
    ratio_slots,
    train_stage,
    trained_roles,
)
from clara_cli.training.validation import Example, HeldOutSet, check_validation, split

DEFAULT_RATIO, PASSAGE_TOKENS, RANK, ALPHA = 16, 256, 16, 32
NO_START = ("neither --backbone nor --init", "give --backbone DIR|OWNER/NAME for fresh roles")
MIXED = tuple(kind for kinds in PAIR_KINDS.values() for kind in kinds)


def run(config: PretrainConfig, report: Report) -> TrainResult | MemoryNeed:
    """Pretrain until the steps are done; resumes an unfinished `out`."""
    check_settings(config)
    facts: dict[str, Any] = {"roles": list(trained_roles(config, "scp"))}
    ranks = join(config.device)
    if config.dry_run:
        if config.init is None and config.backbone is None:
            raise UsageError(*NO_START)
        lora = LoraSettings(config.lora_rank or RANK, config.lora_alpha or ALPHA)
        return of_training(config, config.init, facts["roles"], lora, report)
    check_validation(config, "scp")
    held_out = read_pairs(config.validation) if config.validation else []
    pairs, held_out = split(config, read_pairs(config.pairs), held_out)
    pairs = mix(pairs, config)
    torch.manual_seed(config.seed)
    loaded = start(config, ranks)
    scale = loaded.model.backbone.word_scale
    if config.init is None and scale != 1:
        facts["memory_scale"] = round(scale, 4)
    if config.init is not None and ranks.first:
        tell(loaded, report)
        note_older(loaded, [], report)
    elif ranks.first:
        note_probe(loaded, report)
    check_head(loaded.model.causal_lm)
    slots = ratio_slots(loaded.info, config.ratios)
    prompter = loaded.model.prompter

    def batches(step: int) -> list[Batch]:
        picked, rng = draw(config, step, pairs, pair_length)
        m = rng.choice(slots)
        visits = [(pair, rng.randrange(len(PARAPHRASE_INSTRUCTIONS))) for pair in picked]
        visits.sort(key=lambda one: pair_length(one[0]))
        return [
            scp_batch(prompter, [p for p, _ in part], [i for _, i in part], m, config.max_length)
            for part in micro(config, ranks, visits)
        ]

    def losses(batch: Batch, aligned: float) -> Losses:
        return read_memory_loss(loaded.model, batch, config.mse_weight * aligned)

    def build(part: Sequence[Pair]) -> Batch:
        return scp_batch(prompter, part, [0] * len(part), slots[0], config.max_length)

    checked = HeldOutSet([Example(pair) for pair in held_out], build, losses, lambda _: (None, []))
    task = Task("scp", loaded, pairs, batches, losses, facts, checked if held_out else None)
    return train_stage(config, task, ranks, report)


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
            raise UsageError(f"mix.{kind} is {weight:g}, but no pair is {kind}", "leave it away")
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
                f"leave {name} away with --init, or begin fresh with --backbone",
            )


def start(config: PretrainConfig, ranks: Ranks) -> Loaded:
    """The checkpoint to start from, or fresh roles on a backbone."""
    if config.init is not None:
        loaded = load(load_options(config, config.init, ranks), config.dropout)
        refuse_changes(config, loaded)
        for role in ("compressor", "generator"):
            if role not in loaded.model.roles:
                loaded.model.add_role(role, None)
        return loaded
    if config.backbone is None:
        raise UsageError(*NO_START)
    options = load_options(config, config.backbone, ranks)
    base = options.open_backbone(config.backbone)
    tokens = config.passage_tokens or PASSAGE_TOKENS
    ratios = config.ratios or (DEFAULT_RATIO,)
    for ratio in ratios:
        if ratio < 1 or ratio > tokens:
            message = f"ratio {ratio} of {tokens}-token passages leaves no memory"
            raise UsageError(message, f"ratios go from 1 to {tokens}")
    slots = max(tokens // ratio for ratio in ratios)
    lora = LoraSettings(config.lora_rank or RANK, config.lora_alpha or ALPHA, config.dropout)
    seeded = torch.Generator().manual_seed(config.seed)
    memory_MD, markers_2D = fresh_memory(slots, base.table_VD, seeded, base.word_scale)
    prompter = Prompter(base.tokenizer, tokens)
    prompter.check_template(f"backbone {base.name}")
    model = ClaraModel(base, prompter, lora, ("compressor", "generator"), memory_MD, markers_2D)
    info = CheckpointInfo(
        backbone=base.name,
        revision=base.revision,
        backbone_digest=base.digest,
        max_passage_tokens=tokens,
        memory_tokens=slots,
        ratio=DEFAULT_RATIO if DEFAULT_RATIO in ratios else ratios[0],
        ratios=tuple(sorted(ratios)),
        lora=lora,
        roles=model.roles,
    )
    if options.placement.spreads:
        spread(model, str(options.placement.device_map))
    return Loaded(model, info, Path(base.name), base.name)
