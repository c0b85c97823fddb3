"""The whole loop against a real `transformers serve` process with a tiny random model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import write_towns

from clara_cli.commands import synth
from clara_cli.config import SynthConfig

for needed in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(needed, reason="transformers serve needs transformers[serving]")


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
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
            wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_so_small_a_model_is_turned_away(
    stream: bool, served: str, tiny_backbone: Path, tmp_path: Path, report: Any
) -> None:
    docs = write_towns(tmp_path / "t.jsonl", range(2))
    config = SynthConfig(
        documents=(str(docs),),
        llm=served,
        llm_model=str(tiny_backbone),
        out=tmp_path / "pairs.jsonl",
        reply_tokens=16,
        concurrency=2,
        stream=stream,
    )
    result = synth.run(config, report)
    assert (result.accepted, result.passages, result.dropped) == (0, 2, {"nothing": 2})
    summary = json.loads((tmp_path / "pairs.summary.json").read_text())
    assert summary["requests"] == 20
    assert sum(summary["malformed_replies"].values()) == 20
    assert 0 < summary["completion_tokens"] <= 20 * 16
    assert summary["prompt_tokens"] > 1000
