"""Models that read images too: their text model is the backbone, or they are refused."""

from __future__ import annotations

import pytest
import torch
from helpers.whole_models import MODELS, saved

from clara_cli.core.load_options import LoadOptions
from clara_cli.errors import ArtefactError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen2_5_vl"])
def test_its_text_model_is_the_backbone(name, tmp_path):
    whole, folder = saved(name, tmp_path / "backbone")
    options = LoadOptions("", device="cpu", dtype="float32")
    base = options.open_backbone(str(folder))
    assert type(base.model).__name__.endswith("ForCausalLM")
    assert not any("vision" in key for key, _ in base.model.named_parameters())
    ids = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(1))
    text = whole.language_model if name == "llama4" else whole  # it names outputs it has not
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, text(input_ids=ids).logits)
    assert base.digest and base.settings["model_type"] == name
    assert options.open_backbone(str(folder)).probe_seconds is None


def test_one_without_a_text_model_is_refused(tmp_path):
    _, folder = saved("qwen2_5_vl", tmp_path / "backbone")
    with pytest.raises(ArtefactError, match="has no text model of the kind 'qwen2_5_vl'") as caught:
        LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
    assert caught.value.hint


def test_a_weight_of_its_text_model_that_is_missing_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    _, folder = saved("gemma3", tmp_path / "backbone")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    (name,) = (key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match="1 weights are not in its files: model.layers.1.mlp"):
        LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
