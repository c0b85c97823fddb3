"""Checkpoints in the released format that are not what they should be: one clear error each, and
nothing of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import released_checkpoint

from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.errors import ArtefactError, ClaraError, UsageError


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_backbone) -> Path:
    return released_checkpoint.write(
        tiny_backbone, tmp_path_factory.mktemp("released") / "compression-16"
    )


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "compression-16"))


def refused(folder: Path, backbone: Path | str | None, ratio: int | None = None) -> ClaraError:
    """The error of opening a checkpoint; its hint says what to do."""
    with pytest.raises(ClaraError) as caught:
        named = None if backbone is None else str(backbone)
        load(LoadOptions(str(folder), named, device="cpu", dtype="float32", ratio=ratio))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_what_is_right_opens_with_every_role(good, tiny_backbone):
    model = load(LoadOptions(str(good), str(tiny_backbone), device="cpu", dtype="float32")).model
    assert set(model.roles) == {"compressor", "query_reasoner", "generator"}


class Evil:
    """Pickled, it would write a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("name", ["adapters.pth", "decoder_first_last_layers.pth"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_never_run(copy, tiny_backbone, tmp_path, name, how):
    target = tmp_path / "owned"
    if how == "torch":
        torch.save({"encoder_adapter": Evil(target)}, copy / name)
    else:
        (copy / name).write_bytes(pickle.dumps(Evil(target)))
    error = refused(copy, tiny_backbone)
    assert isinstance(error, ArtefactError)
    assert str(copy / name) in error.message and "refused or damaged" in error.message
    assert not target.exists()


@pytest.mark.parametrize("name", ["adapters.pth", "decoder_first_last_layers.pth"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "refused or damaged"),
        (b"PK\x03\x04 half a zip", "refused or damaged"),
        ("half", "refused or damaged"),
        ([torch.zeros(2)], "holds a list, not named tensors"),
        ({"model.embed_tokens.weight": 3, "encoder_adapter": {"a": 1}}, "is no tensor"),
        ({"model.embed_tokens.weight": torch.zeros(2), "encoder_adapter": 3}, ""),
    ],
)
def test_a_damaged_file_is_one_error(copy, tiny_backbone, name, content, expected):
    file = copy / name
    if content is None:
        file.unlink()
    elif content == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    if content is None and name == "adapters.pth":
        assert "not a checkpoint" in refused(copy, tiny_backbone).message
        return
    error = refused(copy, tiny_backbone)
    assert expected in error.message
    assert isinstance(error, ArtefactError)


def change(copy: Path, **fields: object) -> None:
    """Other values in config.json; ... removes one."""
    config = json.loads((copy / "config.json").read_text()) | fields
    kept = {key: value for key, value in config.items() if value is not ...}
    (copy / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("key", ["doc_max_length", "compr_rate", "lora_r"])
@pytest.mark.parametrize("value", [..., None, "16", 0, -1, True, 1.5])
def test_a_config_without_a_needed_field_is_one_error(copy, tiny_backbone, key, value):
    change(copy, **{key: value})
    error = refused(copy, tiny_backbone)
    shown = "missing" if value is ... else repr(value)
    assert f"{copy / 'config.json'}: key '{key}': {shown}" in error.message


def test_a_config_that_leaves_no_memory_is_one_error(copy, tiny_backbone):
    change(copy, compr_rate=65)
    assert "compr_rate is 65, more than doc_max_length, 64" in refused(copy, tiny_backbone).message


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{", "\udce9"])
def test_a_config_that_is_no_object_is_one_error(copy, tiny_backbone, text):
    (copy / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(copy / "config.json") in refused(copy, tiny_backbone).message


def test_without_its_config_the_folder_says_so(copy, tiny_backbone):
    (copy / "config.json").unlink()
    assert "config.json: no such file" in refused(copy, tiny_backbone).message


@pytest.mark.parametrize("shape", [{"hidden": 64}, {"layers": 3}, {"layers": 1}])
def test_a_backbone_of_another_shape_is_one_error(good, backbone_maker, tmp_path, shape):
    other = backbone_maker(tmp_path / "other", **shape)
    error = refused(good, other)
    assert isinstance(error, ArtefactError)
    if "hidden" in shape:
        assert "embedding table (266, 32)" in error.message and "(266, 64)" in error.message
        assert "--backbone" in error.hint
    else:
        assert "adapter" in error.message and "backbone" in error.message + error.hint


def test_a_backbone_that_nobody_knows_is_asked_for(good):
    error = refused(good, None)
    assert "a place on somebody else's machine" in error.message
    assert "/mnt/somewhere" in error.message and "--backbone" in error.hint


def test_the_published_backbone_is_known_by_its_folders_name():
    from clara_cli.core.released import find_backbone

    path = Path("x")
    for config in (
        {"decoder_model_name": "/mnt/a/b/Mistral-7B-Instruct-v0.2/"},
        {
            "decoder_model_name": "/mnt/c",
            "compr_base_model_name": "mistralai/Mistral-7B-Instruct-v0.2",
        },
    ):
        assert find_backbone(config, path) == "mistralai/Mistral-7B-Instruct-v0.2"


@pytest.mark.parametrize("kept", [("encoder_adapter",), ("encoder_adapter", "decoder_adapter"), ()])
def test_a_missing_adapter_is_a_missing_role(copy, tiny_backbone, kept):
    adapters = torch.load(copy / "adapters.pth", weights_only=True)
    torch.save({name: adapters[name] for name in kept}, copy / "adapters.pth")
    if not kept:
        assert "none of encoder_adapter" in refused(copy, tiny_backbone).message
        return
    loaded = load(LoadOptions(str(copy), str(tiny_backbone), device="cpu", dtype="float32"))
    assert len(loaded.model.roles) == len(kept)


def test_a_missing_or_misshapen_tensor_is_named(copy, tiny_backbone):
    adapters = torch.load(copy / "adapters.pth", weights_only=True)
    key = "model.layers.1.mlp.up_proj.lora_B.weight"
    for value, expected in ((None, "is missing"), (torch.zeros(3, 4), "is of shape (3, 4)")):
        changed = dict(adapters["decoder_adapter"])
        changed.pop(key)
        if value is not None:
            changed[key] = value
        torch.save({**adapters, "decoder_adapter": changed}, copy / "adapters.pth")
        error = refused(copy, tiny_backbone)
        assert key in error.message and expected in error.message
        assert "adapters.pth: decoder_adapter" in error.message


def test_a_copy_of_the_whole_repository_is_chosen_from_by_ratio(good, tiny_backbone, tmp_path):
    for ratio in (16, 128):
        shutil.copytree(good, tmp_path / "CLaRa-7B-E2E" / f"compression-{ratio}")
    parent, how = tmp_path / "CLaRa-7B-E2E", {"device": "cpu", "dtype": "float32"}
    loaded = load(LoadOptions(str(parent), str(tiny_backbone), ratio=16, **how))
    assert loaded.path == parent / "compression-16"
    for ratio, expected in ((32, "it serves 16, 128"), (None, "--ratio: 16, 128")):
        error = refused(parent, tiny_backbone, ratio)
        assert isinstance(error, UsageError) and expected in error.hint
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a checkpoint" in refused(empty, tiny_backbone).message
