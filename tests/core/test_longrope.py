"""LongRoPE (Phi-3): positions are encoded one way within the original window and another way beyond
it. Nothing is read or trained across that line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_kinds import try_kinds

from clara_cli.answering.reading import Prompt, generate, refuse_overflow
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import longrope_window, window
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.errors import UsageError
from clara_cli.training.runner import refuse_longer_rows

ORIGINAL, LONGEST = 128, 512
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0, 9.0]}
FORMS = {  # as Phi-3's files have it, and as transformers writes it today
    "published": {
        "rope_scaling": {"type": "longrope", **FACTORS},
        "original_max_position_embeddings": ORIGINAL,
        "rope_theta": 10_000.0,
    },
    "today's": {
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": {
            "rope_type": "longrope",
            "original_max_position_embeddings": ORIGINAL,
            "rope_theta": 10_000.0,
            **FACTORS,
        },
    },
}


@pytest.fixture(params=FORMS)
def model(request, tmp_path, monkeypatch) -> ClaraModel:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    folder = try_kinds.backbone("phi3", tmp_path / "backbone")
    file = Path(folder / "config.json")
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    config |= {"max_position_embeddings": LONGEST, "sliding_window": None, **FORMS[request.param]}
    file.write_text(json.dumps(config))
    base = LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
    memory = fresh_memory(4, base.table_VD, torch.Generator().manual_seed(0))
    prompter = Prompter(base.tokenizer, 64)
    return ClaraModel(base, prompter, LoraSettings(rank=2), ("generator",), *memory)


def test_the_window_is_the_original_one(model):
    assert longrope_window(model.causal_lm.config) == window(model.causal_lm) == ORIGINAL
    within = Prompt([5] * (ORIGINAL - 8), None, None)
    refuse_overflow(model, within, 8)
    with pytest.raises(UsageError, match=f"exceed the backbone's window of {ORIGINAL}"):
        refuse_overflow(model, within, 9)


def test_rows_longer_than_it_are_not_trained(model):
    refuse_longer_rows(model, ORIGINAL)
    with pytest.raises(UsageError, match="max_length is 129, the original window of .* is 128"):
        refuse_longer_rows(model, ORIGINAL + 1)


def test_within_it_prompts_are_answered_together_as_alone(model):
    seeded = torch.Generator().manual_seed(1)
    lengths = (ORIGINAL - 12, 20, 70)
    prompts = [
        Prompt(torch.randint(3, 259, (n,), generator=seeded).tolist(), None, None) for n in lengths
    ]
    together = generate(model, prompts, 12)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate(model, [prompt], 12)
        assert answer.ids == alone.ids
        assert answer.likelihood == pytest.approx(alone.likelihood, abs=1e-4)


def test_beyond_it_the_same_text_would_be_read_otherwise(model):
    """Why: what stands before the line is encoded by what comes after it."""
    ids = torch.randint(3, 259, (1, ORIGINAL + 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        longer = model.causal_lm(ids).logits[:, :ORIGINAL]
        alone = model.causal_lm(ids[:, :ORIGINAL]).logits
    assert (longer - alone).abs().max() > 0.1 * alone.abs().max()


def test_a_backbone_without_longrope_has_its_own_window(tiny_backbone):
    base = LoadOptions("", device="cpu", dtype="float32").open_backbone(str(tiny_backbone))
    assert longrope_window(base.model.config) is None and window(base.model) == 2048
