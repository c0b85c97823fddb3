"""What `pretrain` and `train` share: settings of a run, batches by step, the end of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from clara_cli import __version__
from clara_cli.config import LearnConfig
from clara_cli.core.backbone import DTYPES, pick_dtype
from clara_cli.core.batch import Batch
from clara_cli.core.checkpoint import CheckpointInfo, Loaded, save
from clara_cli.core.loop import FitSettings, FitSummary, LossFunction, Schedule, fit, summary
from clara_cli.core.ranks import Ranks
from clara_cli.core.runs import RunFolder
from clara_cli.core.shard import shard
from clara_cli.core.stages import TRAINED
from clara_cli.corpus.files import locked
from clara_cli.errors import UsageError
from clara_cli.records import Report, TrainResult

Record = TypeVar("Record")
UNRECORDED = ("out", "recipe", "set", "save_minutes", "device", "nproc", "fsdp", "corpus")


def run_settings(
    config: LearnConfig, stage: str, data: Sequence[Any], facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What identifies a run: every setting that changes its result, a digest of the data, and
    `facts` that a stage adds."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in UNRECORDED}
    digest = hashlib.sha256()
    for record in data:
        digest.update(repr(record).encode())
    named = {"command_stage": stage, "data_sha256": digest.hexdigest(), "records": len(data)}
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        **named,
        **(facts or {}),
    }


def ratio_slots(info: CheckpointInfo, ratios: Sequence[int]) -> list[int]:
    """M of every ratio trained; none given: the checkpoint's default."""
    return [info.slots(ratio) for ratio in (ratios or (info.ratio,))]


def count_steps(config: LearnConfig, records: int) -> int:
    """Steps asked for, else one pass; the last batch of a pass may be smaller than the others."""
    if config.steps is not None:
        return config.steps
    return math.ceil(records / config.batch_size)


def draw(
    config: LearnConfig, step: int, records: Sequence[Record]
) -> tuple[list[Record], random.Random]:
    """A step's examples and its own random source, a function of (seed, step) alone: every pass
    visits the records in a new order."""
    size = min(config.batch_size, len(records))
    per_pass = math.ceil(len(records) / size)
    order = list(range(len(records)))
    random.Random(f"{config.seed} pass {step // per_pass}").shuffle(order)
    start = (step % per_pass) * size
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
    """Settings whose values are words."""
    if config.schedule not in ("cosine", "constant"):
        raise UsageError(f"schedule is {config.schedule!r}", "known: cosine, constant")
    if config.warmup > 1:
        raise UsageError(f"warmup is {config.warmup}", "it is a share of the steps, 0 to 1")


def place(config: LearnConfig, ranks: Ranks) -> tuple[str, str]:
    """(device, dtype) to load with; what is going to be cut up is loaded beside the GPU.

    Raises:
        UsageError: for `fsdp` with one process.
    """
    if not config.fsdp:
        return config.device, config.dtype
    if ranks.size == 1:
        raise UsageError("fsdp = true with one process", "add --nproc N, or leave fsdp away")
    dtype = pick_dtype(config.dtype, ranks.device)
    return "cpu", next(name for name, known in DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class Task:
    """A stage to train: its checkpoint, its records, its micro-batches by step and their losses;
    `facts` about it go into the folder's settings and the checkpoint's provenance."""

    stage: str
    loaded: Loaded
    data: Sequence[Any]
    batches: Callable[[int], list[Batch]]
    losses: LossFunction
    facts: dict[str, Any] = field(default_factory=dict)


def train_stage(config: LearnConfig, task: Task, ranks: Ranks, report: Report) -> TrainResult:
    """Run a stage in its run folder, which is locked meanwhile, and write the checkpoint."""
    settings = run_settings(config, task.stage, task.data, task.facts)
    ranks.agree({**settings, "init": task.loaded.info.fingerprint})
    run = RunFolder(config.out, settings, ranks)
    ranks.lead(run.open)
    steps = count_steps(config, len(task.data))
    with locked(config.out) if ranks.first else nullcontext():
        if ranks.lead(lambda: run.finished):
            report.note(f"{config.out} is finished; nothing to do")
            return result(run, task.stage, ranks.lead(lambda: summary(run, steps, 0.0, 0.0)))
        done = train_model(config, task, steps, run, report)
        made = (task.stage, task.loaded, len(task.data), done, task.facts)
        ranks.lead(lambda: finish(config, *made))
    if done.cut:
        report.warn(f"answers cut to fit max_length = {config.max_length}: {done.cut}")
    return result(run, task.stage, done)


def train_model(
    config: LearnConfig, task: Task, steps: int, run: RunFolder, report: Report
) -> FitSummary:
    """Train what the stage trains, for all its steps."""
    model = task.loaded.model
    if config.fsdp:
        shard(model, run.ranks)
    model.train_only(trained_roles(config, task.stage), config.train_memory)
    if config.checkpointing:
        model.checkpoint_layers()
    model.train()
    settings = FitSettings(
        Schedule(config.learning_rate, steps, config.warmup, config.schedule),
        config.clip,
        config.weight_decay,
        config.seed,
        config.save_minutes,
    )
    done = fit(model.trained_parameters(), task.batches, task.losses, settings, run, report)
    model.eval()
    return done


def finish(
    config: LearnConfig,
    stage: str,
    loaded: Loaded,
    records: int,
    done: FitSummary,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write the checkpoint with its provenance; a bundled backbone travels with it."""
    entry = {
        "stage": stage,
        "steps": done.steps,
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
    bundled = loaded.path / "backbone"
    save(loaded.model, info, config.out / "checkpoint", bundled if bundled.is_dir() else None)


def result(run: RunFolder, stage: str, done: FitSummary) -> TrainResult:
    """The command's record."""

    def rounded(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else round(value, 6)

    return TrainResult(
        str(run.path / "checkpoint"),
        stage,
        done.steps,
        rounded(done.ce),
        rounded(done.mse),
        round(done.seconds, 3),
        round(done.tokens_per_second, 1),
    )
