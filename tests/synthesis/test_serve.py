"""The whole loop against a real `transformers serve` process with a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.scripted_llm import write_towns
from helpers.transformers_server import transformers_serve

from clara_cli.commands import synth
from clara_cli.config import SynthConfig


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[str]:
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


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
