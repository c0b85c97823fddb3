"""What an edit costs beside a rebuild: `python tests/benchmarks/edit_cost.py --documents 30000`.

A corpus of short documents is made by nano, indexed, and 100 of its documents are changed: how many
passages are computed, how many bytes are written, and how long it takes, beside making the corpus
of the same documents anew, in the same process. Loading the checkpoint is in neither time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clara_cli.commands import compress, compress_pipeline, index
from clara_cli.config import CompressConfig, IndexConfig
from clara_cli.corpus.manifest import read_manifest
from clara_cli.records import NullReport

CHANGED = 100


def write(path: Path, count: int, changed: bool) -> None:
    """Documents of one short sentence; in the second state, every so many are another one."""
    every = max(1, count // CHANGED)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            hats = 2 if changed and not number % every else 1
            text = f"Mayor {number} of Elmgate, who came by boat, has {hats} hats in a box."
            stream.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")


class Clock:
    """Times commands without what loading the checkpoint takes."""

    def __init__(self) -> None:
        self._load, self._loading = compress_pipeline.load, 0.0
        compress_pipeline.load = self._timed_load

    def _timed_load(self, *options: Any) -> Any:
        began = time.monotonic()
        loaded = self._load(*options)
        self._loading += time.monotonic() - began
        return loaded

    def run(self, config: CompressConfig) -> tuple[Any, float]:
        """A command's result, and its seconds."""
        self._loading, began = 0.0, time.monotonic()
        result = compress.run(config, NullReport())
        return result, time.monotonic() - began - self._loading


def main() -> None:
    """Make, edit, make anew, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--no-index", action="store_true", help="edit a corpus without an index")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        data, corpus, anew = (Path(place, name) for name in ("d.jsonl", "c.clara", "anew.clara"))
        common: dict[str, Any] = {"inputs": (str(data),), "device": "cpu", "dtype": "float32"}
        write(data, given.documents, changed=False)
        clock.run(CompressConfig(**common, out=corpus, model="nano"))
        if not given.no_index:
            index.run(IndexConfig(corpus=corpus, engine="hnsw", device="cpu"), NullReport())
        write(data, given.documents, changed=True)
        edit, edit_seconds = clock.run(CompressConfig(**common, into=corpus))
        built, seconds = clock.run(CompressConfig(**common, out=anew, model="nano"))
        manifest = read_manifest(anew)
        total = manifest.bytes if manifest else 0
    print(f"{given.documents:,} documents, {edit.replaced:,} changed")
    print(f"computed {edit.computed:,} passages")
    share, pace = edit.bytes_written / total, built.passages / seconds
    print(
        f"wrote {edit.bytes_written:,} bytes of {total:,}: {share:.2%}; index {edit.index_bytes:,}"
    )
    print(f"took {edit_seconds:.2f} s of {seconds:.1f} ({pace:,.0f} passages/s): "
          f"{edit_seconds / seconds:.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
