"""Work in forked processes, which have everything imported, so that a kill meets the work."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from clara_cli.errors import ClaraError


def fork(work: Callable[[], object], **environment: str) -> int:
    """Start `work` in a process of its own, which exits 0, or 1 for a ClaraError."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ.update(environment)
        work()
        code = 0
    except ClaraError as error:
        sys.stderr.write(f"{error.message}\n")
        code = 1
    finally:
        os._exit(code)


def ended(pid: int, seconds: float = 120) -> int:
    """Wait for a process; its exit code, -9 where it was killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"still running after {seconds} s")
