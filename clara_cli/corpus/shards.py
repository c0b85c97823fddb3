"""Passages into shards, and work done ahead of its use. Knows no models and no files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clara_cli.records import Passage

Item = TypeVar("Item")


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


def ahead(items: Iterator[Item], depth: int = 1) -> Iterator[Item]:
    """The same items, made in a thread, `depth` of them before they are asked for. An error comes
    where it would have come, after the items before it."""
    end = object()
    with ThreadPoolExecutor(1) as worker:
        waiting = deque(worker.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(worker.submit(next, items, end))
            yield item  # type: ignore[misc]
