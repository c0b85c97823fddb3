"""Several processes for one command: `--nproc N` starts the same command N times under torchrun's
launcher and ends as they end. Knows no command's work; imports torch only to launch.

`accelerate launch --cpu` starts a single process and says nothing, so torchrun's launcher is called
itself and every process checks the world it finds. On several machines the user starts torchrun:
`torchrun --nnodes 2 --nproc-per-node 8 ... -m clara_cli train ...`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara_cli.errors import ClaraError, ExitCode, Interrupted, UsageError, memory_hint
from clara_cli.records import NullReport, Report
from clara_cli.storage.file_kinds import read_file
from clara_cli.storage.files import write_atomic

ERRORS = "CLARA_LAUNCH_ERRORS"  # the folder in which launched processes leave their errors


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is, on all machines and on its own (`local`)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def world() -> World:
    """The processes a torchrun launcher says there are; one where there is no launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(os.environ.get(name, "").isdecimal() for name in names):
        return World()
    return World(*(int(os.environ[name]) for name in names))


def report_of_first(report: Report) -> Report:
    """The report this process may use: the first one speaks for all."""
    return report if world().rank == 0 else NullReport()


def must_launch(nproc: int | None) -> bool:
    """Whether `--nproc` still has to be obeyed.

    Raises:
        UsageError: inside a launcher that started another number of processes.
    """
    if nproc is None or "LOCAL_WORLD_SIZE" not in os.environ:
        return nproc is not None and nproc > 1
    started = world().local_size
    if started != nproc:
        message = f"--nproc {nproc}, but the launcher started {started} on this machine"
        raise UsageError(message, "omit --nproc under torchrun")
    return False


def run(words: Sequence[str], nproc: int) -> None:
    """Run `clara WORDS` in `nproc` processes and wait for them. Ctrl-C and SIGTERM reach them all.

    Raises:
        ClaraError: the error of the process that failed first.
        Interrupted: when they were stopped by a signal.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    options = ["--standalone", f"--nproc-per-node={nproc}", "--module", "clara_cli"]
    command = torchrun.parse_args(options)
    command.training_script_args = list(words)  # parsed, --nproc would be taken for torchrun's own
    with tempfile.TemporaryDirectory(prefix="clara-launch-") as folder:
        os.environ[ERRORS] = folder
        try:
            torchrun.run(command)
        except SignalException as error:
            raise first_error(Path(folder)) or Interrupted("interrupted") from error
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            message = f"process {rank} of {nproc} ended without a word (exit {failure.exitcode})"
            less = memory_hint(next(iter(words), ""))
            hint = f"-9 is often the system, out of memory: lower --nproc, or {less}"
            raise first_error(Path(folder)) or ClaraError(message, hint) from error
        finally:
            del os.environ[ERRORS]


def hand_over_error(error: ClaraError, show: Callable[[ClaraError], None]) -> None:
    """Leave this process's error to the launching one, which shows one for all; `show` it where
    there is none."""
    folder = os.environ.get(ERRORS)
    if folder is None or world().size == 1:
        show(error)
        return
    described = {"message": error.message, "hint": error.hint, "code": int(error.code)}
    described["time"] = time.time()
    write_atomic(Path(folder), f"{world().rank}.json", json.dumps(described).encode())


def first_error(folder: Path) -> ClaraError | None:
    """The first error among the processes; those stopped because of it only were interrupted."""
    errors = [json.loads(read_file(file)) for file in folder.glob("*.json")]
    if not errors:
        return None
    first = min(errors, key=lambda e: (e["code"] == ExitCode.INTERRUPTED, e["time"]))
    kinds = {int(kind.code): kind for kind in ClaraError.__subclasses__()}
    return kinds.get(first["code"], ClaraError)(first["message"], first["hint"])
