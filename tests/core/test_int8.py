"""Weights in eight bits: how near, how small, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.core import int8
from clara_cli.core.backbone import first_values_digest, load_backbone
from clara_cli.errors import ArtefactError

NANO = Path(int8.__file__).parent.parent / "models" / "nano" / "backbone"


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_a_weight_comes_back_within_a_step_of_its_row(seed, size):
    torch.manual_seed(seed)
    given_weights = {"w": torch.randn(5, 7) * size, "norm": torch.randn(7)}
    made = int8.shrink(given_weights)
    back = int8.expand(made, torch.float32)
    step = given_weights["w"].abs().amax(1, keepdim=True) / 127
    assert ((back["w"] - given_weights["w"]).abs() <= step * 0.57 + 1e-9).all()
    assert torch.equal(back["norm"], given_weights["norm"]) and back.keys() == given_weights.keys()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """nano's backbone as it ships, and in eight bits."""
    out = tmp_path_factory.mktemp("int8") / "backbone"
    base = load_backbone(str(NANO), torch.device("cpu"), torch.float32)
    before = [p.detach().clone() for p in base.model.parameters()]
    int8.save_backbone(base.model, out)
    base.tokenizer.save_pretrained(out)
    return out, base, before


def test_a_backbone_in_eight_bits_is_half_a_bfloat16_one_and_loads_as_saved(folders):
    out, saved, before = folders
    assert (out / int8.FILE).stat().st_size < 0.52 * (NANO / "model.safetensors").stat().st_size
    loaded = load_backbone(str(out), torch.device("cpu"), torch.float32)
    assert first_values_digest(loaded.model) == first_values_digest(saved.model)
    assert loaded.model.generation_config.eos_token_id == 2
    for p, q, r in zip(loaded.model.parameters(), saved.model.parameters(), before, strict=True):
        assert torch.equal(p, q) and not p.requires_grad
        assert (p - r).abs().max() <= r.abs().max() / 127
    half = load_backbone(str(out), torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_a_damaged_file_is_one_sentence(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "cut")
    path = tmp_path / "cut" / int8.FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtefactError, match="model.int8.safetensors"):
        load_backbone(str(tmp_path / "cut"), torch.device("cpu"), torch.float32)
    shutil.copytree(folders[0], tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 3')
    )
    with pytest.raises(ArtefactError, match="does not belong to"):
        load_backbone(str(tmp_path / "other"), torch.device("cpu"), torch.float32)
