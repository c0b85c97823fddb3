"""A checkpoint of random roles and a few questions, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.mayors import MAYORS, question, write

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import CheckpointInfo, save
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter

ROLES = ("compressor", "query_reasoner", "generator")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64-byte passages, ratios 4 and 16, every role with its own random weights."""
    base = load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)
    seeded = torch.Generator().manual_seed(1)
    memory, markers = fresh_memory(16, base.model.get_input_embeddings().weight, seeded)
    lora = LoraSettings(4, 8, 0.0)
    model = ClaraModel(base, Prompter(base.tokenizer, 64), lora, ROLES, memory, markers)
    with torch.no_grad():
        for role in ROLES:
            for parameter in model.role_parameters(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.1)
    info = CheckpointInfo(
        backbone=str(tiny_backbone),
        revision=None,
        backbone_digest=base.digest,
        max_passage_tokens=64,
        memory_tokens=16,
        ratio=16,
        ratios=(4, 16),
        lora=lora,
        roles=ROLES,
    )
    path = tmp_path_factory.mktemp("bench") / "checkpoint"
    save(model, info, path)
    return path


@pytest.fixture
def mayors(tmp_path: Path) -> Path:
    """Six questions, a pool of three paragraphs each."""
    return write(tmp_path / "mayors.jsonl", [question(n) for n in range(len(MAYORS))])
