"""What PEFT's description of a role asks for is what is computed, or it is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest

from clara_cli.bundled import BUNDLED
from clara_cli.core.adapter_config import FILE, check_adapter
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.core.checkpoint_info import read_info
from clara_cli.errors import ArtefactError

NANO = BUNDLED["nano"]
LORA = read_info(NANO).lora


def described(folder, **changes):
    raw = json.loads((NANO / "generator" / FILE).read_text())
    (folder / FILE).write_text(json.dumps(raw | changes))
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("r", 8),
        ("lora_alpha", 1),
        ("r", True),
        ("something_new", {"on": 1}),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(tmp_path, key, value):
    with pytest.raises(ArtefactError, match=rf"{FILE}: key '{key}': "):
        check_adapter(described(tmp_path, **{key: value}), LORA)


@pytest.mark.parametrize("changes", [{}, {"rank_pattern": None}, {"something_new": False}])
def test_plain_lora_passes(tmp_path, changes):
    check_adapter(described(tmp_path, **changes), LORA)


def test_a_role_without_a_description_passes(tmp_path):
    check_adapter(tmp_path, LORA)


def test_loading_looks_at_every_role(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(NANO, copy)
    described(copy / "query_reasoner", use_rslora=True)
    with pytest.raises(ArtefactError, match="query_reasoner/adapter_config.json: key 'use_rslora'"):
        load(LoadOptions(str(copy), device="cpu", dtype="float32"))
