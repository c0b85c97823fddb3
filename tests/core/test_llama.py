"""Reading without transformers: the same tokens, hidden states and answers as with it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clara_cli.bundled import BUNDLED
from clara_cli.commands import compress
from clara_cli.config import CompressConfig
from clara_cli.core.adapters import LoraSettings, ReadingAdapters
from clara_cli.core.backbone import load_backbone
from clara_cli.core.checkpoint import load, save
from clara_cli.core.decode import Confidence, lens, log_likelihoods
from clara_cli.core.fast_tokenizer import read_tokenizer
from clara_cli.core.llama import Llama
from clara_cli.core.load_options import Loaded, LoadOptions
from clara_cli.core.loading import load_tokenizer
from clara_cli.core.peft_adapters import PeftAdapters
from clara_cli.core.probe import is_plain, kept_file
from clara_cli.core.reading_backbone import agrees, fill, open_model, read_llama_config
from clara_cli.core.writing import write
from clara_cli.errors import ArtefactError
from clara_cli.memory_layout import MemoryLayout

NANO = BUNDLED["nano"]
BACKBONE = NANO / "backbone"
TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": None,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path_factory.mktemp("cache")))


def tiny_llama(folder: Path, **more: Any) -> Any:
    """A random Llama of transformers, saved in a folder."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TINY, **more}))
    model.eval().requires_grad_(False).save_pretrained(folder)
    return model


def prompts(model: Any, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of random prompts padded on the left, and their mask."""
    longest = max(lengths)
    ids = torch.randint(0, 97, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    return model.get_input_embeddings()(ids), mask


SHAPES = {
    "heads of their own": {"num_key_value_heads": 4},
    "shared keys": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "tied head": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 32, "num_key_value_heads": 2},
    "other rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
    "other epsilon": {"rms_norm_eps": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_greedy_tokens_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    theirs = tiny_llama(tmp_path, **SHAPES[shape])
    own = open_model(tmp_path, "backbone", torch.float32)
    assert isinstance(own, Llama)
    embeds_BTD, mask_BT = prompts(theirs, [9, 5, 12])
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    for asked in ({}, {"attention_mask": mask_BT, "position_ids": positions_BT}):
        expected = theirs.model(inputs_embeds=embeds_BTD, **asked).last_hidden_state
        computed = own.model(embeds_BTD, **asked).last_hidden_state
        real_BT = mask_BT.bool() if asked else torch.ones_like(mask_BT).bool()
        assert (expected - computed)[real_BT].abs().max() < 1e-5 * expected.abs().max()
    free = write(theirs, embeds_BTD, mask_BT, 12)
    assert torch.equal(write(own, embeds_BTD, mask_BT, 12), free)
    ends = [int(free[0, 3]), int(free[1, 5])]
    for least in (0, 6):
        ended = write(theirs, embeds_BTD, mask_BT, 12, least, ends)
        assert torch.equal(write(own, embeds_BTD, mask_BT, 12, least, ends), ended)


def test_a_stop_and_a_streamer_see_what_they_see_with_transformers(tmp_path: Path) -> None:
    theirs = tiny_llama(tmp_path)
    own = open_model(tmp_path, "backbone", torch.float32)
    embeds_BTD, mask_BT = prompts(theirs, [7])

    class Stream(list[list[int]]):
        def put(self, ids: torch.Tensor) -> None:
            self.append(ids.flatten().tolist())

        def end(self) -> None:
            self.append([-1])

    def third(ids_BT: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.full((len(ids_BT),), ids_BT.shape[1] >= 3)

    streams = [Stream(), Stream()]
    ids = [
        write(model, embeds_BTD, mask_BT, 9, streamer=stream, stop=third)
        for model, stream in zip((theirs, own), streams, strict=True)
    ]
    assert ids[0].shape == (1, 3)
    assert torch.equal(*ids)
    assert streams[0] == streams[1]
    assert [piece for piece in streams[1] if piece] == [[i] for i in [*ids[0][0].tolist(), -1]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Loaded]:
    """nano by transformers and PEFT, and without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARA_CACHE", str(tmp_path_factory.mktemp("cache")))
        options = LoadOptions("nano", device="cpu", dtype="float32")
        reading = LoadOptions("nano", device="cpu", dtype="float32", only_reads=True)
        first = load(reading)  # tried by transformers the first time
        assert isinstance(first.model.adapters, PeftAdapters)
        return load(options), load(reading)


def test_a_checkpoint_opened_to_be_read_computes_what_peft_computes(opened) -> None:
    by_peft, plain = (loaded.model for loaded in opened)
    assert isinstance(plain.adapters, ReadingAdapters)
    assert opened[0].info == opened[1].info
    rows = [plain.prompter.passage(text) for text in ("The hull was blue.", "It rains. " * 9)]
    assert rows == [by_peft.prompter.passage(t) for t in ("The hull was blue.", "It rains. " * 9)]
    for role in plain.roles:
        with torch.no_grad():
            expected = by_peft.encode(rows, role).memory_BMD
            computed = plain.encode(rows, role).memory_BMD
        assert (expected - computed).abs().max() <= 1e-6 * expected.abs().max()
    with torch.no_grad():
        ids_BT = torch.tensor([rows[0]])
        bare = [model(None, model.embed(ids_BT, None)) for model in (by_peft, plain)]
    assert (bare[0] - bare[1]).abs().max() <= 1e-6 * bare[0].abs().max()


def test_answers_likelihoods_and_lens_are_those_of_transformers(opened) -> None:
    results = []
    for model in (loaded.model for loaded in opened):
        memory_ND = model.encode([model.prompter.passage("Ann Lee founded Elmgate.")], "compressor")
        memory_MD = memory_ND.memory_BMD[0].detach()
        chats = [
            model.prompter.answer_chat(q, 1, model.memory_tokens)
            for q in ("Who founded Elmgate?", "Why?")
        ]
        rows = [model.prompter.prompt(chat) for chat in chats]
        memory = torch.cat([memory_MD, memory_MD])
        heard = Confidence()
        ids = model.generate(rows, memory, 8, listener=heard)
        scored = log_likelihoods(model, rows, [[5, 6], [7]], memory)
        results.append((ids, heard.means([len(i) for i in ids]), scored, lens(model, memory_MD, 3)))
    by_peft, plain = results
    assert plain[0] == by_peft[0]
    assert plain[1] == pytest.approx(by_peft[1], abs=1e-5)
    assert plain[2] == pytest.approx(by_peft[2], abs=1e-5)
    assert plain[3] == by_peft[3]


@pytest.mark.parametrize("positions", ["after", "spread"])
@pytest.mark.parametrize("role", ["generator", None])
def test_what_all_prompts_begin_with_is_read_once(
    positions: str, role: str | None, tmp_path: Path
) -> None:
    """Fewer positions, the same answers and likelihoods; other beginnings are read whole."""
    options = LoadOptions("nano", device="cpu", dtype="float32", only_reads=True)
    load(options)
    model = load(options).model
    model.layout = MemoryLayout("pooled", positions)
    prompter, counted = model.prompter, [0]
    model.causal_lm.model.norm.register_forward_pre_hook(
        lambda module, given: counted.append(math.prod(given[0].shape[:2]))
    )
    chats = [
        prompter.answer_chat("Who founded Elmgate?", 2, 3, ["A text."]),
        prompter.answer_chat("Why?", 1, 3),
        prompter.text_chat("Where?", ["Ann Lee founded Elmgate.", "Ann Lee is dead."]),
        prompter.text_chat("When, and by whom?", ()),
    ]
    system = list(range(40, 60))  # nano's template has none
    rows = [[*system, *prompter.prompt(chat)] for chat in chats]
    prompter.__dict__["opening"] = [*system, *prompter.opening]
    memory_ND = torch.randn(9, model.hidden, generator=torch.Generator().manual_seed(0))

    def results() -> tuple[Any, Any, int]:
        counted.clear()
        ids = model.generate(rows, memory_ND, 6, role)
        return ids, log_likelihoods(model, rows, ids, memory_ND, role), sum(counted)

    opening = len(prompter.opening)
    assert 20 < opening < min(map(len, rows))
    first, second = results(), results()
    prompter.__dict__["opening"] = []
    whole = results()
    assert first[0] == second[0] == whole[0]
    assert first[1] == pytest.approx(whole[1], abs=1e-5)
    assert first[1] == second[1]
    assert first[2] - second[2] == opening
    assert whole[2] - second[2] == 2 * len(rows) * opening
    prompter.__dict__["opening"] = [*rows[0][:-1], 1]
    assert model.opening(role, rows) is None


def test_a_role_folded_in_computes_what_it_did_apart(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    own = open_model(tmp_path, "backbone", torch.float32)
    adapters = ReadingAdapters(own, LoraSettings(4, 8), ("generator",))
    drawn = torch.Generator().manual_seed(0)
    for parameter in adapters.parameters("generator").values():
        parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.05)
    embeds_BTD = prompts(own, [8])[0]
    bare = own.model(embeds_BTD).last_hidden_state
    adapters.switch("generator")
    apart = own.model(embeds_BTD).last_hidden_state
    adapters.merge("generator")
    folded = own.model(embeds_BTD).last_hidden_state
    assert (apart - bare).abs().max() > 1e-2
    assert (apart - folded).abs().max() < 1e-4


def test_a_model_opened_to_be_read_is_not_saved(opened, tmp_path: Path) -> None:
    plain = opened[1]
    with pytest.raises(TypeError, match="cannot be saved"):
        save(plain.model, plain.info, tmp_path / "copy")


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
def test_tokens_are_those_of_transformers(text: str) -> None:
    own, theirs = read_tokenizer(BACKBONE, "nano"), load_tokenizer(BACKBONE, "nano")
    assert own is not None
    for asked in ({}, {"split_special_tokens": True, "return_offsets_mapping": True}):
        expected = theirs(text, add_special_tokens=False, **asked)
        assert own(text, add_special_tokens=False, **asked)["input_ids"] == expected["input_ids"]
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert own.decode(ids) == theirs.decode(ids)


ODD = {
    "another kind": {"model_type": "mistral"},
    "biases": {"attention_bias": True},
    "another activation": {"hidden_act": "gelu"},
    "scaled rotation": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2}},
    "older scaled rotation": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "partial rotation": {"partial_rotary_factor": 0.5},
    "no width": {"hidden_size": None},
    "no heads": {"num_attention_heads": 0},
    "words for numbers": {"vocab_size": "many"},
}


@pytest.mark.parametrize("change", ODD)
def test_what_is_no_plain_llama_is_left_to_transformers(change: str, tmp_path: Path) -> None:
    settings_of_nano = json.loads((BACKBONE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings_of_nano, **ODD[change]}))
    assert read_llama_config(BACKBONE, "nano") is not None
    assert read_llama_config(tmp_path, "backbone") is None


def test_a_tokenizer_that_differs_is_noticed(tmp_path: Path) -> None:
    base = load_backbone(str(BACKBONE), torch.device("cpu"), torch.float32)
    assert agrees(BACKBONE, base.model, base.tokenizer)
    folder = Path(shutil.copytree(BACKBONE, tmp_path / "backbone"))
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "eos_token": "<|user|>"}))
    assert not agrees(folder, base.model, base.tokenizer)


def test_a_model_that_computes_otherwise_is_noticed(tmp_path: Path) -> None:
    base = load_backbone(str(BACKBONE), torch.device("cpu"), torch.float32)
    base.model.model.rotary_emb.inv_freq.mul_(1.5)
    assert not agrees(BACKBONE, base.model, base.tokenizer)


def test_what_was_found_is_remembered_for_these_very_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BACKBONE, tmp_path / "backbone"))
    options = LoadOptions("nano", str(folder), "cpu", "float32", only_reads=True)
    assert options.open_for_reading(str(folder)) is None
    base = options.open_backbone(str(folder))
    assert is_plain(base)
    assert options.open_for_reading(str(folder)) is not None
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    assert not kept_file(base).exists()
    assert options.open_for_reading(str(folder)) is None


@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_damaged_weights_are_named(damage: str, tmp_path: Path) -> None:
    tensors = load_file(BACKBONE / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = tensors.pop(name)
    if damage == "another shape":
        tensors[name] = tensor[:-1].contiguous()
    folder = Path(shutil.copytree(BACKBONE, tmp_path / "backbone"))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtefactError, match=f"{name} is "):
        open_model(folder, "backbone nano", torch.float32)


def test_weights_of_the_right_type_are_not_copied(tmp_path: Path) -> None:
    theirs = tiny_llama(tmp_path)
    own = open_model(tmp_path, "backbone", torch.float32)
    stored = dict(theirs.named_parameters())
    fill(own, stored, torch.float32, "backbone")
    for name, parameter in own.named_parameters():
        assert parameter.data_ptr() == stored[name].data_ptr(), name


def test_a_corpus_has_the_same_bytes_with_and_without_transformers(tmp_path, report) -> None:
    documents = tmp_path / "documents.jsonl"
    texts = ["Ann Lee founded Elmgate. " * n for n in (1, 2, 5)]
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpora = []
    for name in ("first", "second"):  # the first opens the backbone by transformers
        config = CompressConfig(inputs=(str(documents),), model="nano", out=tmp_path / name)
        compress.run(config, report)
        corpora.append(sorted((tmp_path / name / "shards").iterdir()))
    assert corpora[0]
    for one, other in zip(*corpora, strict=True):
        assert one.read_bytes() == other.read_bytes()
