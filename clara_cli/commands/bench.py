"""`clara bench`: the same questions and passages for every system, scored side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from clara_cli.answering.engine import named_model, refuse_mismatch
from clara_cli.bench_records import (
    BenchResult,
    BreakEven,
    CompareResult,
    FactRetention,
    LogitLens,
    PublishedResult,
    SpeedResult,
    SystemsResult,
)
from clara_cli.bundled import choose_model
from clara_cli.commands.checkpoint_notes import note_older
from clara_cli.config import BenchConfig
from clara_cli.core import random_backbones
from clara_cli.core.backbone import pick_device, pick_dtype
from clara_cli.core.checkpoint import Loaded, LoadOptions, load
from clara_cli.corpus.store import Corpus
from clara_cli.distributed.ranks import join
from clara_cli.errors import ArtefactError, Interrupted, UsageError
from clara_cli.evaluation.break_even import break_even
from clara_cli.evaluation.compare import compare_runs
from clara_cli.evaluation.data import datasets, published
from clara_cli.evaluation.fact_retention import fact_retention
from clara_cli.evaluation.logit_lens import logit_lens
from clara_cli.evaluation.plan import Plan, check, identity, prepare, split_list
from clara_cli.evaluation.predictions import PREDICTIONS, AnsweredRows, Row, answer_all
from clara_cli.evaluation.report.run_report import write_reports
from clara_cli.evaluation.rivals import registry
from clara_cli.evaluation.scores import Scored, mark_best, score
from clara_cli.evaluation.speed import run_speed
from clara_cli.evaluation.systems import Reader, check_roles
from clara_cli.records import Report
from clara_cli.storage.files import make_folder, write_atomic

Result = BenchResult | CompareResult | PublishedResult | SpeedResult | SystemsResult


def run(config: BenchConfig, report: Report) -> Result:
    """Compare systems on a data set; or, where asked for instead, two earlier runs, the papers'
    figures alone, how fast this machine is, or which systems there are.

    Raises:
        Interrupted: on Ctrl-C; whole batches of questions are kept in `out`.
        ArtefactError: where `out` holds a run with other settings.
    """
    config.check()
    if config.list_systems:
        return SystemsResult(registry.states())
    if config.compare is not None:
        return compare_runs(Path(config.compare[0]), Path(config.compare[1]), config.seed)
    if config.speed:
        return measure_speed(config, report)
    if config.dataset is not None:
        return compare_systems(config, config.dataset, report)
    if config.published:
        return PublishedResult(published.rows())
    names = ", ".join(datasets.HUB)
    raise UsageError("no --dataset", f"a file, a BEIR folder, or one of {names}")


def compare_systems(config: BenchConfig, name: str, report: Report) -> BenchResult:
    """Answer every question with every system, then score; goes on where `out` left off. Of several
    processes the first one writes."""
    ranks = join(config.device)
    corpus = None if config.corpus is None else Corpus.open(config.corpus)
    check(config, corpus)
    dataset = datasets.load(name)
    for note in dataset.notes:
        report.warn(note)
    with contextlib.ExitStack() as resources:
        loaded = load_checkpoint(config, corpus, report)
        note_older(loaded, [] if corpus is None else [corpus], report)
        plan = prepare(config, dataset, loaded, corpus, resources, report)
        settings = identity(config, plan)
        ranks.agree(settings)
        try:
            answered = answer_all(plan.rows, plan.cases, config.out, settings, ranks, report)
            facts = measure_fact_retention(plan) if ranks.first else ()
            named = measure_lens(plan, config.seed) if ranks.first else ()
            times = measure_break_even(config, plan, report) if ranks.first else ()
        except KeyboardInterrupt:
            raise interrupted(config.out) from None
    scored = mark_best([score_row(row, answered, config, plan) for row in plan.rows], config.seed)
    done = dataclasses.replace(
        result(config, plan, scored), survival=facts, lens=named, break_even=times
    )
    if config.out is not None and ranks.first:
        write_reports(config.out, done, scored, settings, plan.loaded.model.device, report)
    return done


def interrupted(out: Path | None) -> Interrupted:
    """What Ctrl-C ends in."""
    kept = f"; the questions answered so far are in {out}" if out else ""
    hint = "run the same command again: it goes on" if out else "with --out answers are kept"
    return Interrupted(f"interrupted{kept}", hint)


def measure_speed(config: BenchConfig, report: Report) -> SpeedResult:
    """Speed of a checkpoint, or of a shape with random weights; into `out` as speed.json."""
    ratios = split_list(config.ratio, "--ratio") if config.ratio is not None else []
    if ratios[1:] or not all(part.isascii() and part.isdigit() for part in ratios):
        raise UsageError(f"--ratio {config.ratio}: --speed measures one", "like --ratio 16")
    ratio = int(ratios[0]) if ratios else None
    if config.shape is not None and config.random_weights:
        where = pick_device(config.device)
        dtype = pick_dtype(config.dtype, where)
        ratio = 16 if ratio is None else ratio
        if (
            not random_backbones.MEMORY_TOKENS
            >= random_backbones.PASSAGE_TOKENS // max(ratio, 1)
            >= 1
        ):
            raise UsageError(f"--ratio {ratio}", "4 to 256")
        report.note(f"making a {config.shape} backbone of random weights")
        model = random_backbones.random_model(config.shape, where, dtype, config.seed)
        name, weights = str(config.shape), "random weights"
        memory_tokens = random_backbones.PASSAGE_TOKENS // ratio
    else:
        loaded = load_checkpoint(config, None, report)
        ratio = loaded.info.ratio if ratio is None else ratio
        model, memory_tokens = loaded.model, loaded.info.memory_tokens_for(ratio)
        name, weights = loaded.name, f"checkpoint {loaded.info.fingerprint[:12]}"
    done = run_speed(model, (name, weights), ratio, memory_tokens, config.seed, report)
    if config.out is None:
        return done
    make_folder(config.out)
    text = json.dumps(dataclasses.asdict(done), indent=2) + "\n"
    write_atomic(config.out, "speed.json", text.encode())
    return dataclasses.replace(done, out=str(config.out))


def load_checkpoint(config: BenchConfig, corpus: Corpus | None, report: Report) -> Loaded:
    """The checkpoint named, else the corpus's, else the default one."""
    if corpus is None:
        named = choose_model(config.model, report.note)
    else:
        named = named_model(corpus, config.model)
    ratio = int(config.ratio) if config.ratio and config.ratio.isdecimal() else None
    if corpus is not None:
        ratio = corpus.manifest.identity.ratio
    loaded = load(LoadOptions.of(config, named, ratio, verify=True, only_reads=True))
    if corpus is not None:
        refuse_mismatch(loaded, corpus)
    return loaded


def score_row(row: Row, answered: AnsweredRows, config: BenchConfig, plan: Plan) -> Scored:
    """One row's scorecard."""
    predictions, measures = answered.of(row)
    whole = plan.cases[:1] if plan.cases[0].pool.whole else plan.cases
    texts = {piece.row: piece.text for case in whole for piece in case.pool.pieces}
    kept = None if row.control == "none" else row.system.bytes_per_passage(list(texts.values()))
    return score(
        row.name,
        row.ratio,
        predictions,
        measures,
        top_k=config.top_k,
        seed=config.seed,
        bytes_per_passage=kept,
    )


def measure_fact_retention(plan: Plan) -> tuple[FactRetention, ...]:
    """Facts kept in memory, where `--control survival` asks for it."""
    if "survival" not in plan.controls:
        return ()
    for role in ("compressor", "generator"):
        if role not in plan.loaded.model.roles:
            what = f"--control survival: no {role} in {plan.loaded.path}"
            raise ArtefactError(what, "use another --model")
    return fact_retention(plan.cases, plan.tokens_by_ratio, plan.loaded, plan.memories)


def measure_lens(plan: Plan, seed: int) -> tuple[LogitLens, ...]:
    """What query memories name, where asked for."""
    if "lens" not in plan.controls:
        return ()
    return logit_lens(plan.cases, plan.tokens_by_ratio, Reader(plan.loaded, 1), seed)


def measure_break_even(config: BenchConfig, plan: Plan, report: Report) -> tuple[BreakEven, ...]:
    """Times to the first token, where asked for."""
    if not config.break_even:
        return ()
    check_roles(["scp"], plan.loaded)
    return break_even(plan.cases, plan.tokens_by_ratio, plan.loaded, plan.memories, report)


def result(config: BenchConfig, plan: Plan, scored: Sequence[Scored]) -> BenchResult:
    """The command's record."""
    out = config.out
    return BenchResult(
        dataset=str(config.dataset),
        setting=config.setting,
        n=len(plan.cases),
        seed=config.seed,
        systems=tuple(row.card for row in scored),
        predictions=None if out is None else str(out / PREDICTIONS),
        published=published.rows(str(config.dataset)) if config.published else (),
        report=None if out is None else str(out),
    )
