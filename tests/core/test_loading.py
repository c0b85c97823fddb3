"""Nothing of a stranger's runs: a folder that names code of its own is refused before a library
sees it, without a question and without reading standard input."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clara_cli.bundled import BUNDLED
from clara_cli.cli.app import app
from clara_cli.core import loading
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import LoadOptions, load
from clara_cli.errors import ArtefactError

CPU = torch.device("cpu")
CODE = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model"}
TOKENIZER = {"AutoTokenizer": [None, "strange.Words"]}


class Unread:
    """A standard input that nobody may read."""

    def __getattr__(self, name: str):
        raise AssertionError(f"standard input was asked for {name}")


@pytest.fixture
def unread(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Unread())


@pytest.fixture
def folder(tmp_path, tiny_backbone) -> Path:
    """A backbone whose code, where anybody runs it, leaves a file behind."""
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    script = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (copy / "strange.py").write_text(script)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(script)
    return copy


def change(file: Path, **settings) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **settings}))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"auto_map": CODE}),
        ("config.json", {"auto_map": CODE, "model_type": "strange"}),
        ("config.json", {"auto_map": {"AutoConfig": "someone/else--strange.Config"}}),
        ("config.json", {"text_config": {"parts": [{"auto_map": CODE}]}}),
        ("config.json", {"custom_code": True}),
        ("config.json", {"custom_pipelines": {"text": {"impl": "strange.Pipeline"}}}),
        ("config.json", {"modeling_file": "strange.py"}),
        ("config.json", {"attn_implementation": "someone/strange-kernel"}),
        ("config.9.9.9.json", {"auto_map": CODE}),
        ("tokenizer_config.json", {"auto_map": TOKENIZER}),
        ("tokenizer_config.json", {"auto_map": ["strange.Words", None]}),
        ("generation_config.json", {"custom_generate": "./strange.py"}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "strange.Reader"}}),
    ],
)
def test_a_backbone_that_names_code_is_refused(folder, tmp_path, unread, file, settings):
    change(folder / file, **settings)
    with pytest.raises(ArtefactError, match=f"{file} names code of its own: ") as caught:
        load_backbone(str(folder), CPU, torch.float32)
    assert caught.value.hint
    assert not (tmp_path / "ran").exists()


def test_code_that_no_setting_names_is_never_run(folder, tmp_path, unread):
    base = load_backbone(str(folder), CPU, torch.float32)
    assert base.model.generate.__func__ is type(base.model).generate
    assert not (tmp_path / "ran").exists()


def test_the_hint_says_what_to_take_out_where_the_kind_is_known(folder):
    change(folder / "config.json", auto_map=CODE)
    with pytest.raises(ArtefactError) as caught:
        loading.load_config(folder, "backbone b")
    assert caught.value.message == (
        "backbone b: config.json names code of its own: auto_map = " + json.dumps(CODE)
    )
    assert "take auto_map out of config.json in a copy of the folder" in caught.value.hint
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    assert loading.load_config(folder, "backbone b").model_type == "llama"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"auto_map": {}}, "none is named"),
        ({"auto_map": None, "custom_generate": None}, "none is named"),
        ({"added_tokens_decoder": {"7": {"content": "main.py"}}}, "a token's text"),
        ({"attn_implementation": "sdpa"}, "transformers' own"),
        ({"auto_mapping": {"parent_library": "transformers.models.llama.modeling_llama"}}, "own"),
        ({"auto_mapping": None}, "none is named"),
    ],
)
def test_settings_that_name_no_code_pass(settings, kind):
    assert not list(loading.code_named(settings)), kind


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[" * 100_000, "not JSON"), ("{", "not JSON"), ('{"a": ' + "9" * 5000 + "}", "not JSON")],
)
def test_settings_that_cannot_be_read_are_one_error(folder, text, reason):
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtefactError, match=f"config.json: {reason}"):
        load_backbone(str(folder), CPU, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "x"])
def test_a_pipe_in_a_folder_is_refused_before_anybody_waits_for_it(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ArtefactError, match=f"^backbone b: {name}: a named pipe, not a file"):
        loading.refuse_code(folder, "backbone b")


@pytest.mark.parametrize("aim", ["nothing", "chat_template.jinja"])
def test_a_link_that_leads_nowhere_is_refused(folder, aim):
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(folder / aim)
    with pytest.raises(ArtefactError, match="^backbone b: chat_template.jinja: "):
        loading.refuse_code(folder, "backbone b")


@pytest.mark.parametrize("change_config", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, []])
def test_a_config_of_wrong_values_is_one_error(folder, change_config):
    file = folder / "config.json"
    if change_config:
        change(file, **change_config)
    else:
        file.write_text("[]")
    with pytest.raises(ArtefactError, match="^backbone "):
        load_backbone(str(folder), CPU, torch.float32)


@pytest.mark.parametrize("damage", ["{}", '{"model": {"type": "BPE"}}', "[]"])
def test_a_tokenizer_of_wrong_content_is_one_error(folder, damage):
    (folder / "tokenizer.json").write_text(damage)
    with pytest.raises(ArtefactError, match="^backbone "):
        load_backbone(str(folder), CPU, torch.float32)


def test_an_adapter_beside_a_backbone_is_refused(shared):
    """It would be switched off and yet counted as the backbone's."""
    with pytest.raises(ArtefactError, match="adapter_config.json: an adapter lies in the") as error:
        load_backbone(str(shared / "cases" / "backbones" / "v_adapter"), CPU, torch.float32)
    assert "merge it into the weights" in error.value.hint


@pytest.mark.parametrize("file", ["clara.json", "compressor/adapter_config.json"])
def test_a_checkpoint_that_names_code_is_refused(tmp_path, unread, file):
    copy = Path(shutil.copytree(BUNDLED["nano"], tmp_path / "copy"))
    named = {"auto_mapping": {"parent_library": "strange", "base_model_class": "Model"}}
    change(copy / file, **(named if "adapter" in file else {"auto_map": CODE}))
    with pytest.raises(ArtefactError, match="names code of its own"):
        load(LoadOptions(str(copy), device="cpu", dtype="float32"))


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "PAIRS", "--backbone", "FOLDER", "--steps", "1", "--out", "OUT"],
        ["pretrain", "PAIRS", "--backbone", "FOLDER", "--dry-run", "--out", "OUT"],
        ["compress", "PAIRS", "--model", "nano", "--backbone", "FOLDER", "--out", "OUT"],
        ["synth", "PAIRS", "--llm", "FOLDER", "--out", "OUT"],
        ["synth", "PAIRS", "--llm", "http://127.0.0.1:9/v1", "--llm-model", "m"]
        + ["--set", "tokenizer=FOLDER", "--out", "OUT"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_every_command_refuses_it_with_three_and_asks_nobody(folder, tmp_path, words, file):
    change(folder / file, auto_map=CODE if file == "config.json" else TOKENIZER)
    text = json.dumps({"id": "a", "text": "Ann lives in Rome."})
    pairs = json.dumps(
        {"data_type": "qa", "question": ["Who?"], "answers": ["Ann"], "docs": ["Ann."]}
    )
    data = tmp_path / "d.jsonl"
    data.write_text((pairs if words[0] == "pretrain" else text) + "\n")
    named = {"PAIRS": str(data), "FOLDER": str(folder), "OUT": str(tmp_path / "out")}
    words = [named.get(word, word).replace("=FOLDER", f"={folder}") for word in words]
    result = CliRunner().invoke(app, words, input="y\n" * 9)
    assert result.exit_code == 3, result.output
    assert "names code of its own" in result.output
    assert "[y/N]" not in result.output
    assert not (tmp_path / "ran").exists()


def test_a_plain_language_model_given_as_a_checkpoint_is_named_as_a_backbone(tiny_backbone):
    with pytest.raises(ArtefactError, match="not a checkpoint") as caught:
        load(LoadOptions(str(tiny_backbone), device="cpu"))
    assert "plain language model" in caught.value.hint and "--backbone" in caught.value.hint
