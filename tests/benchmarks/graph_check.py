"""Opening a graph index with every number of hnswlib's file checked, against hnswlib alone.

python tests/benchmarks/graph_check.py --nodes 20000 200000 --rounds 9
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from clara_cli.search import hnsw
from clara_cli.search.graph_index import GraphIndex
from clara_cli.search.hnsw import HnswGraph, HnswSettings

CORPUS = "c" * 64


def build(folder: Path, nodes: int, width: int) -> int:
    """A graph of random keys; few candidates while it is built, since they leave no trace in the
    file's size. Returns the file's bytes."""
    keys_NF = torch.randn(nodes, width, generator=torch.Generator().manual_seed(0))
    GraphIndex.build(
        keys_NF.split(4096),
        lambda width, most: HnswGraph.new(width, most, HnswSettings(ef_construction=20)),
        rows=nodes,
        rule="mean",
        state={},
        corpus_sha256=CORPUS,
        candidates_per_k=20,
    ).save(folder)
    return (folder / hnsw.GRAPH).stat().st_size


def measure(folder: Path, nodes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds to open it, with the check, without, and of the check alone, in turn."""
    check = hnsw.check_graph
    seconds: dict[str, list[float]] = {"checked": [], "unchecked": [], "check": []}
    for _ in range(rounds + 1):
        for way in ("checked", "unchecked"):
            hnsw.check_graph = check if way == "checked" else lambda *_: None
            began = time.perf_counter()
            GraphIndex.load(folder, {nodes: CORPUS})
            seconds[way].append(time.perf_counter() - began)
        began = time.perf_counter()
        check(folder / hnsw.GRAPH, WIDTH, nodes, HnswSettings().links, 20)
        seconds["check"].append(time.perf_counter() - began)
    hnsw.check_graph = check
    return seconds


WIDTH = 128  # the widest key that is tried where memory is wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for nodes in args.nodes:
        with tempfile.TemporaryDirectory() as folder:
            size = build(Path(folder), nodes, WIDTH)
            seconds = measure(Path(folder), nodes, args.rounds)
        result = {"nodes": nodes, "width": WIDTH, "megabytes": round(size / 1e6, 1)}
        for way, times in seconds.items():
            result[f"{way}_ms"] = round(1000 * statistics.median(times[1:]), 1)
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
