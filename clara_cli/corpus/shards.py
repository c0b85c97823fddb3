"""Passages into shards. Knows no models and no files."""

from __future__ import annotations

from collections.abc import Iterator

from clara_cli.records import Passage


def in_shards(passages: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    """Runs of consecutive passages, decided by the input alone."""
    shard: list[Passage] = []
    for passage in passages:
        shard.append(passage)
        if len(shard) == size:
            yield shard
            shard = []
    if shard:
        yield shard
