"""Digests of stored weights: the same however they are cut into files, another for any change."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clara_cli.core import digests, gguf
from clara_cli.core.backbone import load_backbone
from clara_cli.core.backbone_settings import read_settings, refuse_other_settings
from clara_cli.errors import ArtefactError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_backbone, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path_factory.mktemp("cache")))


def both(folder: Path) -> tuple[str, str]:
    return digests.backbone_digest(folder, fresh=True), digests.backbone_sample(folder)


def test_a_digest_does_not_depend_on_how_weights_are_cut_into_files(tiny_backbone, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert both(tmp_path) == both(tiny_backbone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_digest_does_not_depend_on_what_weights_are_loaded_in(tiny_backbone, dtype):
    base = load_backbone(str(tiny_backbone), CPU, dtype)
    assert (base.digest, base.sample) == both(tiny_backbone)
    wanted = load_backbone(str(tiny_backbone), CPU, torch.float32).older_digest
    assert base.older_digest == wanted


def test_other_number_formats_and_names_are_other_weights(folder):
    before = both(folder)
    file = folder / digests.WHOLE
    tensors = load_file(file)
    save_file({k: t.to(torch.bfloat16) for k, t in tensors.items()}, file)
    assert all(a != b for a, b in zip(both(folder), before, strict=True))
    renamed = {f"{k}s" if k.endswith("norm.weight") else k: t for k, t in tensors.items()}
    save_file(renamed, file)
    assert all(a != b for a, b in zip(both(folder), before, strict=True))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_changed_byte_changes_the_full_digest(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    save_file({"a": values, "b": values.half()}, file)
    raw = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    before = digests.full_digest([file])
    place = data.draw(st.integers(8 + length, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    assert digests.full_digest([file]) != before


def test_a_sample_reads_the_ends_and_the_middle_of_every_tensor(tmp_path):
    file = tmp_path / "model.safetensors"
    size = 100_000
    for name in ("a", "b"):
        for place in (0, size // 2, size - 1):
            plain = {"a": torch.zeros(size), "b": torch.zeros(size)}
            save_file(plain, file)
            before = digests.sample_digest([file])
            plain[name][max(0, place - 7000) : place + 1] = 1  # windows lie that far apart
            save_file(plain, file)
            assert digests.sample_digest([file]) != before, (name, place)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:4],
        lambda raw: raw[:100],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: struct.pack("<Q", 2**62) + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1)[:-1],
        lambda raw: raw.replace(b'"shape":[', b'"shape":{', 1),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64), "b": torch.ones(3, 5)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtefactError, match=r"model\.safetensors: damaged: "):
        digests.full_digest([file])


def test_a_tensor_in_two_files_and_files_elsewhere_are_refused(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.zeros(4)}, tmp_path / "model-2.safetensors")
    with pytest.raises(ArtefactError, match=r"a is in model-1\.safetensors too"):
        digests.backbone_digest(tmp_path)
    named = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / digests.INDEX).write_text(json.dumps(named))
    with pytest.raises(ArtefactError, match="is not beside it"):
        digests.backbone_digest(tmp_path)


def test_a_digest_is_computed_once_for_files_of_one_identity(folder, monkeypatch):
    computed = []
    original = digests.full_digest
    monkeypatch.setattr(digests, "full_digest", lambda files: computed.append(1) or original(files))
    first = digests.backbone_digest(folder)
    assert digests.backbone_digest(folder) == first and len(computed) == 1
    assert digests.backbone_digest(folder, fresh=True) == first and len(computed) == 2
    file = folder / digests.WHOLE
    before, raw = file.stat(), bytearray(file.read_bytes())
    raw[-1] ^= 1
    with file.open("r+b") as stream:  # in place, the same size and time of change
        stream.write(raw)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.backbone_digest(folder) != first and len(computed) == 3
    kept = digests.known_file([file])
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_cache_has_the_digest_of_its_gguf_file(folder):
    place = gguf.backbones_folder() / ("ab" * 32)
    place.parent.mkdir(parents=True)
    shutil.copytree(folder, place)
    (place / gguf.NOTE).write_text("{}")
    assert both(place) == ("ab" * 32, "ab" * 32)
    (folder / gguf.NOTE).write_text(json.dumps({"sha256": "ab" * 32}))  # a stranger's claim
    assert both(folder) != both(place)


# --- settings ---


def change(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_parameters is"),
        ({"rope_parameters": None, "rope_theta": 5e5}, "rope_parameters is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"model_type": "mistral"}, "is "),
    ],
)
def test_a_setting_that_changes_memory_is_named(folder, changes, key):
    recorded = read_settings(folder)
    change(folder, **changes)
    with pytest.raises(ArtefactError, match=key):
        refuse_other_settings(recorded, folder, "backbone b")


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "9.9"},
        {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        {"_name_or_path": "elsewhere", "use_cache": False},
        {"rope_parameters": None, "rope_theta": 10000.0},  # as older versions wrote it
        {"head_dim": None},  # what follows from other settings may be left out
        {"pretraining_tp": 1, "attention_bias": False},
    ],
)
def test_settings_that_mean_the_same_pass(folder, changes):
    recorded = read_settings(folder)
    change(folder, **changes)
    refuse_other_settings(recorded, folder, "backbone b")
