"""The processes of one compress: what they do alone. Two of them: commands/test_survival.py."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from clara_cli.distributed import ranks
from clara_cli.distributed.ranks import Ranks, joined_apart
from clara_cli.errors import DataError


def test_one_process_is_a_world_of_one():
    with joined_apart() as alone:
        assert alone == Ranks(0, 1) and alone.first
        assert alone.gathered({"a": 1}) == [{"a": 1}]
        with pytest.raises(DataError, match="bad"), alone.together():
            raise DataError("bad")


def test_every_item_is_one_process_work():
    several = [Ranks(rank, 3) for rank in range(3)]
    assert [sum(t.has(n) for t in several) for n in range(7)] == [1] * 7


def test_a_process_ends_with_its_launcher():
    """The launcher here is a process that starts one and dies; a pipe tells when that one ends."""
    ours, theirs = os.pipe()
    launcher = os.fork()
    if not launcher:
        parent = os.getpid()
        if not os.fork():
            os.close(ours)
            threading.Thread(target=ranks._end_with, args=(parent,), daemon=True).start()
            os.write(theirs, b"started")
            time.sleep(60)
        os._exit(0)
    os.close(theirs)
    os.waitpid(launcher, 0)
    ended, until = False, time.monotonic() + 20
    while not ended and time.monotonic() < until:
        readable = select.select([ours], [], [], 1)[0]
        ended = bool(readable) and not os.read(ours, 100)  # nobody holds the other end
    assert ended
