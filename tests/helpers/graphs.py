"""Graph indexes over random keys."""

from __future__ import annotations

import torch
from torch import Tensor

from clara_cli.search.graph_index import GraphIndex
from clara_cli.search.hnsw import HnswGraph, HnswSettings

CORPUS = "c" * 64


def unit(count: int, width: int = 16, seed: int = 0) -> Tensor:
    keys_NF = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(keys_NF)


def build(keys_NF: Tensor, chunk: int = 64, **settings: int) -> GraphIndex:
    return build_of(len(keys_NF), *keys_NF.split(chunk), **settings)


def build_of(rows: int, *key_chunks: Tensor, **settings: int) -> GraphIndex:
    return GraphIndex.build(
        key_chunks,
        lambda width, most: HnswGraph.new(width, most, HnswSettings(**settings)),
        rows=rows,
        rule="mean",
        state={},
        corpus_sha256=CORPUS,
        candidates_per_k=20,
    )
