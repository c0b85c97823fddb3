"""`clara pretrain`: SCP. Pairs in, a checkpoint with a compressor and a generator out."""

from __future__ import annotations

import torch

from clara_cli.commands.checkpoint_notes import (
    describe_checkpoint,
    note_adapted,
    note_older,
    note_probe,
)
from clara_cli.commands.dry_run import need_of_training
from clara_cli.config import PretrainConfig
from clara_cli.core.backbone import check_head
from clara_cli.distributed.ranks import join
from clara_cli.errors import UsageError
from clara_cli.records import MemoryNeed, Report, TrainResult
from clara_cli.training.runner import TrainingPlan, check_settings, train
from clara_cli.training.scp import NO_START, Scp, fresh_lora, open_checkpoint
from clara_cli.training.validation import check_validation


def run(config: PretrainConfig, report: Report) -> TrainResult | MemoryNeed:
    """Pretrain until the steps are done; resumes an unfinished `out`."""
    check_settings(config)
    roles = Scp.trained_roles(config)
    ranks = join(config.device)
    if config.dry_run:
        if config.init is None and config.backbone is None:
            raise UsageError(*NO_START)
        return need_of_training(config, config.init, roles, fresh_lora(config), report)
    check_validation(config, Scp.name, Scp.figures)
    pairs, held_out = Scp.read_records(config)
    torch.manual_seed(config.seed)
    loaded = open_checkpoint(config, ranks)
    if config.init is not None and ranks.first:
        describe_checkpoint(loaded, report)
        note_older(loaded, [], report)
    elif ranks.first:
        note_probe(loaded, report)
    if ranks.first:
        note_adapted(loaded, report)
    check_head(loaded.model.causal_lm)
    stage = Scp(config, loaded, pairs, ranks)
    kept_aside = stage.held_out(held_out) if held_out else None
    return train(TrainingPlan(config, stage, kept_aside, ranks), report)
