"""The index of a corpus that was changed, brought after it: keys, words and fields of the new
passages are put in, and once half of what it holds is deleted, or as much again has come, it is
built anew.

The key keeps its rule, and its state until the index is built anew. Knows no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from clara_cli.answering.retriever import FIELDS, INDEX, WORDS, passage_fields, passage_text
from clara_cli.corpus.store import Corpus
from clara_cli.records import Passage
from clara_cli.search.bm25 import BM25
from clara_cli.search.errors import OtherCorpusError
from clara_cli.search.field_table import FieldTable
from clara_cli.search.graph_index import GraphIndex, forget
from clara_cli.search.keys import make_key, make_state, sample_size
from clara_cli.storage.lock import locked

Index = TypeVar("Index", GraphIndex, BM25, FieldTable)
Table = TypeVar("Table", BM25, FieldTable)
_BLOCK = 256  # rows whose memory is read at a time


def update_index(corpus: Corpus) -> int:
    """Bring the index of a corpus, where it has one, to its present passages; the bytes written.

    Raises ArtefactError where the index is damaged, of another corpus or being written, and
    ClaraError where it cannot be written; the one before then stays.
    """
    folder = corpus.folder
    if not (folder / INDEX).is_dir():
        return 0
    with locked(folder, f"{INDEX}/.lock", folder / INDEX):
        written = _update_graph(corpus)
        written += _update_table(BM25, WORDS, corpus, passage_text)
        return written + _update_table(FieldTable, FIELDS, corpus, passage_fields)


def _update_graph(corpus: Corpus) -> int:
    loaded = _load(GraphIndex, corpus, INDEX)
    if loaded is None:
        return 0
    (index, is_numbered), states = loaded, corpus.manifest.states
    if not len(corpus):
        forget(corpus.folder, INDEX)
        return 0
    if not is_numbered or _is_outgrown(index, corpus):
        return _rebuilt(index, corpus).save(corpus.folder, INDEX)
    if len(index) == corpus.manifest.rows:
        return 0
    for rows in _blocks(len(index), corpus.manifest.rows):
        key_NF = make_key(index.rule, corpus.stored_memory(rows), index.state)
        index.extend(key_NF, states.get(rows.stop, ""))
    return index.save(corpus.folder, INDEX)


def _is_outgrown(index: GraphIndex, corpus: Corpus) -> bool:
    """Whether an index has more rows that are deleted than others, or was built of fewer than half
    of what there is now."""
    live = corpus.stored_rows
    kept = int((live < len(index)).sum())
    return 2 * kept < index.listed or 2 * index.built < len(corpus)


def _rebuilt(index: GraphIndex, corpus: Corpus) -> GraphIndex:
    """An index by the same rule, its state fitted to the corpus as it is."""
    identity = corpus.manifest.identity
    step = max(1, -(-len(corpus) // sample_size(identity.memory_tokens, identity.hidden)))
    sample_NMD = corpus.memory(range(0, len(corpus), step))
    state = make_state(index.rule, sample_NMD, index.width) if index.state else {}

    def keys() -> Iterator[Tensor]:
        for _, memory_NMD in corpus.memory_chunks():
            yield make_key(index.rule, memory_NMD, state)

    rebuilt = GraphIndex.build(
        keys(),
        index.new_graph(corpus.manifest.fingerprint),
        rows=len(corpus),
        rule=index.rule,
        state=state,
        corpus_sha256=corpus.manifest.fingerprint,
        candidates_per_k=index.candidates_for(index.measured_rows),
        measured_rows=index.measured_rows,
    )
    rebuilt.place(corpus.stored_rows, corpus.manifest.rows)
    return rebuilt


def _update_table(
    kind: type[Table], place: str, corpus: Corpus, read: Callable[[Passage], Any]
) -> int:
    """Bring what a table keeps of every passage, which `read` gives, to the present ones."""
    loaded = _load(kind, corpus, place)
    if loaded is None:
        return 0
    (table, is_numbered), rows = loaded, corpus.manifest.rows
    if not is_numbered or 2 * len(corpus) < rows:
        everything = map(read, corpus.passages())
        placed = kind.build(everything).placed(corpus.stored_rows, rows)
    elif len(table) == rows:
        return 0
    else:
        placed = table.extended(map(read, corpus.stored_passages_at(range(len(table), rows))))
    return placed.save(corpus.folder, corpus.manifest.fingerprint, place)


def _load(kind: type[Index], corpus: Corpus, place: str) -> tuple[Index, bool] | None:
    """The index of a state that the corpus had, and whether its rows have the numbers they have
    now; None where there is none of this version."""
    folder, manifest = corpus.folder / place, corpus.manifest
    try:
        index, is_numbered = kind.load(folder, manifest.states), True
    except OtherCorpusError as error:
        if error.indexed not in manifest.edits.renumbered:
            raise
        index, is_numbered = kind.load(folder, {error.rows: error.indexed}), False
    return None if index is None else (index, is_numbered)


def _blocks(first: int, last: int) -> Iterator[range]:
    for start in range(first, last, _BLOCK):
        yield range(start, min(last, start + _BLOCK))
