"""Backbones quantised by bitsandbytes, or spread over devices and disk: the same checkpoint."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clara_cli.core import backbone, int8, placement
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.placement import BackbonePlacement
from clara_cli.errors import UsageError

HAVE = importlib.util.find_spec("bitsandbytes") is not None
quantised = pytest.mark.skipif(not HAVE, reason="bitsandbytes is not installed (extra quant)")
ROWS = [[1, 70, 80, 90, 2], [1, 75, 2]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, backbone_maker) -> Path:
    """A native checkpoint with fresh roles whose adapters do something; its backbone is as wide as
    a block of four-bit numbers."""
    tiny_backbone = backbone_maker(tmp_path_factory.mktemp("wide"), hidden=64)
    from clara_cli.core.adapters import LoraSettings
    from clara_cli.core.backbone import load_backbone
    from clara_cli.core.checkpoint import save
    from clara_cli.core.checkpoint_info import CheckpointInfo
    from clara_cli.core.model import ROLES, ClaraModel, fresh_memory
    from clara_cli.core.prompts import Prompter

    base = load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)
    lora = LoraSettings(rank=4, alpha=8)
    seeded = torch.Generator().manual_seed(1)
    memory = fresh_memory(4, base.model.get_input_embeddings().weight, seeded)
    model = ClaraModel(base, Prompter(base.tokenizer, 64), lora, ROLES, *memory)
    with torch.no_grad():
        for role in ROLES:
            for parameter in model.role_parameters(role).values():
                parameter.normal_(0, 0.1, generator=seeded)
    info = CheckpointInfo(str(tiny_backbone), None, base.digest, 64, 4, 16, (16,), lora, ROLES)
    folder = tmp_path_factory.mktemp("held") / "checkpoint"
    save(model, info, folder)
    return folder


def open_held(checkpoint: Path, **held: str):
    return load(
        LoadOptions(
            str(checkpoint), device="cpu", dtype="float32", placement=BackbonePlacement(**held)
        )
    ).model


def results(model) -> tuple[torch.Tensor, list[list[int]], float]:
    """Memory, greedy ids over it and a loss: what every command computes."""
    with torch.no_grad():
        memory_BMD = model.encode(ROWS, "compressor", 4).memory_BMD
        prompts = [model.prompter.prompt(model.prompter.answer_chat("Who?", 1, 4))] * 2
        ids = model.generate(prompts, memory_BMD.flatten(0, 1), 5)
        nll = model.nll([[1, 70, 71, 72]], [[-100, 70, 71, 72]], torch.empty(0, 64)).item()
    return memory_BMD, ids, nll


# --- what identifies a backbone ---


def test_the_digest_of_the_files_is_that_of_the_weights(tiny_backbone, shared):
    folders = [tiny_backbone, *sorted((shared / "reference" / "backbones").iterdir())]
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert backbone.stored_first_values_digest(folder) == backbone.first_values_digest(model)


def test_the_digest_reads_every_shard(tiny_backbone, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert backbone.stored_first_values_digest(tmp_path) == backbone.first_values_digest(model)


# --- spread ---


def map_file(folder: Path, **places) -> str:
    """A map of the tiny Llama with its layers elsewhere."""
    named = {
        **{"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"},
        **{"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
    }
    named |= {name.replace("__", "."): place for name, place in places.items()}
    file = folder / "map.json"
    file.write_text(json.dumps(named))
    return str(file)


@pytest.mark.parametrize("kind", ["auto", "sequential", "disk", "all on disk"])
def test_spread_over_devices_and_disk_it_computes_the_same(checkpoint, tmp_path, kind):
    name = kind
    if kind == "disk":
        name = map_file(tmp_path, model__layers__1="disk")
    elif kind == "all on disk":
        away = ("model__embed_tokens", "model__layers__0", "model__layers__1", "lm_head")
        name = map_file(tmp_path, **dict.fromkeys(away, "disk"))
    model = open_held(checkpoint, device_map=name)
    on_disk = sum(p.is_meta for p in model.peft.parameters())
    assert bool(on_disk) == ("disk" in kind)
    memory, ids, nll = results(open_held(checkpoint))
    found = results(model)
    assert torch.equal(found[0], memory) and found[1:] == (ids, nll)


def test_what_is_off_the_devices_is_not_trained(checkpoint, tmp_path):
    model = open_held(checkpoint, device_map=map_file(tmp_path, model__layers__1="disk"))
    with pytest.raises(UsageError, match=r"leaves \d+ of \d+ adapter weights off the GPUs"):
        placement.refuse_offloaded(model)
    placement.refuse_offloaded(open_held(checkpoint, device_map="auto"))


def test_a_spread_model_is_not_merged_and_reads_in_its_one_role(checkpoint, tmp_path):
    model = open_held(checkpoint, device_map=map_file(tmp_path, model__layers__1="disk"))
    memory = results(open_held(checkpoint))[0]
    model.merge("compressor")
    assert model.roles == ("compressor",)
    with torch.no_grad():
        assert torch.equal(model.encode(ROWS, "compressor", 4).memory_BMD, memory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("{}", "not an object"),
        ('{"": "gpu"}', "'' is on 'gpu'"),
        ('{"": true}', "'' is on True"),
        ('{"": 63}', r"'' is on GPU 63, there are \d"),
        ('{"model": "cpu"}', "lm_head"),
        ('{"nothing": "cpu"}', "model.embed_tokens"),
    ],
)
def test_a_map_that_cannot_be_is_one_error(checkpoint, tmp_path, text, message):
    file = tmp_path / "map.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        open_held(checkpoint, device_map=str(file))
    assert str(caught.value).startswith("--device-map") and caught.value.hint


# --- quantised ---


def test_without_the_extra_the_error_names_it(checkpoint, monkeypatch):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--load-in 4bit needs bitsandbytes") as caught:
        open_held(checkpoint, load_in="4bit")
    assert "[quant]" in caught.value.hint


def test_a_device_that_it_does_not_know_is_one_error(checkpoint, monkeypatch):
    fake = types.SimpleNamespace(supported_torch_devices={"cuda", "xpu"})
    monkeypatch.setattr(placement, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    with pytest.raises(UsageError, match="does not work here: .* computes on cuda, xpu only") as e:
        open_held(checkpoint, load_in="8bit")
    assert "[quant]" in e.value.hint


def test_a_broken_installation_is_one_error(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "bitsandbytes.py").write_text("raise RuntimeError('no libcuda\\nat all')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(UsageError, match="does not work here: no libcuda$"):
        open_held(checkpoint, load_in="8bit")


def test_a_backbone_in_eight_bits_of_its_own_is_refused(checkpoint, tiny_backbone, tmp_path):
    base = backbone.load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)
    int8.save_backbone(base.model, tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="stored in eight bits of its own"):
        how = (torch.device("cpu"), torch.float32, None, {"quantization_config": None})
        backbone.load_backbone(str(tmp_path), *how)


def test_quantised_layers_do_not_go_to_disk(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(placement, "check_bitsandbytes", lambda *_: None)
    with pytest.raises(UsageError, match="quantised layers stay on the GPUs"):
        places = map_file(tmp_path, model__layers__1="disk")
        open_held(checkpoint, load_in="8bit", device_map=places)


@quantised
@pytest.mark.parametrize(("load_in", "bound"), [("8bit", 0.05), ("4bit", 0.4)])
def test_quantised_it_is_the_same_checkpoint_and_computes_nearly_the_same(
    checkpoint, load_in, bound
):
    whole, model = open_held(checkpoint), open_held(checkpoint, load_in=load_in)
    names = {type(module).__name__ for module in model.modules()}
    assert any(load_in.startswith(n[0]) and "bit" in n for n in ("8bit", "4bit")) and any(
        "8bit" in name or "4bit" in name for name in names
    )
    memory, found = results(whole)[0], results(model)[0]
    error = (found - memory).norm() / memory.norm()
    assert 0 < error < bound


@quantised
@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_quantised_its_roles_train(checkpoint, load_in):
    model = open_held(checkpoint, load_in=load_in)
    model.train_only(("generator",))
    model.train()
    model.nll([[1, 70, 71, 72]], [[-100, 70, 71, 72]], torch.empty(0, 64)).backward()
    for role in model.roles:
        total = sum(
            p.grad.abs().sum().item()
            for p in model.role_parameters(role).values()
            if p.grad is not None
        )
        assert (total > 0) == (role == "generator")
