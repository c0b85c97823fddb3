"""`clara pretrain`: SCP. Pairs in, a checkpoint with a compressor and a generator out."""

from __future__ import annotations

from pathlib import Path

import torch

from clara_cli.commands.learning import (
    Task,
    check_settings,
    draw,
    micro,
    place,
    ratio_slots,
    train_stage,
)
from clara_cli.config import PretrainConfig
from clara_cli.core.backbone import load_backbone, pick_device, pick_dtype, weights_digest
from clara_cli.core.batch import Batch, scp_batch
from clara_cli.core.checkpoint import CheckpointInfo, Loaded, load
from clara_cli.core.model import ClaraModel, LoraSettings, fresh_memory
from clara_cli.core.prompts import PARAPHRASE_INSTRUCTIONS, Prompter
from clara_cli.core.ranks import join
from clara_cli.core.stages import Losses, read_memory_loss
from clara_cli.corpus.examples import read_pairs
from clara_cli.errors import UsageError
from clara_cli.records import Report, TrainResult

DEFAULT_RATIO, PASSAGE_TOKENS, RANK, ALPHA = 16, 256, 16, 32


def run(config: PretrainConfig, report: Report) -> TrainResult:
    """Pretrain until the steps are done; resumes an unfinished `out`."""
    check_settings(config)
    ranks = join(config.device)
    pairs = read_pairs(config.pairs)
    torch.manual_seed(config.seed)
    loaded = start(config, *place(config, ranks))
    slots = ratio_slots(loaded.info, config.ratios)
    prompter = loaded.model.prompter

    def batches(step: int) -> list[Batch]:
        picked, rng = draw(config, step, pairs)
        m = rng.choice(slots)
        kinds = len(PARAPHRASE_INSTRUCTIONS)
        drawn = [(pair, rng.randrange(kinds)) for pair in picked]
        return [
            scp_batch(prompter, [p for p, _ in part], [i for _, i in part], m, config.max_length)
            for part in micro(config, ranks, drawn)
        ]

    def losses(batch: Batch, aligned: float) -> Losses:
        return read_memory_loss(loaded.model, batch, config.mse_weight * aligned)

    return train_stage(config, Task("scp", loaded, pairs, batches, losses), ranks, report)


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
        asked = getattr(config, name)
        if asked is not None and asked != value:
            raise UsageError(
                f"{name} is {asked}, but {config.init} was made with {value}",
                f"leave {name} away with --init, or begin fresh with --backbone",
            )


def start(config: PretrainConfig, device: str, dtype: str) -> Loaded:
    """The checkpoint to start from, or fresh roles on a backbone."""
    if config.init is not None:
        loaded = load(config.init, config.backbone, device, dtype, config.dropout)
        refuse_changes(config, loaded)
        for role in ("compressor", "generator"):
            if role not in loaded.model.roles:
                loaded.model.add_role(role, None)
        return loaded
    if config.backbone is None:
        raise UsageError(
            "neither --backbone nor --init", "give --backbone DIR|OWNER/NAME for fresh roles"
        )
    where = pick_device(device)
    base = load_backbone(config.backbone, where, pick_dtype(dtype, where))
    digest = weights_digest(base.model)
    tokens = config.passage_tokens or PASSAGE_TOKENS
    ratios = config.ratios or (DEFAULT_RATIO,)
    for ratio in ratios:
        if ratio < 1 or ratio > tokens:
            message = f"ratio {ratio} of {tokens}-token passages leaves no memory"
            raise UsageError(message, f"ratios go from 1 to {tokens}")
    slots = max(tokens // ratio for ratio in ratios)
    lora = LoraSettings(config.lora_rank or RANK, config.lora_alpha or ALPHA, config.dropout)
    seeded = torch.Generator().manual_seed(config.seed)
    table = base.model.get_input_embeddings().weight
    memory_MD, markers_2D = fresh_memory(slots, table, seeded)
    prompter = Prompter(base.tokenizer, tokens)
    model = ClaraModel(base, prompter, lora, ("compressor", "generator"), memory_MD, markers_2D)
    info = CheckpointInfo(
        backbone=base.name,
        revision=base.revision,
        backbone_digest=digest,
        max_passage_tokens=tokens,
        memory_tokens=slots,
        ratio=DEFAULT_RATIO if DEFAULT_RATIO in ratios else ratios[0],
        ratios=tuple(sorted(ratios)),
        lora=lora,
        roles=model.roles,
    )
    return Loaded(model, info, Path(base.name), base.name)
