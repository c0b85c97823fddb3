"""What a comparison will do, decided before the first answer: questions with their passages,
systems and controls as rows, where memory comes from; and the identity of all that decides the
predictions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from clara_cli.config import BenchConfig
from clara_cli.core.checkpoint import Loaded
from clara_cli.core.roles import role_tensors
from clara_cli.corpus.quantize import DEFAULT, format_of
from clara_cli.corpus.store import Corpus
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.evaluation import controls
from clara_cli.evaluation.data import datasets
from clara_cli.evaluation.paragraphs import Case, Library
from clara_cli.evaluation.passage_memories import ComputedMemories, Memories, StoredMemories
from clara_cli.evaluation.pool_settings import FIRST_STAGE, Cases
from clara_cli.evaluation.predictions import BATCH, Row
from clara_cli.evaluation.retrieval_stage_reasoner import add_supervised
from clara_cli.evaluation.rivals.build import Workbench, build_systems
from clara_cli.evaluation.rivals.registry import parse_systems
from clara_cli.evaluation.systems import MemorySystem, Reader, check_roles
from clara_cli.records import Report


@dataclass
class Plan:
    """Everything a run needs, decided before the first answer."""

    dataset: datasets.Dataset
    cases: list[Case]
    rows: list[Row]
    loaded: Loaded
    memories: Memories
    tokens_by_ratio: dict[int, int]
    controls: tuple[str, ...]
    corpus: Corpus | None
    rivals: tuple[str, ...] = ()


def check(config: BenchConfig, corpus: Corpus | None) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    wanted = controls.parse(config.control, config.setting)
    systems = [spec.name for spec in parse_systems(config.system)]
    if "sup" in systems and config.sup_model is None:
        hint = "name a checkpoint of clara train --stage retrieval with --sup-model"
        raise UsageError("--system sup: no --sup-model", hint)
    if "sup" not in systems and config.sup_model is not None:
        raise UsageError("--sup-model without the system sup", f"--system {config.system},sup")
    check_corpus(config, systems, wanted, corpus)


def prepare(
    config: BenchConfig,
    dataset: datasets.Dataset,
    loaded: Loaded,
    corpus: Corpus | None,
    resources: ExitStack,
    report: Report,
) -> Plan:
    """Cut the passages, build the rows. What rivals hold open is closed with `resources`."""
    specs = parse_systems(config.system)
    systems = [spec.name for spec in specs]
    wanted = controls.parse(config.control, config.setting)
    check_roles(systems, loaded)
    if config.sup_model is not None:
        add_supervised(loaded, config.sup_model)
    library = Library(loaded.info.max_passage_tokens, loaded.model.prompter.offsets)
    settings_cases = Cases(dataset, config.setting, config.limit, library, corpus)
    cases = [settings_cases.case(number) for number in range(len(settings_cases))]
    if settings_cases.unknown_gold:
        report.warn(f"{settings_cases.unknown_gold:,} gold paragraphs are not in {config.corpus}")
    tokens_by_ratio = tokens_of_ratios(config, loaded, corpus)
    memories = make_memories(config, loaded, library, corpus, report)
    torch.manual_seed(config.seed)
    reader = Reader(loaded, config.max_new_tokens)
    bench = Workbench(
        reader=reader,
        memories=memories,
        tokens_by_ratio=tokens_by_ratio,
        top_k=config.top_k,
        timeout=config.answer_timeout,
        seed=config.seed,
        warn=report.warn,
        resources=resources,
    )
    rows = [Row(system) for system in build_systems(specs, bench)]
    for control in wanted:
        rows += control_rows(control, rows, cases, settings_cases, library, config)
    note_unusual_settings(config, loaded, systems, cases, report)
    rivals = tuple(spec.identity for spec in specs if not spec.own)
    return Plan(dataset, cases, rows, loaded, memories, tokens_by_ratio, wanted, corpus, rivals)


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
    if control in controls.WITHOUT_ROWS or not readers:
        return []
    if control == "none":
        empty = controls.no_documents(cases)
        first = next((s for s in readers if isinstance(s, MemorySystem)), None)
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
        hint = "omit --corpus: the dataset's own paragraphs are rewritten, then compressed"
        raise UsageError("--control counterfactual: a compressed corpus cannot be rewritten", hint)
    readers = [name for name in systems if name not in ("clara", "closed-book")]
    if not corpus.manifest.identity.text and (readers or config.setting == "normal"):
        what = readers[0] if readers else "--setting normal"
        raise ArtefactError(
            f"{config.corpus}: no text was kept, and {what} needs it",
            "use --system clara,closed-book --setting corpus, or compress again without --no-text",
        )


def tokens_of_ratios(config: BenchConfig, loaded: Loaded, corpus: Corpus | None) -> dict[int, int]:
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
    tokens_by_ratio = {ratio: loaded.info.memory_tokens_for(ratio) for ratio in ratios}
    for ratio, m in tokens_by_ratio.items():
        if stored is not None and m > stored.memory_tokens:
            what = f"--ratio {ratio}: {config.corpus} was compressed at {stored.ratio}"
            raise UsageError(what, f"compress it with --ratio {ratio}, or ask for more")
    return tokens_by_ratio


def make_memories(
    config: BenchConfig, loaded: Loaded, library: Library, corpus: Corpus | None, report: Report
) -> Memories:
    """Memory from the corpus, or computed in the format `clara compress` stores. `normal` takes
    passages from anywhere, so each is compressed alone; elsewhere neighbours go together."""
    if corpus is not None:
        return StoredMemories(corpus)
    dtype = DEFAULT if config.dtype == "auto" else format_of(loaded.model.dtype)
    batch = 1 if config.setting == "normal" else 32
    keep = 64 if config.setting in ("gold", "oracle") else None
    return ComputedMemories(loaded.model, library.texts, dtype, batch, keep, report)


def note_unusual_settings(
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
        report.note(
            "clara scans every passage of the corpus for the question's memory, as "
            "`clara ask --first-stage latent` does without an index"
        )
        if {"scp", "text"} & set(systems):
            report.note(f"scp and text read the {FIRST_STAGE} passages BM25 finds in the corpus")
    unjudged = sum(not case.gold for case in cases)
    if unjudged:
        report.note(f"{unjudged:,} questions have no gold paragraph and are left out of recall")


def identity(config: BenchConfig, plan: Plan) -> dict[str, Any]:
    """Everything that decides the predictions."""
    questions = hashlib.sha256()
    for case in plan.cases:
        questions.update(repr(case.question).encode("utf-8", "backslashreplace"))
    weights = hashlib.sha256(plan.loaded.info.backbone_digest.encode())
    for role in plan.loaded.model.roles:
        for name, tensor in sorted(role_tensors(plan.loaded.model, role).items()):
            weights.update(f"{role} {name}".encode() + tensor.float().numpy().tobytes())
    corpus = plan.corpus
    unusual: dict[str, Any] = {} if config.load_in is None else {"load_in": config.load_in}
    if plan.rivals:
        unusual["rivals"] = list(plan.rivals)
    return {
        **unusual,
        "dataset": config.dataset,
        "form": plan.dataset.form,
        "revision": plan.dataset.revision,
        "questions": len(plan.cases),
        "questions_sha256": questions.hexdigest(),
        "setting": config.setting,
        "systems": [[row.name, row.ratio] for row in plan.rows],
        "top_k": config.top_k,
        "batch": BATCH,
        "max_new_tokens": config.max_new_tokens,
        "controls": list(plan.controls),
        "seed": config.seed,
        "model": plan.loaded.name,
        "fingerprint": plan.loaded.info.fingerprint,
        "weights_sha256": weights.hexdigest(),
        "corpus_sha256": None if corpus is None else corpus.manifest.sha256,
        "compute_dtype": str(plan.loaded.model.dtype).removeprefix("torch."),
        "memory_dtype": plan.memories.dtype,
        "device": plan.loaded.model.device.type,
    }
