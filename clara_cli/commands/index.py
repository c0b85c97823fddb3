"""`clara index`: make a corpus searchable and measure what the index finds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.config import IndexConfig
from clara_cli.core.checkpoint import load
from clara_cli.corpus.chunk import sentence_spans
from clara_cli.corpus.examples import read_questions
from clara_cli.corpus.store import Corpus, verify
from clara_cli.engine import Clara, named_model
from clara_cli.errors import ArtefactError, UsageError
from clara_cli.records import IndexResult, Progress, Report
from clara_cli.retrieval import CANDIDATES_PER_K, Retriever, passage_texts
from clara_cli.search import sidecar
from clara_cli.search.bm25 import BM25
from clara_cli.search.exact import scan
from clara_cli.search.hnsw import GRAPH, SIDECAR, TABLES, HnswIndex, HnswSettings
from clara_cli.search.keys import make_key, make_state

KEY = "mean"
PSEUDO_QUESTIONS = 200
EXACT_UP_TO = 50_000  # passages for which scanning all memory beats a graph
GOOD_RECALL = 0.98


def run(config: IndexConfig, report: Report) -> IndexResult:
    """Build keys, graph and word index; `--check` only verifies checksums."""
    started = time.monotonic()
    if config.check:
        return check(config.corpus, started)
    corpus = Corpus.open(config.corpus)
    model = named_model(corpus, config.model)
    ratio = corpus.manifest.identity.ratio
    loaded = load(model, config.backbone, config.device, config.dtype, ratio=ratio)
    clara = Clara(loaded, Retriever(corpus))
    folder = corpus.folder / "index"
    index = build(corpus, config.seed, report)
    questions = queries(config.queries, corpus)
    recall, asked = measure(clara, index, questions, config)
    engine = choose(config.engine, len(corpus), recall)
    size = 0
    if engine == "hnsw":
        size += index.save(folder)
    else:
        forget_graph(folder)
    if corpus.manifest.identity.text:
        size += BM25.build(passage_texts(corpus)).save(folder / "bm25", corpus.manifest.sha256)
    means = "the graph" if engine == "hnsw" else "an exact scan"
    report.note(f"{engine}: questions will use {means}")
    return IndexResult(
        corpus=str(config.corpus),
        engine=engine,
        vectors=len(corpus),
        dim=index.width,
        recall_at_k=recall,
        k=config.top_k,
        queries=asked,
        seconds=round(time.monotonic() - started, 3),
        bytes=size,
    )


def check(folder: Path, started: float) -> IndexResult:
    """Verify every file, the index's too, against its recorded checksum.

    Raises:
        ArtefactError: naming each damaged file.
    """
    damage = verify(folder)
    if damage:
        named = "; ".join(f"{item.file}: {item.what}" for item in damage)
        hint = f"delete {folder} and compress the documents again"
        raise ArtefactError(f"{folder}: {named}", hint)
    corpus = Corpus.open(folder)
    fingerprint = corpus.manifest.sha256
    HnswIndex.load(folder / "index", fingerprint)
    BM25.load(folder / "index" / "bm25", fingerprint)
    seconds = round(time.monotonic() - started, 3)
    hidden, size = corpus.manifest.identity.hidden, corpus.manifest.bytes
    return IndexResult(str(folder), "check", len(corpus), hidden, None, 0, 0, seconds, size)


def forget_graph(folder: Path) -> None:
    """Leave no graph behind, and a folder that says the corpus was indexed."""
    with sidecar.writing(folder):
        for name in (SIDECAR, GRAPH, TABLES):
            (folder / name).unlink(missing_ok=True)


def build(corpus: Corpus, seed: int, report: Report) -> HnswIndex:
    """The graph over every passage's narrow key."""
    identity = corpus.manifest.identity
    state = make_state(KEY, identity.memory_tokens, identity.hidden, seed=seed)

    def keys() -> Iterator[Tensor]:
        for first, memory_NMD in corpus.memory_chunks():
            yield make_key(KEY, memory_NMD, state)
            report.progress(Progress("index", first + len(memory_NMD), len(corpus), "passages"))

    return HnswIndex.build(
        keys(),
        rows=len(corpus),
        rule=KEY,
        state=state,
        corpus_sha256=corpus.manifest.sha256,
        settings=HnswSettings(seed=seed),
    )


def queries(file: Path | None, corpus: Corpus) -> list[str]:
    """The questions recall is measured with: the user's, else the first sentences of up to 200
    passages spread over the corpus (never a passage's own memory)."""
    if file is not None:
        return [q.question for q in read_questions([str(file)], need_answers=False)]
    if not corpus.manifest.identity.text:
        return []
    step = max(1, len(corpus) // PSEUDO_QUESTIONS)
    found = []
    for row in range(0, len(corpus), step):
        text = corpus.passage(row).text or ""
        spans = sentence_spans(text[:2000])
        if spans and text[slice(*spans[0])].strip():
            found.append(text[slice(*spans[0])])
    return found[:PSEUDO_QUESTIONS]


def measure(
    clara: Clara, index: HnswIndex, questions: list[str], config: IndexConfig
) -> tuple[float | None, int]:
    """Mean share of the exact scan's top k that the graph's candidates, rescored, also give, and
    over how many questions; None where there is none to ask."""
    k = min(config.top_k, len(clara.corpus))
    count = max(k, config.candidates or CANDIDATES_PER_K * k)
    slots = clara.corpus.manifest.identity.memory_tokens
    asked = []
    for question in questions:
        with contextlib.suppress(UsageError):  # a first sentence longer than a question may be
            asked.append(clara.query(question, slots))
    if not asked:
        return None, 0
    queries_BMD = torch.stack(asked)
    exact_BK = scan(queries_BMD, clara.corpus.memory_chunks(), k)[1]
    keys_BF = make_key(index.rule, queries_BMD, index.state)
    proposed_BN = index.search(keys_BF, count)[1]
    found = [torch.isin(e, p).float().mean() for e, p in zip(exact_BK, proposed_BN, strict=True)]
    return round(torch.stack(found).mean().item(), 4), len(asked)


def choose(asked: str, passages: int, recall: float | None) -> str:
    """The engine questions will use. auto: the graph where the corpus is large and the graph was
    measured to find what the exact scan finds, else the exact scan."""
    if asked != "auto":
        return asked
    good = recall is not None and recall >= GOOD_RECALL
    return "hnsw" if good and passages > EXACT_UP_TO else "exact"
