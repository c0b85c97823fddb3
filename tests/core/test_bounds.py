"""Numbers, names and templates of a stranger's files are bounded before they are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import backbone_templates
from jinja2.exceptions import TemplateError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from clara_cli.bundled import BUNDLED
from clara_cli.core import chat_templates, loading
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import read_info
from clara_cli.core.prompts import Prompter
from clara_cli.core.released import read_config
from clara_cli.errors import ArtefactError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_backbone, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))


def change(file: Path, **settings) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.fixture
def unmade(monkeypatch):
    """Making a model fails: what is refused is refused before."""

    def made(*_, **__):
        raise AssertionError("a model was made")

    monkeypatch.setattr(loading, "new_model", made)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", made)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", made)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**9},
        {"vocab_size": -1},
        {"intermediate_size": 1e12},
        {"text_config": {"num_hidden_layers": 10**6}},
        {"max_position_embeddings": 10**15},
        {"num_local_experts": 10**7},
    ],
)
def test_a_config_of_impossible_numbers_is_refused_first(folder, unmade, settings):
    change(folder / "config.json", **settings)
    with pytest.raises(ArtefactError, match=r"config\.json: .* is .*, the most is "):
        load_backbone(str(folder), CPU, torch.float32)


def test_a_config_larger_than_its_files_is_refused_before_memory_is_taken(folder, monkeypatch):
    def made(*_, **__):
        raise AssertionError("weights were made")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", made)
    change(folder / "config.json", num_hidden_layers=900)
    with pytest.raises(ArtefactError, match=r"config\.json makes .* numbers, its files have"):
        load_backbone(str(folder), CPU, torch.float32)


def test_weights_that_are_not_in_the_files_are_never_made_up(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"1 weights are not in its files: .*up_proj"):
        load_backbone(str(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    "change_info",
    [
        lambda told: told["lora"].update(rank=10**9),
        lambda told: told["lora"].update(alpha=10**12),
        lambda told: told["lora"].update(dropout=2.0),
        lambda told: told["lora"].update(targets=".*(q|v)_proj"),
        lambda told: told["lora"].update(targets=["q_proj", ".*"]),
        lambda told: told["lora"].update(targets=[]),
        lambda told: told["lora"].update(targets=["q_proj"] * 5000),
        lambda told: told.update(memory_tokens=10**9),
        lambda told: told.update(max_passage_tokens=10**12),
        lambda told: told.update(table_rows=10**10),
        lambda told: told.update(ratios=[4] * 10**4),
        lambda told: told["markers"].update(memory=[]),
        lambda told: told["markers"].update(memory=["<m>"] * 200_000),
        lambda told: told["markers"].update(encode="x" * 10**5),
    ],
)
def test_a_clara_json_of_impossible_values_is_refused(tmp_path, change_info):
    told = json.loads((BUNDLED["nano"] / "clara.json").read_text())
    change_info(told)
    (tmp_path / "clara.json").write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match=r"clara\.json: key '"):
        read_info(tmp_path)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "layers.0.mlp.up_proj"]])
def test_targets_are_names_or_the_word_for_all(tmp_path, targets):
    told = json.loads((BUNDLED["nano"] / "clara.json").read_text())
    told["lora"]["targets"] = targets
    (tmp_path / "clara.json").write_text(json.dumps(told))
    wanted = targets if isinstance(targets, str) else tuple(targets)
    assert read_info(tmp_path).lora.targets == wanted


@pytest.mark.parametrize(
    "settings",
    [{"lora_r": 10**9}, {"doc_max_length": 10**9}, {"doc_max_length": 900_000, "compr_rate": 1}],
)
def test_a_released_config_of_impossible_numbers_is_refused(tmp_path, settings):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"doc_max_length": 256, "compr_rate": 16, "lora_r": 16, **settings}))
    with pytest.raises(ArtefactError, match=r"config\.json: "):
        read_config(file)


# --- chat templates ---


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone):
    return AutoTokenizer.from_pretrained(tiny_backbone)


SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(s='x' * 1000) %}{% for i in range(60) %}" + (
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
)


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        (SLOW, "takes more than 2 seconds of processor time"),
        (DOUBLED, "takes more than 512 MiB"),
        ("{{ 'x' * 3000000 }}", "makes more than 1,000,0"),
        ("{{ 'x' * 10 ** 12 }}", "takes more than 512 MiB"),
    ],
)
def test_a_template_renders_within_bounds_of_time_and_size(tokenizer, template, limit):
    tokenizer.chat_template = template
    with pytest.raises(ArtefactError, match=limit) as caught:
        chat_templates.render_chat(tokenizer, [{"role": "user", "content": "Who?"}])
    assert caught.value.hint
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # and the next one renders
    assert chat_templates.render_chat(tokenizer, [{"role": "user", "content": "Who?"}]) == "Who?"


@pytest.mark.parametrize("name", backbone_templates.TEMPLATES)
@pytest.mark.parametrize("ending", [[], [{"role": "assistant", "content": "Nora."}]])
def test_a_chat_is_what_transformers_makes_of_it(tokenizer, name, ending):
    tokenizer.chat_template = backbone_templates.TEMPLATES[name][0]
    if tokenizer.chat_template is None:
        return
    chat = [{"role": "user", "content": "Who is mayor\n of Pinewick \u4e16?"}, *ending]
    options = {"add_generation_prompt": not ending, "enable_thinking": False}
    wanted = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    assert chat_templates.render_chat(tokenizer, chat, **options) == wanted


def test_what_templates_use_beyond_plain_text_is_there(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.index0 == 9 %}{% break %}{% endif %}"
        "{{ m | tojson }}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
        "{{ bos_token }}{{ raise_exception is defined }}"
    )
    chat = [{"role": "user", "content": "a <b> é"}]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False)
    assert chat_templates.render_chat(tokenizer, chat) == wanted
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(TemplateError, match="no system"):
        chat_templates.render_chat(tokenizer, chat)


def test_the_date_in_a_template_is_the_same_on_every_day(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
    chat = [{"role": "user", "content": "Who?"}]
    assert chat_templates.render_chat(tokenizer, chat) == "26 Jul 2024"


def test_several_templates_without_a_default_are_one_error(tokenizer):
    tokenizer.chat_template = {"rag": "a", "tool": "b"}
    with pytest.raises(ArtefactError, match="none of them the default: rag, tool"):
        chat_templates.chat_template(tokenizer)
    tokenizer.chat_template = {"rag": "a", "default": "b"}
    assert chat_templates.chat_template(tokenizer) == "b"


@pytest.mark.parametrize("name", backbone_templates.TEMPLATES)
def test_templates_that_keep_what_they_are_given_pass_the_check(tiny_backbone, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = backbone_templates.TEMPLATES[name][0]
    Prompter(tokenizer, 64).check_template("backbone b")


CONTENT = "{{ m['content'] }}"


@pytest.mark.parametrize(
    ("written", "times"),
    [
        ("", "not at all"),
        ("{{ m['content'] | e }}", "not at all, or not as it is"),
        ("{{ m['content'] | upper }}", "not at all"),
        ("{{ m['content'][:900] }}", "not at all"),
        ("{{ m['content'] | tojson }}", "not at all"),
        ("{{ m['content'] | replace('\\n', ' ') }}", "not at all"),
        (CONTENT * 2, "several times"),
        ("{% for part in m['content'] %}{{ part['text'] }}{% endfor %}", "not at all"),
    ],
)
def test_a_template_that_changes_what_it_is_given_is_refused(tiny_backbone, written, times):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = backbone_templates.CHATML.replace(CONTENT, written)
    with pytest.raises(ArtefactError, match=f"backbone b: its chat template writes .* {times}"):
        Prompter(tokenizer, 64).check_template("backbone b")
