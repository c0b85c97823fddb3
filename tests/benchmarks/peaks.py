"""Peak memory of one `clara` command, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys

MEASURED = """
import sys
from pathlib import Path
from clara_cli.cli.app import main
try:
    main()
finally:  # not getrusage's: a process begins with its parent's peak
    print(Path("/proc/self/status").read_text(), file=sys.stderr)
"""


def peak_mb(words: list[str]) -> float:
    """Megabytes (10^6 bytes) of resident memory at their highest. Linux only."""
    command = [sys.executable, "-c", MEASURED, *words]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", ended.stderr, re.M)
    return round(int(peak) * 1024 / 1e6, 1)
