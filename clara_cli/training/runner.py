"""A run of any stage, from its settings to its checkpoint: what identifies it, how it is loaded,
trained, resumed and written. Knows a stage as `Stage` alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clara_cli import __version__
from clara_cli.config import LearnConfig
from clara_cli.core.backbone import DTYPES, longrope_window, pick_dtype
from clara_cli.core.checkpoint import Loaded, LoadOptions, save
from clara_cli.core.checkpoint_info import ReadingDefaults
from clara_cli.core.model import ClaraModel
from clara_cli.core.placement import refuse_offloaded
from clara_cli.distributed.fsdp import shard
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import UsageError
from clara_cli.evaluation.report.run_report import environment
from clara_cli.extras import install_command
from clara_cli.records import Report, TrainResult
from clara_cli.storage.files import inside
from clara_cli.storage.history import History
from clara_cli.storage.lock import locked
from clara_cli.training.calibrate import calibrate
from clara_cli.training.loop import FitSettings, FitSummary, Schedule, fit, summary
from clara_cli.training.run_folder import RunFolder
from clara_cli.training.sampling import count_steps
from clara_cli.training.stage import Stage
from clara_cli.training.trackers import check_tracker, open_trackers
from clara_cli.training.validation import HeldOutSet, checks_of
from clara_cli.training.validation_schedule import ValidationSchedule, best

UNRECORDED = (  # they change nothing that is learnt but by rounding and the draws of dropout
    "out",
    "recipe",
    "set",
    "save_minutes",
    "device",
    "nproc",
    "fsdp",
    "micro_batch",
    "checkpointing",
    "corpus",
    "tracker",
    "device_map",
    "dry_run",
)
WINDOW = 50  # batches among which records of like length are put together


def run_settings(
    config: LearnConfig, stage: str, data: Sequence[Any], facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What identifies a run: every setting that changes its result, a digest of the data, and
    `facts` that a stage adds."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in UNRECORDED}
    named = {"command_stage": stage, "data_sha256": digest(data), "records": len(data)}
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        **named,
        **(facts or {}),
    }


def digest(records: Sequence[Any]) -> str:
    """SHA-256 of what records say."""
    sha256 = hashlib.sha256()
    for record in records:
        sha256.update(repr(record).encode())
    return sha256.hexdigest()


def check_settings(config: LearnConfig) -> None:
    """Settings whose values are words, shares or have a largest value."""
    if config.schedule not in ("cosine", "constant"):
        raise UsageError(f"schedule is {config.schedule!r}", "known: cosine, constant")
    for name in ("warmup", "dropout", "validation_share", "reconstruction"):
        if getattr(config, name) > 1:
            raise UsageError(f"{name} is {getattr(config, name)}", "it is a share, 0 to 1")
    if config.learning_rate > 1:
        message = f"learning_rate is {config.learning_rate:g}, the largest is 1"
        raise UsageError(message, "no weight moves further in a step; 1e-5 to 1e-3 is usual")


def load_options(config: LearnConfig, init: str, ranks: Ranks) -> LoadOptions:
    """How `init` is loaded; what is going to be cut up among processes, beside the GPU.

    Raises:
        UsageError: for `fsdp` with one process, and what does not go with it.
    """
    if config.device_map is not None and ranks.size > 1:
        raise UsageError("--device-map with several processes", "omit one of them")
    options = LoadOptions.of(config, init, config.named_ratio, verify=True)
    if not config.fsdp:
        return options
    if config.load_in is not None or config.device_map is not None:
        raise UsageError("fsdp = true with --load-in or --device-map", "omit one of them")
    if ranks.size == 1:
        raise UsageError("fsdp = true with one process", "add --nproc 2, or omit fsdp")
    dtype = pick_dtype(config.dtype, ranks.device)
    name = next(name for name, each in DTYPES.items() if each == dtype)
    return replace(options, device="cpu", dtype=name)


@dataclass(frozen=True)
class TrainingPlan:
    """A run, resolved: its settings, the stage with its checkpoint and records, the records kept
    aside to validate on, and its processes."""

    config: LearnConfig
    stage: Stage
    held_out: HeldOutSet | None
    ranks: Ranks

    @property
    def steps(self) -> int:
        """Steps asked for, else one pass."""
        return count_steps(self.config, len(self.stage.records))

    def settings(self) -> dict[str, Any]:
        """What identifies the run, as its folder records it."""
        stage = self.stage
        settings = run_settings(self.config, stage.name, stage.records, stage.facts())
        if self.held_out is not None:
            settings["validation_sha256"] = digest(self.held_out.examples)
        return settings


def train(plan: TrainingPlan, report: Report) -> TrainResult:
    """Run a stage in its run folder, which is locked meanwhile, and write the checkpoint."""
    config, ranks, stage = plan.config, plan.ranks, plan.stage
    settings = plan.settings()
    passes = {"micro_batch": config.micro_batch, "checkpointing": config.checkpointing}
    ranks.agree({**settings, **passes, "init": stage.loaded.info.fingerprint})
    check_tracker(config.tracker)
    run = RunFolder(config.out, settings, ranks)
    checks = checks_of(config, stage.model, plan.held_out, plan.steps, run, report)
    ranks.lead(run.open)
    with locked(config.out) if ranks.first else nullcontext():
        before = ranks.lead(run.extend)
        if before is not None and ranks.first:
            say_extended(config.out, before, plan.steps, report)
        bundled = (stage.loaded.path / "backbone").is_dir()
        damage = ranks.lead(lambda: run.damage(bundled))
        if not damage:
            report.note(f"{config.out} is finished; nothing to do")
            done = ranks.lead(lambda: summary(run, plan.steps, 0.0, None))
        else:
            ranks.lead(lambda: run.refuse_lost(damage))
            if (config.out / "checkpoint").exists():
                report.note(f"{damage}: the checkpoint is written again from {run.last}")
            done = train_model(plan, run, checks, report)
            write_result(plan, run, done, report)
    if done.cut:
        report.warn(f"answers cut to fit max_length = {config.max_length}: {done.cut}")
    lines = ranks.lead(lambda: run.lines(run.checks))
    return train_result(run, stage.name, done, lines, config.best_by)


def say_extended(out: Path, before: int, steps: int, report: Report) -> None:
    """What becomes of a run that goes on beyond the steps it was begun with."""
    kept = out / f"checkpoint-{before}"
    where = f"; the checkpoint of {before} is {kept}" if kept.is_dir() else ""
    report.note(
        f"{out}: begun with {before} steps, going on to {steps}{where}; the learning rate goes on "
        f"as in a run of {steps}"
    )


def train_model(
    plan: TrainingPlan, run: RunFolder, checks: ValidationSchedule | None, report: Report
) -> FitSummary:
    """Train what the stage trains, until its steps are done or the checks end it."""
    config, stage, model = plan.config, plan.stage, plan.stage.model
    refuse_offloaded(model)
    refuse_longer_rows(model, config.max_length)
    if config.fsdp:
        shard(model, run.ranks)
    model.train_only(stage.trained_roles(config), config.train_memory)
    if config.checkpointing:
        model.checkpoint_layers()
    model.train()
    settings = FitSettings(
        Schedule(config.learning_rate, plan.steps, config.warmup, config.schedule, config.minutes),
        config.clip,
        config.weight_decay,
        config.seed,
        config.save_minutes,
    )
    if run.ranks.first:
        note_environment(run, model)
        for name in ("tensorboard", "wandb"):  # the trackers' own writing
            inside(run.path, name)
        run.trackers = open_trackers(config.tracker, run.path, run.settings, report)
    trained = model.trained_parameters()
    try:
        done = fit(trained, stage.batches, stage.losses, settings, run, report, checks)
    finally:
        for tracker in run.trackers:
            tracker.finish()
    model.eval()
    return done


def refuse_longer_rows(model: ClaraModel, max_length: int) -> None:
    """Refuse rows beyond LongRoPE's original window, where the shorter ones beside them would be
    encoded as they are nowhere else.

    Raises:
        UsageError: with both.
    """
    most = longrope_window(model.causal_lm.config.get_text_config())
    if most is not None and max_length > most:
        name = model.backbone.name
        message = f"max_length is {max_length:,}, the original window of {name} is {most:,}"
        raise UsageError(message, f"add --set max_length={most}: LongRoPE is not trained beyond it")


def note_environment(run: RunFolder, model: ClaraModel) -> None:
    """Add to the run folder what this start of the run computes with."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"began": began, "processes": run.ranks.size, **environment(model.device)}
    History(run.path, "environment.jsonl", "").append([line])


def write_result(plan: TrainingPlan, run: RunFolder, done: FitSummary, report: Report) -> None:
    """Write the checkpoint: the best weights where the run was validated (the last ones beside it
    where they are others), else the last ones. Draw the losses."""
    ranks, stage = run.ranks, plan.stage
    best_line = best(ranks.lead(lambda: run.lines(run.checks)), plan.config.best_by)
    facts, steps = stage.facts(), done.steps

    def write(name: str) -> None:
        reading = stage.reading_after(stage.loaded.info.reading)
        count = len(stage.records)
        write_checkpoint(plan.config, stage.name, stage.loaded, count, steps, reading, facts, name)

    if best_line is not None:
        if best_line["step"] != done.steps:
            ranks.lead(lambda: write("checkpoint-last"))
            run.restore_best(stage.model.trained_parameters())
        steps = best_line["step"]
        facts["validation"] = {name: value for name, value in best_line.items() if name != "step"}
    ranks.lead(lambda: write("checkpoint"))
    if plan.held_out is not None and ranks.first and not ranks.sharded:
        read = stage.reading_after(stage.loaded.info.reading).mode
        memory_tokens = stage.memory_tokens[0]
        calibrate(stage.model, plan.held_out, read, memory_tokens, run.path, report)
    if find_spec("matplotlib") is None:
        report.note(f"no plot of the losses: {install_command('plot')} brings what draws it")
    elif ranks.first:
        from clara_cli.training.curves import draw_losses

        draw_losses(run.path / "losses.svg", run.lines(run.metrics), run.lines(run.checks))


def write_checkpoint(
    config: LearnConfig,
    stage: str,
    loaded: Loaded,
    records: int,
    steps: int,
    reading: ReadingDefaults,
    facts: dict[str, Any] | None = None,
    name: str = "checkpoint",
) -> None:
    """Write a checkpoint with its provenance; a bundled backbone travels with it."""
    entry = {
        "stage": stage,
        "steps": steps,
        "records": records,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "ratios": list(config.ratios),
        "seed": config.seed,
        "init": Path(loaded.name).name,
        "init_fingerprint": loaded.info.fingerprint,
        "clara": __version__,
        **(facts or {}),
    }
    history = (*loaded.info.provenance, entry)
    info = replace(loaded.info, stage=stage, provenance=history, reading=reading)
    if config.ratios:
        info = replace(info, ratios=tuple(sorted({*config.ratios, *info.ratios})))
    bundled = loaded.path / "backbone"
    save(loaded.model, info, config.out / name, bundled if bundled.is_dir() else None)


def train_result(
    run: RunFolder,
    stage: str,
    done: FitSummary,
    checks: list[dict[str, Any]] | None = None,
    best_by: str = "ce",
) -> TrainResult:
    """The command's record."""
    best_line = best(checks or [], best_by) or {}

    def rounded(value: float | None, digits: int = 6) -> float | None:
        return None if value is None or not math.isfinite(value) else round(value, digits)

    return TrainResult(
        str(run.path / "checkpoint"),
        stage,
        done.steps,
        rounded(done.ce),
        rounded(done.mse),
        round(done.seconds, 3),
        rounded(done.tokens_per_second, 1),
        best_line.get("step"),
        {name: value for name, value in best_line.items() if name != "step"},
    )
