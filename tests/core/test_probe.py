"""Backbones tried once when they are loaded: right, or refused before anybody trains on them; and
"greedy" means the argmax, whatever a backbone's own settings for writing say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_kinds import try_kinds
from transformers import AutoTokenizer, GenerationConfig

from clara_cli.core import probe as probes
from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import load_backbone
from clara_cli.core.decode import Confidence, log_likelihoods
from clara_cli.core.load_options import LoadOptions
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter
from clara_cli.errors import ArtefactError

CPU = torch.device("cpu")
SETTINGS = {
    "repetition": {"repetition_penalty": 1.3, "encoder_repetition_penalty": 1.2},
    "n-grams": {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2},
    "biases": {"sequence_bias": [[[40], 9.0]]},
    "bad words": {"bad_words_ids": [[40], [50, 51]]},
    "suppressed": {"suppress_tokens": list(range(3, 120)), "begin_suppress_tokens": [200]},
    "forced": {"forced_bos_token_id": 70, "forced_eos_token_id": 2},
    "lengths": {"min_length": 50, "min_new_tokens": 9, "max_length": 3, "max_new_tokens": 2},
    "length penalties": {"length_penalty": 2.0, "exponential_decay_length_penalty": [1, 2.5]},
    "time": {"max_time": 0.0},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.4, "bias": 5.0}},
    "stop strings": {"stop_strings": ["a", "e", "o", "the"]},
    "guidance": {"guidance_scale": 3.0},
    "beams": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
    "rarer sampling": {"typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.3},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "contrast": {"penalty_alpha": 0.6, "dola_layers": "low"},
    "look-up": {"prompt_lookup_num_tokens": 3, "token_healing": True},
    "numbers": {"remove_invalid_values": True, "renormalize_logits": True},
    "caches": {"use_cache": False, "cache_implementation": "static", "max_cache_len": 4},
    "parts": {"prefill_chunk_size": 2, "low_memory": True},
    "outputs": {"output_attentions": True, "output_hidden_states": True},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "forced words": {"num_beams": 2, "force_words_ids": [[40]], "constraints": ["a"]},
    "other ends": {"decoder_start_token_id": 70, "bos_token_id": 71, "pad_token_id": 72},
    "assistants": {
        "num_assistant_tokens": 3,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.2,
        "assistant_early_exit": 1,
        "assistant_lookbehind": 2,
        "assistant_ensemble_weight": 0.5,
        "target_lookbehind": 2,
        "is_assistant": True,
        "max_matching_ngram_size": 2,
    },
    "speculation": {"speculation_type": "mtp", "use_mtp": True},
    "compiling": {"disable_compile": True, "cache_config": {"max_cache_len": 4}},
}
NO_SETTING = {  # what else a file may hold: its ends, who wrote it, and what no file can carry
    "eos_token_id",
    "transformers_version",
    "_from_model_config",
    "compile_config",
    "continuous_batching_config",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path_factory.mktemp("cache")))


def model_of(folder: Path) -> ClaraModel:
    base = load_backbone(str(folder), CPU, torch.float32)
    memory = fresh_memory(4, base.table_VD, torch.Generator().manual_seed(0))
    return ClaraModel(
        base, Prompter(base.tokenizer, 64), LoraSettings(rank=2), ("generator",), *memory
    )


def written(model: ClaraModel) -> tuple[list[int], float, float]:
    """Ten greedy tokens, their mean log-probability as they are written, and as it is scored."""
    prompt = model.prompter.prompt(model.prompter.answer_chat("Who is mayor?", 1, 4))
    memory_ND, heard = model.memory_MD.detach(), Confidence()
    (ids,) = model.generate([prompt], memory_ND, 10, listener=heard)
    (scored,) = log_likelihoods(model, [prompt], [ids], memory_ND)
    return ids, heard.means([len(ids)])[0], scored


@pytest.fixture(scope="module")
def plain(tiny_backbone) -> tuple[list[int], float, float]:
    return written(model_of(tiny_backbone))


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_is_the_argmax_whatever_generation_config_says(name, plain, tiny_backbone, tmp_path):
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    file = folder / "generation_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, **SETTINGS[name]}))
    ids, confidence, scored = written(model_of(folder))
    assert (ids, confidence) == (plain[0], pytest.approx(plain[1], abs=1e-6))
    assert len(ids) == 10 and confidence == pytest.approx(scored, abs=1e-4)


def test_every_setting_that_transformers_knows_is_tried():
    tried = {key for settings in SETTINGS.values() for key in settings}
    assert set(vars(GenerationConfig())) == tried | NO_SETTING


def test_end_tokens_of_generation_config_end_an_answer(plain, tiny_backbone, tmp_path):
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    file = folder / "generation_config.json"
    third = plain[0][2]
    for ends in (third, [5, third]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends}))
        assert written(model_of(folder))[0] == plain[0][: plain[0].index(third)]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("gemma3n_text", "logits from embeddings and from tokens are .*% apart"),
        (
            "v_tok_beyond",
            r"2 tokens of its .* have no row among 259: '<\|im_start\|>' \(259\)",
        ),
        ("v_adapter", "an adapter lies in the backbone's folder"),
    ],
)
def test_a_backbone_that_would_be_read_wrongly_is_refused(shared, case, reason):
    folder = shared / "cases" / "backbones" / case
    for _ in range(2):  # what is wrong is never remembered as right
        with pytest.raises(ArtefactError, match=reason) as caught:
            LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
        assert caught.value.hint


def test_a_token_added_by_hand_needs_a_row(tiny_backbone, tmp_path):
    """A pad token added to a tokenizer, as is often done to Llama's, without a row for it."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ArtefactError, match=r"1 tokens of its .* have no row among 259: '\[PAD\]'"):
        LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))


def test_a_tokenizer_without_a_fast_form_is_refused(tiny_backbone, tmp_path):
    """ByT5's is written in Python alone: it cannot say where in a text its tokens stand."""
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match="has no fast form") as caught:
        LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
    assert "tokenizer.json" in caught.value.hint


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_that_lost_its_settings_is_refused(name, tiny_backbone, tmp_path):
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "backbone"))
    (folder / name).write_bytes(b"")
    with pytest.raises(ArtefactError, match=f"{name}: an adapter lies in the backbone's folder"):
        load_backbone(str(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("v_t_multi", "several chat templates, none of them the default: rag, tool_use"),
        ("v_t_list_content", "its chat template writes the user's text not at all"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(shared, case, reason):
    base = load_backbone(str(shared / "cases" / "backbones" / case), CPU, torch.float32)
    with pytest.raises(ArtefactError, match=reason):
        Prompter(base.tokenizer, 64).check_template(f"backbone {case}")


def test_penalties_and_dictionaries_of_published_files_change_nothing(shared):
    cases = shared / "cases" / "backbones"
    wanted = written(model_of(cases / "v_plain"))
    for case in ("v_gc_reppen", "v_gc_retdict"):
        ids, confidence, scored = written(model_of(cases / case))
        assert (ids, confidence) == (wanted[0], pytest.approx(wanted[1], abs=1e-6))
        assert confidence == pytest.approx(scored, abs=1e-4)


def test_a_prompt_is_the_same_on_another_day(shared):
    base = load_backbone(str(shared / "cases" / "backbones" / "v_t_date"), CPU, torch.float32)
    prompter = Prompter(base.tokenizer, 64)
    prompter.check_template("backbone v_t_date")
    assert "2024" in prompter.render(("system", "user"), None)


def test_the_date_that_llama_falls_back_to_is_the_fixed_one(tiny_backbone):
    """Llama 3.1's template asks for today only where nobody gave it a date."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}Today Date: {{ date_string }}\n\n"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    prompter = Prompter(tokenizer, 64)
    prompter.check_template("backbone b")
    assert prompter.render(("system", "user"), None).startswith("Today Date: 26 Jul 2024\n\n")


def test_a_backbone_is_tried_once(tiny_backbone, tmp_path, monkeypatch):
    options = LoadOptions("", device="cpu", dtype="float32")
    assert options.open_backbone(str(tiny_backbone)).probe_seconds > 0
    assert options.open_backbone(str(tiny_backbone)).probe_seconds is None
    copy = Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))
    assert options.open_backbone(str(copy)).probe_seconds is None  # the same weights elsewhere
    for name, change in (
        ("config.json", {"rms_norm_eps": 1e-3}),
        ("tokenizer_config.json", {"a": 1}),
    ):
        told = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**told, **change}))
        assert options.open_backbone(str(copy)).probe_seconds > 0, name
    monkeypatch.setattr(probes, "VERSION", probes.VERSION + 1)
    assert options.open_backbone(str(tiny_backbone)).probe_seconds > 0


@pytest.mark.parametrize(
    ("kind", "pads"), [("rwkv", False), ("recurrent_gemma", False), ("mamba", True)]
)
def test_a_backbone_that_reads_padding_is_remembered_to_be_answered_one_by_one(
    kind, pads, tmp_path
):
    folder = str(try_kinds.backbone(kind, tmp_path / kind))
    for dtype in ("float32", "bfloat16", "float32"):
        base = LoadOptions("", device="cpu", dtype=dtype).open_backbone(folder)
        assert base.pads is pads
    assert base.probe_seconds is None
    half = load_backbone(folder, CPU, torch.bfloat16)
    assert probes.answers_padded(half) is pads


@pytest.mark.parametrize("fault", ["written", "names", "hidden"])
def test_every_part_of_the_probe_can_refuse(tiny_backbone, monkeypatch, fault):
    base = load_backbone(str(tiny_backbone), CPU, torch.float32)
    if fault == "written":
        original = probes.greedy
        monkeypatch.setattr(
            probes, "greedy", lambda base, **given: original(base, **given) + ("input_ids" in given)
        )
    if fault == "names":
        original = type(base.model).forward
        monkeypatch.setattr(
            type(base.model),
            "forward",
            lambda self, *a, **k: original(self, *a, **k).to_tuple(),
        )
    if fault == "hidden":
        monkeypatch.setattr(type(base), "hidden", 64)
    with pytest.raises(ArtefactError):
        probes.check_reading(base)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("gemma3_text", 32**0.5), ("gemma2", 32**0.5), ("gemma", 32**0.5), ("llama", 1)],
)
def test_memory_begins_at_the_scale_at_which_words_are_read(kind, scale):
    from clara_cli.core.backbone import Backbone
    from clara_cli.core.loading import new_config, new_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    base = Backbone(new_model(new_config(kind, **sizes, **heads)), None, kind, None)
    ids = torch.arange(300)
    read = base.model.get_input_embeddings()(ids).norm(dim=1).mean().item()
    memory, _ = fresh_memory(400, base.table_VD, torch.Generator().manual_seed(0), base.word_scale)
    assert memory.norm(dim=1).mean().item() == pytest.approx(read, rel=0.1)
    assert base.word_scale == pytest.approx(scale, rel=1e-5)
