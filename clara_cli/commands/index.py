"""`clara index`: make a corpus searchable and measure what the index finds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

from torch import Tensor

from clara_cli.answering.engine import Clara, mismatch, named_model
from clara_cli.answering.retriever import (
    CANDIDATES_PER_K,
    FIELDS,
    INDEX,
    WORDS,
    Retriever,
    passage_fields,
    passage_text,
)
from clara_cli.commands.checkpoint_notes import OLDER, note_older
from clara_cli.commands.index_measurement import (
    keep_measurement,
    measurement_key,
    read_measurement,
)
from clara_cli.config import IndexConfig
from clara_cli.core.checkpoint import LoadOptions, find_stored, load
from clara_cli.corpus.contents import list_documents, show_document
from clara_cli.corpus.manifest import read_manifest
from clara_cli.corpus.repair import repairs
from clara_cli.corpus.store import Corpus
from clara_cli.documents.chunk import sentence_spans
from clara_cli.documents.examples import read_questions
from clara_cli.errors import ArtefactError, ClaraError
from clara_cli.printable import shell_word
from clara_cli.records import CorpusContents, DocumentContents, IndexResult, Progress, Report
from clara_cli.search.bm25 import BM25
from clara_cli.search.evaluated_queries import EvaluatedQueries
from clara_cli.search.field_table import FieldTable
from clara_cli.search.graph_index import Graph, GraphIndex, forget
from clara_cli.search.hnsw import HnswGraph, HnswSettings
from clara_cli.search.key_selection import (
    MeasuredKey,
    choose_engine,
    choose_key,
    describe_choice,
    widen,
)
from clara_cli.search.milvus import MilvusGraph
from clara_cli.storage.files import make_folder
from clara_cli.storage.lock import locked
from clara_cli.storage.remote_folder import refuse_url

PSEUDO_QUESTIONS = 200


def run(config: IndexConfig, report: Report) -> IndexResult | CorpusContents | DocumentContents:
    """Build keys, graph and word index; `--check` only verifies checksums."""
    started = time.monotonic()
    if config.list:
        return list_documents(config.corpus)
    if config.show is not None:
        return show_document(config.corpus, config.show)
    refuse_url("CORPUS", config.corpus)
    if config.check:
        return check(config, started, report)
    corpus = Corpus.open(config.corpus)
    make_folder(corpus.folder, INDEX)
    with locked(corpus.folder, f"{INDEX}/.lock", corpus.folder / INDEX):
        key = measurement_key(config, corpus)
        result = None if key is None else read_measurement(key, corpus)
        if result is not None:
            report.note(f"{config.corpus}: nothing changed since this was measured")
        else:
            result = make(corpus, config, report)
            if key is not None:
                keep_measurement(key, corpus, result)
    seconds = round(time.monotonic() - started, 3)
    return replace(result, corpus=str(config.corpus), seconds=seconds)


def make(corpus: Corpus, config: IndexConfig, report: Report) -> IndexResult:
    """Build the index, measure it, and put it in place of the one before."""
    model = named_model(corpus, config.model)
    ratio = corpus.manifest.identity.ratio
    loaded = load(LoadOptions.of(config, model, ratio, only_reads=True))
    clara = Clara(loaded, Retriever(corpus))
    note_older(loaded, [corpus], report)
    identity, ef = corpus.manifest.identity, HnswSettings().ef
    shape = (identity.memory_tokens, identity.hidden)
    questions = questions_to_measure(config.queries, corpus)
    query = partial(clara.query, memory_tokens=identity.memory_tokens)
    encode = with_progress(query, len(questions), report)
    scanned, keyed = (ShownMemory(corpus, task, report) for task in ("scan", "keys"))
    queries = EvaluatedQueries.read(questions, encode, scanned, shape, config.top_k)
    choice = choose_key(keyed, queries, config.seed, ef, config.candidates, CANDIDATES_PER_K)
    index = build(corpus, choice, queries.k, config, report)
    if config.candidates is None:
        choice = widen(choice, len(corpus), partial(queries.recall, index))
        index.candidates_per_k = -(-choice.candidates // queries.k)
    recall = queries.recall(index, choice.candidates)
    engine: str = config.engine
    if engine == "auto":
        engine = choose_engine(choice, recall, len(corpus), math.prod(shape), ef)
    size = save(engine, index, corpus)
    report.note(describe_choice(engine, choice, recall, queries.k, len(corpus)))
    return IndexResult(
        corpus=str(config.corpus),
        engine=engine,
        vectors=len(corpus),
        dim=index.width,
        recall_at_k=recall,
        k=config.top_k,
        queries=len(queries),
        seconds=0.0,
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
    states = manifest.states if manifest else {0: ""}
    for kind, place in ((GraphIndex, INDEX), (BM25, WORDS), (FieldTable, FIELDS)):
        try:
            kind.load(folder / place, states)
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


class ShownMemory:
    """The memory of a corpus, with the progress of the task that reads all of it."""

    def __init__(self, corpus: Corpus, task: str, report: Report) -> None:
        self._corpus, self._task, self._report = corpus, task, report

    def __len__(self) -> int:
        return len(self._corpus)

    def memory(self, rows: Sequence[int]) -> Tensor:
        """memory_NMD of these rows."""
        return self._corpus.memory(rows)

    def memory_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """All memory in order, as (first row, memory_NMD)."""
        self._show(0)
        for first, memory_NMD in self._corpus.memory_chunks():
            yield first, memory_NMD
            self._show(first + len(memory_NMD))

    def _show(self, done: int) -> None:
        self._report.progress(Progress(self._task, done, len(self), "passages"))


def with_progress(
    encode: Callable[[str], Tensor], total: int, report: Report
) -> Callable[[str], Tensor]:
    """The same function of one question, with the progress over so many."""
    numbers = count(1)
    report.progress(Progress("questions", 0, total, "questions"))

    def encode_next(question: str) -> Tensor:
        try:
            return encode(question)
        finally:
            report.progress(Progress("questions", next(numbers), total, "questions"))

    return encode_next


def build(
    corpus: Corpus, choice: MeasuredKey, k: int, config: IndexConfig, report: Report
) -> GraphIndex:
    """The graph over every passage's narrow key, in Milvus where that was asked for."""

    def keys() -> Iterator[Tensor]:
        report.progress(Progress("index", 0, len(corpus), "passages"))
        for _, memory_NMD in ShownMemory(corpus, "index", report).memory_chunks():
            yield choice.key.of(memory_NMD)

    def new_graph(width: int, most: int) -> Graph:
        if config.uri is None:
            return HnswGraph.new(width, most, HnswSettings(seed=config.seed))
        name = f"clara_{corpus.manifest.fingerprint[:16]}_{choice.key.rule}"
        # the index there may point to the collection that is written anew
        return MilvusGraph.new(width, config.uri, name, partial(forget, corpus.folder, INDEX))

    return GraphIndex.build(
        keys(),
        new_graph,
        rows=len(corpus),
        rule=choice.key.rule,
        state=choice.key.state,
        corpus_sha256=corpus.manifest.fingerprint,
        candidates_per_k=-(-choice.candidates // k),
    )


def save(engine: str, index: GraphIndex, corpus: Corpus) -> int:
    """Write what `engine` needs, the words and the fields; returns the bytes."""
    folder, size = corpus.folder, 0
    stored = (corpus.stored_rows, corpus.manifest.rows)
    if engine == "exact":
        forget(folder, INDEX)
    else:
        index.place(*stored)
        size += index.save(folder, INDEX)
    if corpus.manifest.identity.text:
        words = BM25.build(map(passage_text, corpus.passages())).placed(*stored)
        size += words.save(folder, corpus.manifest.fingerprint, WORDS)
    fields = FieldTable.build(map(passage_fields, corpus.passages())).placed(*stored)
    return size + fields.save(folder, corpus.manifest.fingerprint, FIELDS)


def questions_to_measure(file: Path | None, corpus: Corpus) -> list[str]:
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
