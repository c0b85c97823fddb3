"""`clara index`: make a corpus searchable and measure what the index finds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from clara_cli.answering.engine import Clara, mismatch, named_model
from clara_cli.answering.retriever import CANDIDATES_PER_K, INDEX, WORDS, Retriever, passage_texts
from clara_cli.commands.checkpoint_notes import OLDER, note_older
from clara_cli.config import IndexConfig
from clara_cli.core.checkpoint import LoadOptions, find_stored, load
from clara_cli.corpus.manifest import read_manifest
from clara_cli.corpus.repair import repairs
from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import sentence_spans
from clara_cli.documents.examples import read_questions
from clara_cli.errors import ArtefactError, ClaraError, UsageError
from clara_cli.printable import shell_word
from clara_cli.records import IndexResult, Progress, Report
from clara_cli.search.bm25 import BM25
from clara_cli.search.exact import scan
from clara_cli.search.hnsw import HnswGraph, HnswSettings
from clara_cli.search.key_selection import (
    GOOD_RECALL,
    MOST_CANDIDATES,
    MeasuredKey,
    cheapest,
    keys_to_try,
    ranks_of_best,
    recall,
    scan_is_cheaper,
    widen,
)
from clara_cli.search.keys import make_key, sample_size
from clara_cli.search.label_index import Graph, GraphIndex, forget
from clara_cli.search.milvus import MilvusGraph
from clara_cli.storage.files import make_folder
from clara_cli.storage.lock import locked

PSEUDO_QUESTIONS = 200


def run(config: IndexConfig, report: Report) -> IndexResult:
    """Build keys, graph and word index; `--check` only verifies checksums."""
    started = time.monotonic()
    if config.check:
        return check(config, started, report)
    corpus = Corpus.open(config.corpus)
    make_folder(corpus.folder, INDEX)
    with locked(corpus.folder, f"{INDEX}/.lock", corpus.folder / INDEX):
        return make(corpus, config, report, started)


def make(corpus: Corpus, config: IndexConfig, report: Report, started: float) -> IndexResult:
    """Build the index, measure it, and put it in place of the one before."""
    model = named_model(corpus, config.model)
    ratio = corpus.manifest.identity.ratio
    loaded = load(LoadOptions.of(config, model, ratio, only_reads=True))
    clara = Clara(loaded, Retriever(corpus))
    note_older(loaded, [corpus], report)
    asked = EvaluatedQueries.of(clara, queries(config.queries, corpus), config.top_k)
    pair = choose_key(corpus, asked, config)
    index = build(corpus, pair, asked.k, config, report)
    if config.candidates is None:
        pair = widen(pair, len(corpus), partial(asked.recall, index))
        index.candidates_per_k = -(-pair.candidates // asked.k)
    found = asked.recall(index, pair.candidates)
    engine: str = config.engine
    if engine == "auto":
        engine = choose(pair, found, len(corpus), numbers_of(corpus), HnswSettings().ef)
    size = save(engine, index, corpus)
    report.note(explain(engine, pair, found, asked.k, len(corpus)))
    return IndexResult(
        corpus=str(config.corpus),
        engine=engine,
        vectors=len(corpus),
        dim=index.width,
        recall_at_k=found,
        k=config.top_k,
        queries=len(asked),
        seconds=round(time.monotonic() - started, 3),
        bytes=size,
    )


def check(config: IndexConfig, started: float, report: Report) -> IndexResult:
    """Verify every file, the index's too, against its recorded checksum, that all memory is finite,
    and every weight of the checkpoint and its backbone.

    Raises:
        ArtefactError: naming every damaged file, and the command that repairs just that.
    """
    folder = config.corpus
    damage = repairs(folder)
    manifest = read_manifest(folder)
    fingerprint, rows = (manifest.sha256, manifest.rows) if manifest else ("", 0)
    for load_index, place in ((GraphIndex.load, INDEX), (BM25.load, WORDS)):
        try:
            load_index(folder / place, fingerprint, rows)
        except ArtefactError as error:
            again = f"clara index {shell_word(folder)}"
            damage.setdefault(again, []).append(error.message.removeprefix(f"{folder}/"))
    if damage:
        named = "; ".join(chain.from_iterable(damage.values()))
        raise ArtefactError(f"{folder}: {named}", "repair it: " + "; then ".join(damage))
    corpus = Corpus.open(folder)
    for _ in corpus.memory_chunks():  # reading refuses what is not finite
        pass
    check_weights(config, corpus, report)
    seconds = round(time.monotonic() - started, 3)
    hidden, size = corpus.manifest.identity.hidden, corpus.manifest.bytes
    return IndexResult(str(folder), "check", len(corpus), hidden, None, 0, 0, seconds, size)


def check_weights(config: IndexConfig, corpus: Corpus, report: Report) -> None:
    """Verify the checkpoint that reads a corpus, where it is here and records its digests.

    Raises:
        ArtefactError: for a weight or a setting that is another, or another memory space.
    """
    name, ratio = named_model(corpus, config.model), corpus.manifest.identity.ratio
    try:
        stored = find_stored(LoadOptions.of(config, name, ratio))
    except ClaraError as error:
        report.note(f"weights are not checked: {error.message}")
        return
    if stored.info.version == 1:
        report.note(f"weights are not checked: {name} {OLDER}")
        return
    stored.verify()
    recorded = corpus.manifest.identity.checkpoint["fingerprint"]
    if recorded not in (stored.info.fingerprint, stored.info.older_fingerprint):
        raise mismatch(corpus, name, stored.info.fingerprint)


def build(
    corpus: Corpus, pair: MeasuredKey, k: int, config: IndexConfig, report: Report
) -> GraphIndex:
    """The graph over every passage's narrow key, in Milvus where that was asked for."""

    def keys() -> Iterator[Tensor]:
        for first, memory_NMD in corpus.memory_chunks():
            yield pair.key.of(memory_NMD)
            report.progress(Progress("index", first + len(memory_NMD), len(corpus), "passages"))

    def new_graph(width: int, most: int) -> Graph:
        if config.uri is None:
            return HnswGraph.new(width, most, HnswSettings(seed=config.seed))
        name = f"clara_{corpus.manifest.sha256[:16]}_{pair.key.rule}"
        # the index there may point to the collection that is written anew
        return MilvusGraph.new(width, config.uri, name, partial(forget, corpus.folder, INDEX))

    return GraphIndex.build(
        keys(),
        new_graph,
        rows=len(corpus),
        rule=pair.key.rule,
        state=pair.key.state,
        corpus_sha256=corpus.manifest.sha256,
        candidates_per_k=-(-pair.candidates // k),
    )


def save(engine: str, index: GraphIndex, corpus: Corpus) -> int:
    """Write what `engine` needs, and the words; returns the bytes."""
    folder, size = corpus.folder, 0
    if engine == "exact":
        forget(folder, INDEX)
    else:
        size += index.save(folder, INDEX)
    if corpus.manifest.identity.text:
        words = BM25.build(passage_texts(corpus))
        size += words.save(folder, corpus.manifest.sha256, WORDS)
    return size


def queries(file: Path | None, corpus: Corpus) -> list[str]:
    """The questions recall is measured with: the user's, else the first sentences of up to 200
    passages spread over the corpus (never a passage's own memory)."""
    if file is not None:
        return [q.question for q in read_questions([str(file)], need_answers=False)]
    if not corpus.manifest.identity.text:
        return []
    step = max(1, len(corpus) // PSEUDO_QUESTIONS)
    sentences = []
    for row in range(0, len(corpus), step):
        text = corpus.passage(row).text or ""
        spans = sentence_spans(text[:2000])
        if spans and text[slice(*spans[0])].strip():
            sentences.append(text[slice(*spans[0])])
    return sentences[:PSEUDO_QUESTIONS]


@dataclass(frozen=True)
class EvaluatedQueries:
    """Questions in memory space, and the rows the exact scan ranks best for each."""

    queries_BMD: Tensor
    best_BK: Tensor
    k: int

    @classmethod
    def of(cls, clara: Clara, questions: list[str], top_k: int) -> EvaluatedQueries:
        """Read the questions; those that are too long to be asked are left out."""
        identity = clara.corpus.manifest.identity
        read = []
        for question in questions:
            with contextlib.suppress(UsageError):  # a first sentence longer than a question may be
                read.append(clara.query(question, identity.memory_tokens))
        k = min(top_k, len(clara.corpus))
        if not read:
            empty = torch.empty(0, identity.memory_tokens, identity.hidden)
            return cls(empty, torch.empty(0, k, dtype=torch.long), k)
        queries_BMD = torch.stack(read)
        return cls(queries_BMD, scan(queries_BMD, clara.corpus.memory_chunks(), k)[1], k)

    def __len__(self) -> int:
        return len(self.queries_BMD)

    def recall(self, index: GraphIndex, candidates: int) -> float | None:
        """Mean share of the exact scan's best rows that are among the graph's candidates, which
        exact rescoring then puts in the exact order; None without questions."""
        if not len(self):
            return None
        keys_BF = make_key(index.rule, self.queries_BMD, index.state)
        proposed_BN = index.search(keys_BF, candidates)[1]
        pairs = zip(self.best_BK, proposed_BN, strict=True)
        found = [torch.isin(best_K, rows_N).float().mean() for best_K, rows_N in pairs]
        return round(torch.stack(found).mean().item(), 4)


def choose_key(corpus: Corpus, asked: EvaluatedQueries, config: IndexConfig) -> MeasuredKey:
    """The key and the number of candidates: the cheapest that finds what the exact scan finds, else
    the one that finds most. Without questions, or with candidates given, their number is fixed."""
    identity = corpus.manifest.identity
    sample_NMD = spread(corpus, sample_size(identity.memory_tokens, identity.hidden))
    keys = keys_to_try(sample_NMD, config.seed)
    fixed = max(asked.k, config.candidates or CANDIDATES_PER_K * asked.k)
    if not len(asked):
        return MeasuredKey(next(key for key in keys if key.rule == "pca"), fixed, 0.0)
    chunks = corpus.memory_chunks()
    ranks = ranks_of_best(keys, asked.queries_BMD, asked.best_BK, corpus.memory, chunks)
    if config.candidates is None:
        pair = cheapest(keys, ranks, len(corpus), numbers_of(corpus), HnswSettings().ef)
        if pair is not None:
            return pair
    pairs = [MeasuredKey(k, fixed, recall(r, fixed)) for k, r in zip(keys, ranks, strict=True)]
    return max(pairs, key=lambda pair: (pair.recall, -pair.key.width))


def spread(corpus: Corpus, most: int) -> Tensor:
    """The memory of at most so many passages, from all over the corpus."""
    step = max(1, -(-len(corpus) // most))
    return corpus.memory(range(0, len(corpus), step))


def choose(pair: MeasuredKey, found: float | None, passages: int, numbers: int, ef: int) -> str:
    """The engine questions will use: the graph where it was measured to find what the exact scan
    finds, from at most 5 % of the corpus and by reading less; else the exact scan."""
    few = pair.candidates <= MOST_CANDIDATES * passages
    good = found is not None and found >= GOOD_RECALL
    cheap = not scan_is_cheaper(pair, passages, numbers, ef)
    return "hnsw" if few and good and cheap else "exact"


def numbers_of(corpus: Corpus) -> int:
    """M x D, the numbers of one passage's memory."""
    identity = corpus.manifest.identity
    return identity.memory_tokens * identity.hidden


def explain(engine: str, pair: MeasuredKey, found: float | None, k: int, passages: int) -> str:
    """The decision, in one line."""
    figure = "not measured" if found is None else f"{found:.3f}"
    graph = f"key {pair.key.name}, {pair.candidates:,} of {passages:,} passages as candidates"
    use = "an exact scan" if engine == "exact" else "the graph"
    return f"{engine}: questions will use {use} (graph: {graph}, recall@{k} {figure})"
