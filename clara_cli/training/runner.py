"""What `pretrain` and `train` share: settings of a run, batches by step, the end of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from clara_cli import __version__
from clara_cli.config import LearnConfig, TrainConfig
from clara_cli.core.backbone import DTYPES, pick_dtype
from clara_cli.core.batch import Batch
from clara_cli.core.checkpoint import Loaded, LoadOptions, save
from clara_cli.core.checkpoint_info import CheckpointInfo, ReadingDefaults, ReadMode
from clara_cli.core.model import ClaraModel
from clara_cli.core.placement import refuse_offloaded
from clara_cli.core.stages import TRAINED
from clara_cli.distributed.fsdp import shard
from clara_cli.distributed.ranks import Ranks
from clara_cli.errors import UsageError
from clara_cli.evaluation.report.run_report import environment
from clara_cli.records import Report, TrainResult
from clara_cli.storage.files import inside
from clara_cli.storage.history import History
from clara_cli.storage.lock import locked
from clara_cli.training.loop import FitSettings, FitSummary, LossFunction, Schedule, fit, summary
from clara_cli.training.run_folder import RunFolder
from clara_cli.training.trackers import check_tracker, open_trackers
from clara_cli.training.validation import HeldOutSet, checks_of
from clara_cli.training.validation_schedule import ValidationSchedule, best

Record = TypeVar("Record")
UNRECORDED = (  # they change nothing that is learnt but by rounding and the draws of dropout
    *("out", "recipe", "set", "save_minutes", "device", "nproc", "fsdp", "micro_batch"),
    *("checkpointing", "corpus", "tracker", "device_map", "dry_run"),
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
    found = hashlib.sha256()
    for record in records:
        found.update(repr(record).encode())
    return found.hexdigest()


def ratio_slots(info: CheckpointInfo, ratios: Sequence[int]) -> list[int]:
    """M of every ratio trained; none given: the checkpoint's default.

    Raises:
        UsageError: for one that the checkpoint does not serve.
    """
    for ratio in ratios:
        if ratio not in info.ratios:
            served = ", ".join(map(str, info.ratios))
            raise UsageError(
                f"ratios: {ratio} is not served by this checkpoint", f"it has {served}"
            )
    return [info.slots(ratio) for ratio in (ratios or (info.ratio,))]


def count_steps(config: LearnConfig, records: int) -> int:
    """Steps asked for, else one pass; the last batch of a pass may be smaller than the others."""
    if config.steps is not None:
        return config.steps
    return math.ceil(records / config.batch_size)


@lru_cache(maxsize=2)  # a step's pass, and the one that what is searched ahead reaches into
def pass_order(seed: int, number: int, records: int) -> array[int]:
    """The order a pass visits records in; nobody may change it."""
    order = array("Q", range(records))
    random.Random(f"{seed} pass {number}").shuffle(order)
    return order


def draw(
    config: LearnConfig,
    step: int,
    records: Sequence[Record],
    length: Callable[[Record], int] = lambda record: len(repr(record)),
) -> tuple[list[Record], random.Random]:
    """A step's examples and its own random source, a function of (seed, step) alone: every pass
    visits the records in a new order; with `group_by_length` those of like `length` together."""
    size = min(config.batch_size, len(records))
    number, place = divmod(step, math.ceil(len(records) / size))
    order = pass_order(config.seed, number, len(records))
    if config.group_by_length:
        window, place = divmod(place, WINDOW)
        order = order[window * WINDOW * size : (window + 1) * WINDOW * size]
        order = array("Q", sorted(order, key=lambda i: length(records[i])))
        whole = len(order) // size * size  # a smaller last batch keeps its place
        starts = list(range(0, whole, size))
        random.Random(f"{config.seed} pass {number} window {window}").shuffle(starts)
        start = [*starts, whole][place]
    else:
        start = place * size
    picked = [records[i] for i in order[start : start + size]]
    return picked, random.Random(f"{config.seed} step {step}")


def micro(config: LearnConfig, ranks: Ranks, records: Sequence[Record]) -> list[Sequence[Record]]:
    """This process's share of a step's examples, in forward passes of at most `micro_batch`."""
    own = ranks.share(records)
    size = config.micro_batch or max(1, len(own))
    return [own[i : i + size] for i in range(0, len(own), size)]


def trained_roles(config: LearnConfig, stage: str) -> tuple[str, ...]:
    """The roles a run trains.

    Raises:
        UsageError: for roles the stage does not train, and memory tokens that nobody reads.
    """
    known = TRAINED[stage]
    roles = config.train_roles or known
    for role in roles:
        if role not in known:
            message = f"train_roles: {stage} does not train {role!r}"
            raise UsageError(message, f"it trains {' and '.join(known)}")
    if config.train_memory and set(roles) == {"generator"}:
        message = "train_roles is the generator alone, but train_memory is true"
        raise UsageError(message, "add --set train_memory=false: it reads memory, it makes none")
    return tuple(role for role in known if role in roles)


def check_settings(config: LearnConfig) -> None:
    """Settings whose values are words, shares or have a largest value."""
    if config.schedule not in ("cosine", "constant"):
        raise UsageError(f"schedule is {config.schedule!r}", "known: cosine, constant")
    for name in ("warmup", "dropout", "validation_share"):
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
        raise UsageError("--device-map with several processes", "leave one of them away")
    options = LoadOptions.of(config, init, config.named_ratio, verify=True)
    if not config.fsdp:
        return options
    if config.load_in is not None or config.device_map is not None:
        raise UsageError("fsdp = true with --load-in or --device-map", "leave one of them away")
    if ranks.size == 1:
        raise UsageError("fsdp = true with one process", "add --nproc N, or leave fsdp away")
    dtype = pick_dtype(config.dtype, ranks.device)
    name = next(name for name, known in DTYPES.items() if known == dtype)
    return replace(options, device="cpu", dtype=name)


@dataclass(frozen=True)
class Task:
    """A stage to train: its checkpoint, its records, its micro-batches by step and their losses;
    `facts` about it go into the folder's settings and the checkpoint's provenance; `held_out` are
    records to validate on."""

    stage: str
    loaded: Loaded
    data: Sequence[Any]
    batches: Callable[[int], list[Batch]]
    losses: LossFunction
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOutSet | None = None


def train_stage(config: LearnConfig, task: Task, ranks: Ranks, report: Report) -> TrainResult:
    """Run a stage in its run folder, which is locked meanwhile, and write the checkpoint."""
    settings = run_settings(config, task.stage, task.data, task.facts)
    if task.held_out is not None:
        settings["validation_sha256"] = digest(task.held_out.examples)
    passes = {"micro_batch": config.micro_batch, "checkpointing": config.checkpointing}
    ranks.agree({**settings, **passes, "init": task.loaded.info.fingerprint})
    check_tracker(config.tracker)
    run = RunFolder(config.out, settings, ranks)
    steps = count_steps(config, len(task.data))
    checks = checks_of(config, task.loaded.model, task.held_out, steps, run)
    ranks.lead(run.open)
    with locked(config.out) if ranks.first else nullcontext():
        before = ranks.lead(run.extend)
        if before is not None and ranks.first:
            say_extended(config.out, before, steps, report)
        bundled = (task.loaded.path / "backbone").is_dir()
        damage = ranks.lead(lambda: run.damage(bundled))
        if not damage:
            report.note(f"{config.out} is finished; nothing to do")
            done = ranks.lead(lambda: summary(run, steps, 0.0, None))
        else:
            ranks.lead(lambda: run.refuse_lost(damage))
            if (config.out / "checkpoint").exists():
                report.note(f"{damage}: the checkpoint is written again from {run.last}")
            done = train_model(config, task, steps, run, checks, report)
            conclude(config, task, run, done, report)
    if done.cut:
        report.warn(f"answers cut to fit max_length = {config.max_length}: {done.cut}")
    return result(run, task.stage, done, ranks.lead(lambda: run.lines(run.checks)), config.best_by)


def say_extended(out: Path, before: int, steps: int, report: Report) -> None:
    """What becomes of a run that goes on beyond the steps it was begun with."""
    kept = out / f"checkpoint-{before}"
    where = f"; the checkpoint of {before} is {kept}" if kept.is_dir() else ""
    report.note(
        f"{out}: begun with {before} steps, going on to {steps}{where}; the learning rate goes on "
        f"as in a run of {steps}"
    )


def train_model(
    config: LearnConfig,
    task: Task,
    steps: int,
    run: RunFolder,
    checks: ValidationSchedule | None,
    report: Report,
) -> FitSummary:
    """Train what the stage trains, until its steps are done or the checks end it."""
    model = task.loaded.model
    refuse_offloaded(model)
    if config.fsdp:
        shard(model, run.ranks)
    model.train_only(trained_roles(config, task.stage), config.train_memory)
    if config.checkpointing:
        model.checkpoint_layers()
    model.train()
    settings = FitSettings(
        Schedule(config.learning_rate, steps, config.warmup, config.schedule, config.minutes),
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
        done = fit(trained, task.batches, task.losses, settings, run, report, checks)
    finally:
        for tracker in run.trackers:
            tracker.finish()
    model.eval()
    return done


def note_environment(run: RunFolder, model: ClaraModel) -> None:
    """Add to the run folder what this start of the run computes with."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    found = {"began": began, "processes": run.ranks.size, **environment(model.device)}
    History(run.path, "environment.jsonl", "").append([found])


def conclude(
    config: LearnConfig, task: Task, run: RunFolder, done: FitSummary, report: Report
) -> None:
    """Write the checkpoint: the best weights where the run was validated (the last ones beside it
    where they are others), else the last ones. Draw the losses."""
    ranks = run.ranks
    found = best(ranks.lead(lambda: run.lines(run.checks)), config.best_by)
    facts, steps = dict(task.facts), done.steps

    def write(name: str) -> None:
        finish(config, task.stage, task.loaded, len(task.data), steps, facts, name)

    if found is not None:
        if found["step"] != done.steps:
            ranks.lead(lambda: write("checkpoint-last"))
            run.restore_best(task.loaded.model.trained_parameters())
        steps = found["step"]
        facts["validation"] = {name: value for name, value in found.items() if name != "step"}
    ranks.lead(lambda: write("checkpoint"))
    if find_spec("matplotlib") is None:
        report.note("no plot of the losses: install clara-cli[plot] for it")
    elif ranks.first:
        from clara_cli.training.curves import draw_losses

        draw_losses(run.path / "losses.svg", run.lines(run.metrics), run.lines(run.checks))


def finish(
    config: LearnConfig,
    stage: str,
    loaded: Loaded,
    records: int,
    steps: int,
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
    info = replace(loaded.info, stage=stage, provenance=(*loaded.info.provenance, entry))
    if config.ratios:
        info = replace(info, ratios=tuple(sorted({*config.ratios, *info.ratios})))
    if isinstance(config, TrainConfig) and config.text_share > 0:
        info = replace(info, reading=reading_learned(config.text_share, info.reading))
    bundled = loaded.path / "backbone"
    save(loaded.model, info, config.out / name, bundled if bundled.is_dir() else None)


def reading_learned(text_share: float, before: ReadingDefaults) -> ReadingDefaults:
    """How a checkpoint reads after training on text; text is its default where nothing else was
    trained."""
    mode: ReadMode = "text" if text_share >= 1 else before.mode
    return replace(before, mode=mode, generator_reads_text=True)


def result(
    run: RunFolder,
    stage: str,
    done: FitSummary,
    checks: list[dict[str, Any]] | None = None,
    best_by: str = "ce",
) -> TrainResult:
    """The command's record."""
    found = best(checks or [], best_by) or {}

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
        found.get("step"),
        {name: value for name, value in found.items() if name != "step"},
    )
