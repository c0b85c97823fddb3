"""What synth writes is what the other commands read: synth -> pretrain -> train -> compress -> ask,
on a tiny random backbone that learns nothing in two steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scripted_llm import Asked, Server, Town, competent, serving, write_towns

from clara_cli.commands import ask, compress, pretrain, synth, train
from clara_cli.config import AskConfig, CompressConfig, PretrainConfig, SynthConfig, TrainConfig

MACHINE: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
LEARN: dict[str, Any] = {**MACHINE, "batch_size": 2, "steps": 2, "max_length": 1024}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def believing(asked: Asked) -> str:
    return '{"correct": true}' if asked.task == "verify" else competent(asked)


def synthesised(server: Server, docs: Path, out: Path, kinds: str, report: Any) -> Path:
    settings: dict[str, Any] = {"llm": server.url, "llm_model": "m", "pool_size": 3, "top_k": 2}
    config = SynthConfig(documents=(str(docs),), kinds=kinds, out=out, **settings)
    assert synth.run(config, report).accepted > 0
    return out


def test_from_synth_to_ask(tiny_backbone: Path, tmp_path: Path, report: Any) -> None:
    docs = write_towns(tmp_path / "towns.jsonl", range(4))
    kinds = {"pairs": "simple,complex,paraphrase", "instruct": "instruct", "e2e": "e2e"}
    with serving(believing) as server:
        for name, kind in kinds.items():
            synthesised(server, docs, tmp_path / f"{name}.jsonl", kind, report)
    scp = PretrainConfig(
        pairs=(str(tmp_path / "pairs.jsonl"),),
        backbone=str(tiny_backbone),
        out=tmp_path / "scp",
        passage_tokens=256,
        ratios=(64,),
        lora_rank=2,
        **LEARN,
    )
    checkpoint = pretrain.run(scp, report).checkpoint
    for stage in ("instruct", "e2e"):
        config = TrainConfig(
            questions=(str(tmp_path / f"{stage}.jsonl"),),
            stage=stage,  # type: ignore[arg-type]
            init=checkpoint,
            out=tmp_path / stage,
            top_k=2,
            **LEARN,
        )
        result = train.run(config, report)
        assert (result.stage, result.steps) == (stage, 2)
        checkpoint = result.checkpoint
    corpus = tmp_path / "towns.clara"
    made = CompressConfig(inputs=(str(docs),), model=checkpoint, out=corpus, **MACHINE)
    assert compress.run(made, report).documents == 4
    question = AskConfig(
        question=Town(0).facts[0][0], corpus=(corpus,), max_new_tokens=4, top_k=2, **MACHINE
    )
    [answer] = list(ask.run(question, report))
    assert answer.sources[0].passage.document_id.startswith("town-")
