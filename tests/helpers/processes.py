"""Several processes of one training run, forked from this one so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def _process(rank: int, size: int, port: int, work: Callable[[int], Any], results: Any) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in places.items()})
    torch.set_num_threads(1)
    PartialState._reset_state()  # what an earlier test left in the process forked
    try:
        results.put((rank, work(rank), None))
    except BaseException as error:
        results.put((rank, None, (type(error).__name__, str(error), traceback.format_exc())))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def ranks(work: Callable[[int], Any], size: int = 2) -> list[Any]:
    """`work(rank)` in `size` processes that meet over gloo; what each returns, or the
    (type, message, traceback) of what it raised."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_process, args=(rank, size, port, work, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    for _ in processes:
        rank, value, error = results.get()
        found[rank] = value if error is None else error
    for process in processes:
        process.join()
    return [found[rank] for rank in range(size)]
