"""From `--system` to the rows of a comparison: our own systems, and rivals that open when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from clara_cli.evaluation.extractive import Extractive, PoolPicker
from clara_cli.evaluation.passage_memories import Memories
from clara_cli.evaluation.rivals.compressors import LLMLingua2, RecompAbstractive, RecompExtractive
from clara_cli.evaluation.rivals.program import Program, ProgramCompressor, ProgramSystem
from clara_cli.evaluation.rivals.registry import SYSTEMS, SystemSpec
from clara_cli.evaluation.rivals.retrievers import (
    CrossEncoderPicker,
    DensePicker,
    Embedder,
    HybridPicker,
    VectorRule,
    vector_rule,
)
from clara_cli.evaluation.rivals.rival import Rival
from clara_cli.evaluation.rivals.server import ServerReader
from clara_cli.evaluation.rivals.tuned import TEMPLATES, ListwisePicker, TunedReader
from clara_cli.evaluation.rivals.weights import load
from clara_cli.evaluation.systems import (
    AllGiven,
    BM25Picker,
    Picker,
    Reader,
    System,
    TextCompressor,
    TextSystem,
    build,
)

STARTING = 4  # times what an answer may take, to start a program


@dataclass(frozen=True)
class Workbench:
    """What systems share. `tokens_by_ratio` has each ratio and its M, a text compressor's budget of
    tokens a passage; `timeout` is the seconds that a server or a program may take for an answer;
    `warn` tells the user; what a rival holds open is closed with `resources`."""

    reader: Reader
    memories: Memories
    tokens_by_ratio: dict[int, int]
    top_k: int
    timeout: float
    seed: int
    warn: Callable[[str], None]
    resources: ExitStack


Opener = Callable[[SystemSpec, Workbench, int | None], System]
"""Makes a rival: of this spec, with these parts, at this ratio (None: its own, or none)."""


def _device(bench: Workbench) -> torch.device:
    return bench.reader.model.device


def _dense(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    weights = load(spec, "vectors", _device(bench))
    rule = vector_rule(weights.folder, spec.argument or spec.info.weights)
    dense = DensePicker(Embedder(weights, rule), bench.top_k)
    hybrid = spec.name == "text+hybrid"
    picker: Picker = HybridPicker(dense, bench.top_k) if hybrid else dense
    return TextSystem(spec.label, bench.reader, picker)


def _rerank(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    weights = load(spec, "score", _device(bench))
    return TextSystem(spec.label, bench.reader, CrossEncoderPicker(weights, bench.top_k))


def _compressor_row(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    """A text compressor before the backbone, with the memory's budget at this ratio."""
    device, count = _device(bench), bench.reader.count_tokens
    compressor: TextCompressor
    if ratio is None:
        compressor = RecompAbstractive(load(spec, "rewrite", device), count)
    elif spec.name == "llmlingua2":
        weights = load(spec, "label tokens", device)
        compressor = LLMLingua2(weights, bench.tokens_by_ratio[ratio], count)
    else:
        embedder = Embedder(load(spec, "vectors", device), VectorRule("mean"))
        compressor = RecompExtractive(embedder, bench.tokens_by_ratio[ratio], count)
    return TextSystem(spec.label, bench.reader, AllGiven(), compressor, ratio)


def _tuned_row(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    weights = load(spec, "generate", _device(bench), bench.reader.model.dtype)
    if spec.name == "rankzephyr":
        return TextSystem(spec.label, bench.reader, ListwisePicker(weights, bench.top_k))
    reader = TunedReader(weights, TEMPLATES[spec.name], bench.reader.max_new_tokens)
    return TextSystem(spec.label, reader, AllGiven())


def _program(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    """A rival in an environment of its own, started now and ended with the run."""
    hello = {"top_k": bench.top_k, "max_new_tokens": bench.reader.max_new_tokens}
    program = Program(Path(spec.argument), hello, bench.timeout, STARTING * bench.timeout)
    bench.resources.callback(program.close)
    if spec.info.kind == "memory":
        return ProgramSystem(spec.label, ratio, program)
    compressor = ProgramCompressor(program, bench.reader.count_tokens)
    return TextSystem(spec.label, bench.reader, AllGiven(), compressor)


def _server(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    tokens = bench.reader.max_new_tokens
    reader = ServerReader(*spec.server, tokens, bench.timeout, bench.seed, bench.warn)
    bench.resources.callback(reader.close)
    picker = AllGiven() if spec.name == "server" else BM25Picker(bench.top_k)
    return TextSystem(spec.label, reader, picker)


def _extractive(spec: SystemSpec, bench: Workbench, ratio: int | None) -> System:
    assert ratio is not None  # it has a row a ratio
    offsets = bench.reader.prompter.offsets
    compressor = Extractive(bench.tokens_by_ratio[ratio], bench.top_k, offsets)
    return TextSystem(spec.label, bench.reader, PoolPicker(), compressor, ratio)


OPENERS: dict[str, tuple[bool, Opener]] = {
    "server": (False, _server),
    "server+bm25": (True, _server),
    "text+dense": (True, _dense),
    "text+hybrid": (True, _dense),
    "text+rerank": (True, _rerank),
    "llmlingua2": (False, _compressor_row),
    "recomp-extractive": (False, _compressor_row),
    "recomp-abstractive": (False, _compressor_row),
    **{name: (name == "rankzephyr", _tuned_row) for name in (*TEMPLATES, "rankzephyr")},
    **{info.name: (info.kind == "memory", _program) for info in SYSTEMS if info.argument == "DIR"},
    "extractive": (True, _extractive),
}
"""By name: whether it chooses from the pool, and what makes it."""


def build_systems(specs: Sequence[SystemSpec], bench: Workbench) -> list[System]:
    """The systems in the order named, one a ratio where they have one."""
    systems: list[System] = []
    for spec in specs:
        if spec.own:
            own = (bench.tokens_by_ratio, bench.reader, bench.memories, bench.top_k)
            systems += build(spec.name, *own)
            continue
        ratios = list(bench.tokens_by_ratio) if spec.info.by_ratio else [spec.info.ratio]
        systems += [_rival(spec, bench, ratio) for ratio in ratios]
    return systems


def _rival(spec: SystemSpec, bench: Workbench, ratio: int | None) -> Rival:
    chooses, opener = OPENERS[spec.name]
    return Rival(spec.label, ratio, chooses, lambda: opener(spec, bench, ratio), bench.warn)
