"""`clara train`: answering (instruct), retrieval learned through answering (e2e) or from labels."""

from __future__ import annotations

import time

import torch

from clara_cli.commands.checkpoint_notes import describe_checkpoint, note_adapted, note_older
from clara_cli.commands.dry_run import need_of_training
from clara_cli.config import TrainConfig
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import check_head
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.stage_losses import TRAINED
from clara_cli.distributed.ranks import join
from clara_cli.errors import UsageError
from clara_cli.records import MemoryNeed, Report, TrainResult
from clara_cli.training.corpus_pools import check_pool_settings
from clara_cli.training.end_to_end import EndToEnd
from clara_cli.training.instruct import Instruct
from clara_cli.training.loop import FitSummary
from clara_cli.training.question_stage import QuestionStage, reading_learned
from clara_cli.training.retrieval import Retrieval
from clara_cli.training.run_folder import RunFolder
from clara_cli.training.runner import (
    TrainingPlan,
    check_settings,
    load_options,
    run_settings,
    train,
    train_result,
    write_checkpoint,
)
from clara_cli.training.stage import memory_tokens_of
from clara_cli.training.validation import check_validation

STAGES: dict[str, type[QuestionStage]] = {s.name: s for s in (Instruct, Retrieval, EndToEnd)}


def run(config: TrainConfig, report: Report) -> TrainResult | MemoryNeed:
    """Train a stage until its steps are done; `--steps 0` only writes the native form."""
    check_settings(config)
    if config.mask not in ("exact", "released"):
        raise UsageError(f"mask is {config.mask!r}", "known: exact, released")
    ranks = join(config.device)
    stage_class = None if config.stage is None else STAGES[config.stage]
    if config.dry_run:
        roles = () if stage_class is None else stage_class.trained_roles(config)
        return need_of_training(config, config.init, roles, LoraSettings(), report)
    if config.steps == 0:
        return ranks.lead(lambda: convert(config, report))
    if stage_class is None or not config.questions:
        raise UsageError(
            "training needs questions and --stage", "add --stage instruct, retrieval or e2e"
        )
    check_pool_settings(config, stage_class.pool_kinds)
    refuse_without_compressor(config, stage_class.name)
    stage_class.trained_roles(config)
    check_validation(config, stage_class.name, stage_class.figures)
    questions, held_out = stage_class.read_records(config)
    torch.manual_seed(config.seed)
    loaded = load(load_options(config, config.init, ranks), config.dropout)
    if ranks.first:
        describe_checkpoint(loaded, report)
        note_older(loaded, [], report)
        note_adapted(loaded, report)
    check_head(loaded.model.causal_lm)
    stage_class.add_missing_roles(loaded)
    stage = stage_class(config, loaded, questions, ranks, report)
    kept_aside = stage.held_out(held_out) if held_out else None
    return train(TrainingPlan(config, stage, kept_aside, ranks), report)


def refuse_without_compressor(config: TrainConfig, stage: str) -> None:
    """Settings of how memory is learned, in a stage that compresses nothing anew.

    Raises:
        UsageError: naming the first one.
    """
    for name in ("reconstruction", "distillation"):
        if getattr(config, name) and "compressor" not in TRAINED[stage]:
            message = f"{name} is {getattr(config, name):g}, but {stage} trains no compressor"
            raise UsageError(message, "it goes with --stage instruct")


def convert(config: TrainConfig, report: Report) -> TrainResult:
    """Write the native form of any checkpoint, training nothing."""
    started = time.monotonic()
    if config.load_in is not None or config.device_map is not None:
        message = "--steps 0 computes nothing: --load-in and --device-map change nothing"
        raise UsageError(message, "omit them; they go with ask, compress and training")
    loaded = load(LoadOptions.of(config, config.init, config.named_ratio, verify=True))
    describe_checkpoint(loaded, report)
    note_older(loaded, [], report)
    memory_tokens_of(loaded.info, config.ratios)
    stage = loaded.info.stage
    run = RunFolder(config.out, run_settings(config, "none", ()))
    run.open()
    if not run.damage(bundled=(loaded.path / "backbone").is_dir()):
        report.note(f"{config.out} is finished; nothing to do")
    else:
        reading = reading_learned(config.text_share, loaded.info.reading)
        write_checkpoint(config, stage, loaded, 0, 0, reading)
    return train_result(run, stage, FitSummary(0, None, None, time.monotonic() - started, None))
