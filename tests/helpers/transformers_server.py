"""A real `transformers serve` process, for tests that want a server nobody here wrote."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def transformers_serve(log: Path) -> Iterator[str]:
    """Its address, while it runs; skips where its own extras are not installed."""
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed, reason="transformers serve needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    code = "import sys; from transformers.cli.transformers import main; main()"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=stream,
            stderr=stream,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")
