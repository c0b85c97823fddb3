"""Room taken back: shards that hold deleted rows, and runs of small ones, are written anew without
them, behind the others; the manifest then names the new ones in their place.

Memory is copied as it is stored, nothing is computed. Rows have other numbers afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from clara_cli.corpus.documents_table import Documents, TableWriter
from clara_cli.corpus.manifest import COUNTS, Edits, Manifest, Part, Shard, write_manifest
from clara_cli.corpus.shards import encode_passages, write_tensors
from clara_cli.corpus.store import Corpus
from clara_cli.corpus.writer import remove_unused
from clara_cli.records import Passage

Row = tuple[int, int]  # the place of a shard, and a row in it


def vacuum(folder: Path, manifest: Manifest, shard_size: int) -> Manifest:
    """Write a corpus's shards anew, `shard_size` passages each, where that takes deleted rows out
    of them or makes them fewer. Call it under the lock. A reader keeps what it has open.

    Raises ClaraError; the corpus is then as it was.
    """
    corpus = Corpus(folder, manifest)
    runs = list(_runs(corpus, shard_size))
    if not any(rows is not None for _, rows in runs):
        return manifest
    documents = Documents(corpus)
    shards: list[Shard] = []
    number = manifest.next_shard
    for places, rows in runs:
        if rows is None:
            shards += [manifest.shards[place] for place in places]
            continue
        for start in range(0, len(rows), shard_size):
            shards.append(_rewritten(corpus, number, rows[start : start + shard_size]))
            number += 1
    table = TableWriter(folder, 0)
    table.begin(0)
    live = corpus.stored_rows
    for document in sorted(documents, key=lambda one: one.row):
        table.add_again(replace(document, row=int(np.searchsorted(live, document.row))))
    listed = table.finish()
    first = manifest.parts[0]
    counts = {name: manifest.counts[name] for name in COUNTS}
    part = Part(0, "", "", first.inputs, counts, listed, table.origins)
    before = manifest.edits
    renumbered = (*before.renumbered, *manifest.states.values())
    edits = Edits(before.times + 1, None, dict.fromkeys(COUNTS, 0), renumbered)
    done = write_manifest(folder, manifest.identity, [part], shards, edits)
    remove_unused(folder, done)
    return done


def _runs(corpus: Corpus, shard_size: int) -> Iterator[tuple[range, list[Row] | None]]:
    """The shards' places in runs: with their rows that are to be written anew, None where they stay
    as they are."""
    run: list[int] = []
    for place in range(len(corpus.manifest.shards)):
        shard = corpus.manifest.shards[place]
        kept = corpus.live_rows_of(place)
        if len(kept) == shard.rows >= shard_size:
            yield from _run(corpus, run, shard_size)
            yield range(place, place + 1), None
            run = []
        else:
            run.append(place)
    yield from _run(corpus, run, shard_size)


def _run(
    corpus: Corpus, run: list[int], shard_size: int
) -> Iterator[tuple[range, list[Row] | None]]:
    if not run:
        return
    rows = [(place, int(row)) for place in run for row in corpus.live_rows_of(place)]
    total = sum(corpus.manifest.shards[place].rows for place in run)
    places = range(run[0], run[-1] + 1)
    stays = len(rows) == total and -(-total // shard_size) == len(run)
    yield places, None if stays else rows


def _rewritten(corpus: Corpus, number: int, rows: list[Row]) -> Shard:
    import torch

    passages: list[Passage] = []
    parts: dict[str, list[torch.Tensor]] = {}
    for place in dict.fromkeys(place for place, _ in rows):
        inside = [row for other, row in rows if other == place]
        stored = corpus.stored_passages(place)
        passages += [stored[row] for row in inside]
        for name, tensor in corpus.stored_tensors(place).items():
            parts.setdefault(name, []).append(tensor[inside])
    tensors = {name: torch.cat(pieces) for name, pieces in parts.items()}
    encoded = encode_passages(passages, corpus.manifest.identity.text)
    return write_tensors(corpus.folder, number, tensors, encoded)
