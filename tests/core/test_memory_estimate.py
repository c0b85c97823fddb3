"""The memory computed from configs is what a loaded checkpoint takes; so is the released
checkpoints' table of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from clara_cli.core import memory_estimate
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import LoadOptions
from clara_cli.core.memory_estimate import Plan, need
from clara_cli.core.model import ROLES, ClaraModel, fresh_memory
from clara_cli.core.placement import BackbonePlacement
from clara_cli.core.prompts import Prompter
from clara_cli.core.random_backbones import SHAPES

ROOT = Path(__file__).parent.parent.parent
HAVE = importlib.util.find_spec("bitsandbytes") is not None
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory, backbone_maker) -> Path:
    made = tmp_path_factory.mktemp("footprint")
    return backbone_maker(made, hidden=64, tie_word_embeddings=request.param)


def model_of(folder: Path, dtype: torch.dtype, load_in: str | None = None) -> ClaraModel:
    held = BackbonePlacement(load_in)
    base = load_backbone(str(folder), CPU, dtype, None, held.arguments(CPU, dtype))
    memory = fresh_memory(4, base.model.get_input_embeddings().weight, torch.Generator())
    return ClaraModel(base, Prompter(base.tokenizer, 64), LoraSettings(rank=4), ROLES, *memory)


def plan_of(folder: Path) -> Plan:
    return Plan(str(folder), None, ROLES, LoraSettings(rank=4), 4, 64)


def held_bytes(parameters) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_adapters_and_memory_tokens_are_what_a_loaded_model_holds(folder, dtype):
    model = model_of(folder, dtype)
    plan = plan_of(folder)
    found = need(memory_estimate.plan_model(plan), plan, dtype)
    roles = [p for role in ROLES for p in model.role_parameters(role).values()]
    everything = held_bytes(model.parameters())
    assert found.adapters == held_bytes(roles)
    assert found.memory_tokens == held_bytes([model.memory_MD, model.markers_2D])
    assert found.weights == everything - found.adapters - found.memory_tokens
    assert found.bytes == everything
    assert found.parameters == model.causal_lm.num_parameters() - sum(p.numel() for p in roles)


@pytest.mark.skipif(not HAVE, reason="bitsandbytes is not installed (extra quant)")
@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_quantised_weights_are_what_bitsandbytes_holds(folder, load_in):
    model = model_of(folder, torch.float32, load_in)
    plan = plan_of(folder)
    empty = memory_estimate.plan_model(plan)
    found = need(empty, plan, torch.float32, load_in)
    held = 0
    for name, parameter in model.causal_lm.named_parameters():
        if any(f".{role}." in name for role in ROLES):
            continue
        held += parameter.numel() * parameter.element_size()
        if load_in == "8bit" and getattr(parameter, "SCB", None) is not None:
            held += held_bytes([parameter.SCB])
        if load_in == "4bit" and getattr(parameter, "quant_state", None) is not None:
            state = parameter.quant_state
            held += held_bytes([state.absmax, state.state2.absmax])
    assert found.weights == held
    assert found.weights < need(empty, plan, torch.bfloat16).weights


def test_the_cache_is_what_generation_keeps(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        cache = model(torch.ones(1, 37, dtype=torch.long), use_cache=True).past_key_values
    held = sum(held_bytes([layer.keys, layer.values]) for layer in cache.layers)
    plan = plan_of(folder)
    assert need(model, plan, torch.float32, positions=37).cache == held


def test_training_is_the_gradients_and_the_optimisers_state(folder):
    model = model_of(folder, torch.float32)
    model.train_only(("query_reasoner", "generator"), memory=True)
    trained = list(model.trained_parameters().values())
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = held_bytes(p.grad for p in trained)
    held += sum(held_bytes([s["exp_avg"], s["exp_avg_sq"]]) for s in optimizer.state.values())
    plan = plan_of(folder)
    roles = ("query_reasoner", "generator")
    found = need(
        memory_estimate.plan_model(plan), plan, torch.float32, trained=roles, trains_memory=True
    )
    assert found.training == held


# --- the table of released checkpoints ---

RELEASED = {"Base": ROLES[:1] + ROLES[2:], "Instruct": ROLES[:1] + ROLES[2:], "E2E": ROLES}
COLUMNS: list[tuple[torch.dtype, str | None]] = [
    (torch.bfloat16, None),
    (torch.bfloat16, "8bit"),
    (torch.bfloat16, "4bit"),
]


def mistral() -> object:
    kind, settings = SHAPES["mistral-7b"]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


def test_the_table_of_released_checkpoints_is_what_the_code_computes():
    """An answer over five passages: 5 x (16 + 1) positions of memory at ratio 16, a question of at
    most 256 tokens, 128 new ones."""
    page = (ROOT / "recipes/released/README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `apple/CLaRa-7B-(\w+)` \| ([^|]+) \| ([^|]+) \|(.+?)\|([^|]+)\|$", page, re.M
    )
    assert [row[0] for row in rows] == list(RELEASED)
    causal_lm = mistral()
    for name, ratios, _, figures, licence in rows:
        assert ratios.strip() == "16, 128"
        assert ("research" in licence) == (name != "E2E")
        shown = [float(figure) for figure in re.findall(r"[\d.]+", figures)]
        for memory_tokens in (16, 2):
            plan = Plan("mistral", None, RELEASED[name], LoraSettings(), memory_tokens, 256)
            positions = 5 * (memory_tokens + 1) + 256 + 128
            found = [
                need(causal_lm, plan, dtype, load_in, positions).bytes for dtype, load_in in COLUMNS
            ]
            assert [round(count / 1e9, 1) for count in found] == shown


def test_one_adapter_has_the_published_number_of_parameters():
    numbers = memory_estimate.adapter_numbers(mistral(), LoraSettings(rank=16))
    assert numbers == 41_943_040  # the released training log


def test_plans_say_what_configs_say(shared):
    folder = shared / "reference" / "fixtures" / "mistral_256_32"
    backbone = str(shared / "reference" / "backbones" / "mistral-tiny")
    plans = [
        memory_estimate.read_plan(LoadOptions(str(folder / f"ckpt_{stage}"), backbone))
        for stage in ("stage1", "stage1_2", "stage2")
    ]
    assert [len(plan.roles) for plan in plans] == [2, 2, 3]
    plan = plans[2]
    assert (plan.lora.rank, plan.memory_tokens, plan.passage_tokens) == (16, 8, 256)
    assert memory_estimate.read_plan(LoadOptions("nano", ratio=4)).memory_tokens == 64
