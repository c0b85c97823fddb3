"""Every kind of backbone that can be read: what LoRA adapts is in force and PEFT itself loads it,
and prompts answered together are answered as they are alone."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from helpers.tiny_kinds import READ, try_kinds
from peft import PeftModel

from clara_cli.answering.reading import Prompt, generate
from clara_cli.core.adapters import ALL_LINEAR, LoraSettings
from clara_cli.core.backbone import Backbone, load_backbone
from clara_cli.core.checkpoint import load, save
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.decode import RepetitionStop
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.lora_targets import (
    MAMBAS_OWN,
    READ_DIRECTLY,
    READ_DIRECTLY_ELSEWHERE,
    adapted_sentence,
    adapter_numbers,
    true_targets,
)
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.errors import ArtefactError, UsageError

ROLES = ("compressor", "generator")
IDS = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path_factory.getbasetemp() / "kinds-cache"))


def opened(kind: str, folder: Path) -> Backbone:
    options = LoadOptions("", device="cpu", dtype="float32")
    return options.open_backbone(str(try_kinds.backbone(kind, folder / "backbone")))


def model_of(base: Backbone, dropout: float = 0.1) -> ClaraModel:
    """Two roles with random LoRA weights."""
    seeded = torch.Generator().manual_seed(2)
    memory = fresh_memory(4, base.table_VD, seeded, base.word_scale)
    lora = true_targets(base.model, LoraSettings(4, 8, dropout))
    model = ClaraModel(base, Prompter(base.tokenizer, 64), lora, ROLES, *memory)
    with torch.no_grad():
        for role in ROLES:
            for parameter in model.role_parameters(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded) * 0.1)
    return model


def info_of(model: ClaraModel) -> CheckpointInfo:
    return CheckpointInfo(
        backbone="owner/tiny",
        revision=None,
        backbone_digest=model.backbone.digest,
        max_passage_tokens=64,
        memory_tokens=4,
        ratio=16,
        ratios=(16,),
        lora=model.lora,
        roles=ROLES,
    )


def logits_of(model: ClaraModel, role: str | None) -> torch.Tensor:
    with model.role(role), torch.no_grad():
        return model.causal_lm(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", READ)
def test_roles_are_in_force_and_peft_loads_them_with_nothing_lost(kind, tmp_path):
    base = opened(kind, tmp_path)
    bare = copy.deepcopy(base.model)
    model = model_of(base)
    generator = model.role_parameters("generator")
    assert adapter_numbers(bare, model.lora) == sum(p.numel() for p in generator.values())
    model.train_only(["generator"])
    with model.role("generator"):
        model.causal_lm(input_ids=IDS, use_cache=False).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.values())
    save(model, info_of(model), tmp_path / "checkpoint")
    expected = logits_of(model, "generator")
    assert not torch.allclose(expected, logits_of(model, None), rtol=0.01)
    again = load(LoadOptions(str(tmp_path / "checkpoint"), str(base.folder), "cpu", "float32"))
    assert torch.equal(logits_of(again.model, "generator"), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|not a key|not found|mismatch)")
        by_peft = PeftModel.from_pretrained(bare, tmp_path / "checkpoint" / "generator").eval()
    with torch.no_grad():
        assert torch.equal(by_peft(input_ids=IDS, use_cache=False).logits, expected)
    loaded = [name for name, _ in by_peft.named_parameters() if ".lora_" in name]
    assert len(loaded) == len(generator)


@pytest.mark.parametrize("kind", READ)
def test_prompts_answered_together_are_answered_as_alone(kind, tmp_path):
    """Longer and shorter than local layers see; memory in some."""
    model = model_of(opened(kind, tmp_path))
    prompter, seeded = model.prompter, torch.Generator().manual_seed(3)
    asked = ("Who?", "Who is mayor of Pinewick, and since when?", "Where is it?")
    rows = [prompter.prompt(prompter.answer_chat(q, n, 4)) for n, q in enumerate(asked)]
    memory_ND = torch.randn(12, model.hidden, generator=seeded)
    parts = (None, memory_ND[:4], memory_ND[4:])
    prompts = [Prompt(row, part, "generator") for row, part in zip(rows, parts, strict=True)]
    together = generate(model, prompts, 12)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate(model, [prompt], 12)
        assert answer.ids == alone.ids
        assert answer.likelihood == pytest.approx(alone.likelihood, abs=1e-4)
    ids = model.generate(rows, memory_ND, 12, stop=RepetitionStop())
    assert ids == [answer.ids for answer in together]


# --- what is adapted, and what is said of it ---


def test_layers_whose_weights_a_mixer_reads_directly_are_those_of_the_table():
    """LoRA adds to a layer's output; where transformers reads `self.layer.weight`, it is lost."""
    folder = Path(transformers.__file__).parent / "models"
    mixers = {}
    for file in sorted(folder.glob("*/modeling_*.py")):
        for part in re.split(r"^class ", file.read_text(encoding="utf-8"), flags=re.M)[1:]:
            if all(f"self.{own} = nn.Parameter" in part for own in MAMBAS_OWN):
                layers = re.findall(r"self\.(\w+) = nn\.Linear", part)
                read = {name for name in layers if f"self.{name}.weight" in part}
                mixers[part.split("(")[0]] = (set(layers), read)
    assert {"MambaMixer", "BambaMixer", "Zamba2MambaMixer", "JambaMambaMixer"} <= mixers.keys()
    for mixer, (layers, read) in mixers.items():
        assert layers & set(READ_DIRECTLY.get(mixer, READ_DIRECTLY_ELSEWHERE)) == read, mixer


def test_experts_have_no_dropout_and_everything_else_has(tmp_path):
    model = model_of(opened("qwen3_moe", tmp_path), dropout=0.5)
    rates = {
        name: module.lora_dropout["generator"]
        for name, module in model.peft.named_modules()
        if hasattr(module, "lora_dropout")
    }
    dropped = {name for name, module in rates.items() if getattr(module, "p", 0) == 0.5}
    assert {name.rpartition(".")[2] for name in dropped} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {name for name in rates if "experts" in name} == rates.keys() - dropped
    model.train_only(["generator"])
    model.train()
    assert not torch.equal(logits_of(model, "generator"), logits_of(model, "generator"))
    assert torch.equal(logits_of(model, "compressor"), logits_of(model, "compressor"))


@pytest.mark.parametrize(
    ("kind", "adapted", "left_out"),
    [
        ("qwen3_moe", ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"], ["mlp.gate.weight"]),
        ("bamba", [], ["mamba.out_proj"]),
        ("phimoe", ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"], ["mlp.router"]),
    ],
)
def test_what_is_left_out_is_named_in_clara_json_and_in_the_card(kind, adapted, left_out, tmp_path):
    """bamba cannot answer from embeddings; what LoRA leaves out of it is said all the same."""
    folder = try_kinds.backbone(kind, tmp_path / "backbone")
    base = load_backbone(str(folder), torch.device("cpu"), torch.float32)
    model = model_of(base)
    save(model, info_of(model), tmp_path / "checkpoint")
    recorded = json.loads((tmp_path / "checkpoint" / "clara.json").read_text())["lora"]
    assert (recorded["parameters"], recorded["left_out"]) == (adapted, left_out)
    written = (tmp_path / "checkpoint" / "README.md").read_text()
    assert f"left out: {', '.join(left_out)} |" in written
    assert all(f"{name}" in written for name in adapted)


def test_a_plain_backbone_has_every_linear_layer_adapted(tiny_backbone):
    base = load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)
    lora = true_targets(base.model, LoraSettings())
    assert lora == LoraSettings() and lora.targets == ALL_LINEAR
    assert adapted_sentence(lora) == "every linear layer but the head"


def test_a_checkpoint_that_names_no_parameters_is_read_as_it_was_trained(tmp_path):
    """Checkpoints made before had the linear layers of a mixture alone."""
    base = opened("qwen2_moe", tmp_path)
    seeded = torch.Generator().manual_seed(2)
    memory = fresh_memory(4, base.table_VD, seeded)
    plain = LoraSettings(4, 8, 0.1)
    model = ClaraModel(base, Prompter(base.tokenizer, 64), plain, ROLES, *memory)
    save(model, info_of(model), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "clara.json"
    recorded = json.loads(file.read_text())
    del recorded["lora"]["parameters"], recorded["lora"]["left_out"]
    file.write_text(json.dumps(recorded))
    again = load(LoadOptions(str(file.parent), str(base.folder), "cpu", "float32")).model
    assert again.lora == plain
    assert torch.equal(logits_of(again, "generator"), logits_of(model, "generator"))


def test_parameters_that_peft_and_clara_json_name_differently_are_refused(tmp_path):
    model = model_of(opened("mixtral", tmp_path))
    save(model, info_of(model), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "generator" / "adapter_config.json"
    file.write_text(file.read_text().replace("mlp.experts.down_proj", "mlp.experts.up_proj"))
    options = LoadOptions(str(tmp_path / "checkpoint"), str(model.backbone.folder), "cpu")
    with pytest.raises(ArtefactError, match="adapter_config.json: key 'target_parameters'"):
        load(options)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_neox", "gemma2"])
def test_every_number_format_opens_and_has_one_digest(kind, tmp_path):
    """Files may name weights otherwise than the model: experts one by one, or a tied head."""
    folder = str(try_kinds.backbone(kind, tmp_path / "backbone"))
    formats = ("float32", "bfloat16", "float16")
    bases = [LoadOptions("", device="cpu", dtype=name).open_backbone(folder) for name in formats]
    assert len({(base.digest, base.sample) for base in bases}) == 1
    assert bases[0].older_digest == bases[1].older_digest
    assert bases[2].older_digest in ("", bases[0].older_digest)


def test_quantised_weights_are_not_adapted_as_parameters(tmp_path):
    """Shared experts are linear layers, which `--load-in` packs."""
    base = opened("deepseek_v3", tmp_path)
    layer = base.model.get_submodule("model.layers.1.mlp.shared_experts.up_proj")
    packed = torch.zeros_like(layer.weight, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UsageError, match="--load-in: .*shared_experts.up_proj.weight is quantised"):
        model_of(base)
