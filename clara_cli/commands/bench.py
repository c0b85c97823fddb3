"""`clara bench`: the same questions and passages for every system, scored side by side."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import Loaded, load, role_tensors
from clara_cli.corpus.store import Corpus
from clara_cli.engine import refuse_mismatch
from clara_cli.errors import ArtefactError, Interrupted, UsageError
from clara_cli.evaluation import controls, datasets, published
from clara_cli.evaluation.compare import compare_runs
from clara_cli.evaluation.memory import ComputedMemories, Memories, StoredMemories
from clara_cli.evaluation.pools import Case, Library
from clara_cli.evaluation.report import write_reports
from clara_cli.evaluation.runs import PREDICTIONS, Answered, Row, answer_all
from clara_cli.evaluation.scores import Scored, mark_best, score
from clara_cli.evaluation.settings import FIRST_STAGE, Cases
from clara_cli.evaluation.survival import survival
from clara_cli.evaluation.systems import build
from clara_cli.records import BenchResult, CompareResult, Report, Survival


def run(config: BenchConfig, report: Report) -> BenchResult | CompareResult:
    """Answer every question with every system, then score; goes on where `out` left off.

    Raises:
        Interrupted: on Ctrl-C; whole questions are kept in `out`.
        ArtefactError: where `out` holds a run with other settings.
    """
    if config.compare is not None:
        if config.dataset is not None:
            raise UsageError("--dataset and --compare were both given", "give one of them")
        return compare_runs(Path(config.compare[0]), Path(config.compare[1]), config.seed)
    if config.dataset is None:
        names = ", ".join(datasets.HUB)
        raise UsageError("no --dataset", f"a file, a BEIR folder, or one of {names}")
    bench = prepare(config, config.dataset, report)
    settings = identity(config, bench)
    try:
        rows = bench.rows
        ids = [case.question.id for case in bench.cases]
        answered = answer_all(rows, bench.cases.__getitem__, ids, config.out, settings, report)
        facts = measure_survival(config, bench)
    except KeyboardInterrupt:
        kept = f"; the questions answered so far are in {config.out}" if config.out else ""
        hint = "run the same command again: it goes on" if config.out else "--out DIR keeps answers"
        raise Interrupted(f"interrupted{kept}", hint) from None
    scored = mark_best([score_row(row, answered, config, bench) for row in rows], config.seed)
    done = result(config, bench, scored, facts)
    if config.out is not None:
        write_reports(config.out, done, scored, settings, bench.loaded.model.device, report)
    return done


@dataclass
class Bench:
    """Everything a run needs, decided before the first answer."""

    dataset: datasets.Dataset
    cases: list[Case]
    rows: list[Row]
    loaded: Loaded
    memories: Memories
    slots: dict[int, int]
    controls: tuple[str, ...]
    corpus: Corpus | None


def prepare(config: BenchConfig, name: str, report: Report) -> Bench:
    """Read the dataset, load the checkpoint, cut the passages, build the rows."""
    wanted = controls.parse(config.control, config.setting)
    systems = split_list(config.system, "--system")
    dataset = datasets.load(name)
    for note in dataset.notes:
        report.warn(note)
    corpus = None if config.corpus is None else Corpus.open(config.corpus)
    check_corpus(config, systems, wanted, corpus)
    loaded = load_checkpoint(config, corpus)
    prompter = loaded.model.prompter
    library = Library(loaded.info.max_passage_tokens, prompter.offsets)
    made = Cases(dataset, config.setting, config.limit, library, corpus)
    cases = [made.case(number) for number in range(len(made))]
    if made.unknown_gold:
        report.warn(f"{made.unknown_gold:,} gold paragraphs are not in {config.corpus}")
    slots = pick_slots(config, loaded, corpus)
    memories = make_memories(config, loaded, library, corpus)
    torch.manual_seed(config.seed)
    built = build(systems, slots, loaded, memories, config.top_k, config.max_new_tokens)
    rows = [Row(system) for system in built]
    for control in wanted:
        rows += control_rows(control, rows, cases, made, library, config)
    say_what_is_special(config, loaded, systems, cases, report)
    return Bench(dataset, cases, rows, loaded, memories, slots, wanted, corpus)


def control_rows(
    control: str,
    rows: Sequence[Row],
    cases: Sequence[Case],
    made: Cases,
    library: Library,
    config: BenchConfig,
) -> list[Row]:
    """The rows a control adds: one a system that reads passages, or one generator for `none`."""
    readers = [row.system for row in rows if not row.control and row.name != "closed-book"]
    if control == "survival" or not readers:
        return []
    if control == "none":
        empty = controls.no_documents(cases)
        first = next((s for s in readers if s.ratio is not None), None)
        return [] if first is None else [Row(first, control, empty)]
    if control == "wrong":
        changed = controls.wrong_documents(cases)
    else:
        args = (made.questions, made.paragraphs, library, made.donors, config.seed)
        probed = controls.counterfactual(*args).items()
        changed = {n: dataclasses.replace(case, gold=cases[n].gold) for n, case in probed}
    return [Row(system, control, changed) for system in readers]


def split_list(given: str, flag: str) -> list[str]:
    """A comma-separated option."""
    parts = [part.strip() for part in given.split(",")]
    if not all(parts):
        raise UsageError(f"{flag} is {given!r}", "names separated by commas")
    return parts


def check_corpus(
    config: BenchConfig, systems: Sequence[str], wanted: Sequence[str], corpus: Corpus | None
) -> None:
    """Refuse what a compressed corpus cannot give."""
    if corpus is None:
        return
    if "counterfactual" in wanted:
        hint = "leave --corpus away: the dataset's own paragraphs are rewritten, then compressed"
        raise UsageError("--control counterfactual: a compressed corpus cannot be rewritten", hint)
    readers = [name for name in systems if name not in ("clara", "closed-book")]
    if not corpus.manifest.identity.text and (readers or config.setting == "normal"):
        what = readers[0] if readers else "--setting normal"
        raise ArtefactError(
            f"{config.corpus}: no text was kept, and {what} needs it",
            "use --system clara,closed-book --setting corpus, or compress again without --no-text",
        )


def load_checkpoint(config: BenchConfig, corpus: Corpus | None) -> Loaded:
    """The checkpoint named, else the corpus's, else $CLARA_MODEL, else nano."""
    named = config.model
    if named is None and corpus is not None:
        named = str(corpus.manifest.identity.checkpoint["model"])
    named = named or os.environ.get("CLARA_MODEL") or "nano"
    loaded = load(named, config.backbone, config.device, config.dtype)
    if corpus is not None:
        refuse_mismatch(loaded, corpus)
    return loaded


def pick_slots(config: BenchConfig, loaded: Loaded, corpus: Corpus | None) -> dict[int, int]:
    """M of every ratio asked for."""
    stored = None if corpus is None else corpus.manifest.identity
    ratios = [loaded.info.ratio if stored is None else stored.ratio]
    if config.ratio is not None:
        parts = split_list(config.ratio, "--ratio")
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise UsageError(f"--ratio is {config.ratio!r}", "whole numbers, like 4,16,32")
        ratios = [int(part) for part in parts]
    if len(set(ratios)) < len(ratios):
        raise UsageError(f"--ratio {config.ratio}: one is named twice", "name each once")
    slots = {ratio: loaded.info.slots(ratio) for ratio in ratios}
    for ratio, m in slots.items():
        if stored is not None and m > stored.memory_tokens:
            what = f"--ratio {ratio}: {config.corpus} was compressed at {stored.ratio}"
            raise UsageError(what, f"compress it with --ratio {ratio}, or ask for more")
    return slots


def make_memories(
    config: BenchConfig, loaded: Loaded, library: Library, corpus: Corpus | None
) -> Memories:
    """Memory from the corpus, or computed in the format `clara compress` stores. `normal` takes
    passages from anywhere, so each is compressed alone; elsewhere neighbours go together."""
    if corpus is not None:
        return StoredMemories(corpus)
    table = loaded.model.causal_lm.get_input_embeddings().weight
    dtype = torch.bfloat16 if config.dtype == "auto" else table.dtype
    batch = 1 if config.setting == "normal" else 32
    keep = 64 if config.setting in ("gold", "oracle") else None
    return ComputedMemories(loaded.model, library.texts, dtype, batch, keep)


def say_what_is_special(
    config: BenchConfig,
    loaded: Loaded,
    systems: Sequence[str],
    cases: Sequence[Case],
    report: Report,
) -> None:
    """What a reader of the numbers has to know."""
    if "clara" in systems and "query_reasoner" not in loaded.model.roles:
        report.note("this checkpoint has no query reasoner: questions are read by the compressor")
    if config.setting == "corpus":
        report.note("clara scans every passage of the corpus, without an index")
        if {"scp", "text"} & set(systems):
            report.note(f"scp and text read the {FIRST_STAGE} passages BM25 finds in the corpus")
    unjudged = sum(not case.gold for case in cases)
    if unjudged:
        report.note(f"{unjudged:,} questions have no gold paragraph and are left out of recall")


def identity(config: BenchConfig, bench: Bench) -> dict[str, Any]:
    """Everything that decides the predictions."""
    questions = hashlib.sha256()
    for case in bench.cases:
        questions.update(repr(case.question).encode("utf-8", "backslashreplace"))
    weights = hashlib.sha256(bench.loaded.info.backbone_digest.encode())
    for role in bench.loaded.model.roles:
        for name, tensor in sorted(role_tensors(bench.loaded.model, role).items()):
            weights.update(f"{role} {name}".encode() + tensor.float().numpy().tobytes())
    table = bench.loaded.model.causal_lm.get_input_embeddings().weight
    corpus = bench.corpus
    return {
        "dataset": config.dataset,
        "form": bench.dataset.form,
        "revision": bench.dataset.revision,
        "questions": len(bench.cases),
        "questions_sha256": questions.hexdigest(),
        "setting": config.setting,
        "systems": [[row.name, row.ratio] for row in bench.rows],
        "top_k": config.top_k,
        "max_new_tokens": config.max_new_tokens,
        "controls": list(bench.controls),
        "seed": config.seed,
        "model": bench.loaded.name,
        "fingerprint": bench.loaded.info.fingerprint,
        "weights_sha256": weights.hexdigest(),
        "corpus_sha256": None if corpus is None else corpus.manifest.sha256,
        "compute_dtype": str(table.dtype).removeprefix("torch."),
        "memory_dtype": config.dtype,
        "device": bench.loaded.model.device.type,
    }


def score_row(row: Row, answered: Answered, config: BenchConfig, bench: Bench) -> Scored:
    """One row's scorecard."""
    predictions, measures = answered.of(row)
    whole = bench.cases[:1] if bench.cases[0].pool.whole else bench.cases
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


def measure_survival(config: BenchConfig, bench: Bench) -> tuple[Survival, ...]:
    """Fact survival, where asked for."""
    if "survival" not in bench.controls:
        return ()
    for role in ("compressor", "generator"):
        if role not in bench.loaded.model.roles:
            what = f"--control survival: no {role} in {bench.loaded.path}"
            raise ArtefactError(what, "use another --model")
    return survival(bench.cases, bench.slots, bench.loaded, bench.memories)


def result(
    config: BenchConfig, bench: Bench, scored: Sequence[Scored], facts: tuple[Survival, ...]
) -> BenchResult:
    """The command's record."""
    out = config.out
    return BenchResult(
        dataset=str(config.dataset),
        setting=config.setting,
        n=len(bench.cases),
        seed=config.seed,
        systems=tuple(row.card for row in scored),
        predictions=None if out is None else str(out / PREDICTIONS),
        survival=facts,
        published=published.rows(str(config.dataset)) if config.published else (),
        report=None if out is None else str(out),
    )
