"""Every kind of backbone, with its kind of tokenizer and chat template, through the whole way:
pretrain, train, compress, ask, save and reload, the answers the same to the bit."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import backbone_templates, released_checkpoint, tiny_kinds, tiny_world, whole_models
from helpers.tiny_kinds import try_kinds
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from clara_cli.commands import ask, compress, pretrain, train
from clara_cli.core import backbone as backbones
from clara_cli.core.checkpoint import LoadOptions, load, read_info
from clara_cli.core.decode import Confidence
from clara_cli.corpus.store import Corpus


@dataclass(frozen=True)
class Kind:
    """An architecture with the special tokens and template that come with it; `rows` are the
    table's rows beyond the tokenizer's, as Qwen3 and Phi-4-mini have them."""

    architecture: str
    template: str | None
    specials: dict[str, str]
    others: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    rows: int = 0
    config: dict[str, Any] = field(default_factory=dict)


def gemma(model_type: str, **config) -> Kind:
    """The turns and tokens that all Gemmas have."""
    return Kind(
        model_type,
        backbone_templates.GEMMA,
        {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"},
        ("<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        config={"head_dim": 8, "tie_word_embeddings": True, **config},
    )


KINDS = {
    "qwen3": Kind(
        "qwen3",
        backbone_templates.THINK,
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        ("<|im_start|>",),
        ("<|im_end|>", "<|endoftext|>"),
        rows=23,
        config={"head_dim": 8, "tie_word_embeddings": True},
    ),
    "phi-4-mini": Kind(
        "phi3",
        backbone_templates.PHI,
        {"pad_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|end|>", "<|endoftext|>"),
        rows=23,
        config={"tie_word_embeddings": True},
    ),
    "llama-3": Kind(
        "llama",
        backbone_templates.LLAMA,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    "gemma": gemma("gemma"),
    "gemma-2": gemma(
        "gemma2",
        sliding_window=64,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        query_pre_attn_scalar=8,
    ),
    "gemma-3": gemma("gemma3_text", sliding_window=64, query_pre_attn_scalar=8),
    "old mistral": Kind(
        "mistral",
        backbone_templates.MISTRAL_OLD,
        {"bos_token": "<s>", "eos_token": "</s>"},
        config={"sliding_window": None},
    ),
    "no template": Kind("llama", None, {"bos_token": "<s>", "eos_token": "</s>"}),
}


def tokenizer_of(kind: Kind) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = list(dict.fromkeys([*kind.specials.values(), *kind.others]))
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **kind.specials)
    fast.add_special_tokens({"additional_special_tokens": list(kind.others)})
    fast.chat_template = kind.template
    return fast


def backbone_of(kind: Kind, folder: Path) -> Path:
    """A random backbone of that kind, saved as its like are."""
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.convert_tokens_to_ids
    settings = {
        "vocab_size": len(tokenizer) + kind.rows,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind.architecture, **{**settings, **kind.config})
    model = AutoModelForCausalLM.from_config(config)
    if kind.ends:
        model.generation_config.eos_token_id = ids(list(kind.ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(corpus: Path, model: Path, heard: Any) -> list[dict[str, Any]]:
    """What is asked of a corpus by each first stage, without the seconds."""
    made = []
    for stage in ("bm25", "latent"):
        config = tiny_world.ask(
            "Who is mayor of Pinewick?", corpus, model=str(model), first_stage=stage
        )
        (answer,) = ask.run(dataclasses.replace(config, top_k=2), heard())
        record = dataclasses.asdict(answer)
        made.append({key: record[key] for key in record if key != "seconds"})
    (told,) = ask.run(
        tiny_world.ask(None, corpus, model=str(model), task="paraphrase", passage="d4#0"), heard()
    )
    return [*made, {"told": told.answer, "prompt": told.prompt_tokens}]


def generated(model: Path, corpus: Path) -> tuple[list[int], list[float]]:
    """Twelve greedy ids over the memory of two passages, and how likely each was: a random
    backbone's answer may be white space, or end at once."""
    opened = load(LoadOptions(str(model), device="cpu", dtype="float32")).model
    memory_ND = Corpus.open(corpus).memory([4, 5]).flatten(0, 1)
    chat = opened.prompter.answer_chat("Who is mayor?", 2, len(memory_ND) // 2)
    heard = Confidence()
    rows = [opened.prompter.prompt(chat)]
    (ids,) = opened.generate(rows, memory_ND, 12, min_new_tokens=12, listener=heard)
    return ids, [heard.means([length])[0] for length in range(1, 13)]


@pytest.mark.parametrize("name", KINDS)
def test_the_whole_way_and_back_gives_the_same_answers(name, tmp_path, heard, works):
    kind = KINDS[name]
    backbone = backbone_of(kind, tmp_path / "backbone")
    report = heard()
    config = tiny_world.scp(works.pairs, backbone, tmp_path / "scp", steps=2)
    first = pretrain.run(config, report)
    assert first.ce > 0 and first.mse is not None
    for stage, init in (("instruct", "scp"), ("e2e", "instruct")):
        questions = tiny_world.train(
            works.questions, tmp_path / init, tmp_path / stage, stage, steps=2
        )
        assert train.run(questions, report).ce > 0
    corpus, again = tmp_path / "a.clara", tmp_path / "b.clara"
    compress.run(tiny_world.compress(works.documents, tmp_path / "e2e", corpus), report)
    resaved = tmp_path / "resaved"
    train.run(tiny_world.train(works.questions, tmp_path / "e2e", resaved, "e2e", steps=0), report)
    compress.run(tiny_world.compress(works.documents, resaved, again), report)
    shards = [one / "shards" / "00000.safetensors" for one in (corpus, again)]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    assert tiny_world.same(tmp_path / "e2e" / "checkpoint", resaved / "checkpoint")
    found = answers(corpus, tmp_path / "e2e", heard)
    assert found == answers(corpus, resaved, heard)
    written = [generated(folder, corpus) for folder in (tmp_path / "e2e", resaved)]
    assert written[0] == written[1] and len(written[0][0]) == 12
    infos = [read_info(folder / "checkpoint") for folder in (tmp_path / "e2e", resaved)]
    assert infos[0].fingerprint == infos[1].fingerprint
    scale = round(32**0.5, 4) if name.startswith("gemma") else None  # of words, where not 1
    assert infos[0].provenance[0].get("memory_scale") == scale


@pytest.mark.parametrize("name", KINDS)
def test_its_files_tell_the_same_digest_and_its_ends_end_an_answer(name, tmp_path):
    kind = KINDS[name]
    folder = str(backbone_of(kind, tmp_path / "backbone"))
    base = backbones.load_backbone(folder, torch.device("cpu"), torch.float32)
    assert backbones.stored_first_values_digest(Path(folder)) == base.older_digest
    from clara_cli.core.adapters import LoraSettings
    from clara_cli.core.model import ClaraModel, fresh_memory
    from clara_cli.core.prompts import Prompter

    memory = fresh_memory(4, base.model.get_input_embeddings().weight, torch.Generator())
    prompter = Prompter(base.tokenizer, 64)
    model = ClaraModel(base, prompter, LoraSettings(rank=2), ("generator",), *memory)
    ends = {base.tokenizer.convert_ids_to_tokens(i) for i in model.end_ids()}
    assert ends == {kind.specials["eos_token"], *kind.ends}


def test_a_released_checkpoint_on_a_kind_without_bos(tmp_path, heard, works):
    """The released code gives Qwen tokenizers their first added special as BOS."""
    folder = backbone_of(KINDS["qwen3"], tmp_path / "Qwen3-tiny")
    checkpoint = released_checkpoint.write(folder, tmp_path / "released")
    model = load(LoadOptions(str(checkpoint), str(folder), "cpu", "float32")).model
    assert model.prompter.bos == "<|im_start|>"
    corpus, native = tmp_path / "a.clara", tmp_path / "native"
    words = {"ratio": None, "backbone": str(folder)}
    compress.run(tiny_world.compress(works.documents, checkpoint, corpus, **words), heard())
    converted = tiny_world.train(works.questions, checkpoint, native, "e2e", steps=0)
    train.run(dataclasses.replace(converted, backbone=str(folder)), heard())
    results = []
    for named, where in ((checkpoint, str(folder)), (native, None)):
        config = tiny_world.ask("Who is mayor?", corpus, model=str(named), backbone=where)
        (answer,) = ask.run(config, heard())
        results.append((answer.answer, answer.prompt_tokens, answer.sources))
    assert results[0] == results[1]


def test_the_text_model_of_one_that_reads_images_too_goes_the_whole_way(tmp_path, heard, works):
    _, backbone = whole_models.saved("gemma3", tmp_path / "backbone")
    run, corpus, report = tmp_path / "scp", tmp_path / "a.clara", heard()
    pretrain.run(tiny_world.scp(works.pairs, backbone, run, steps=2), report)
    assert any("of the gemma3, the text model" in note for note in report.notes)
    compress.run(tiny_world.compress(works.documents, run, corpus), report)
    config = tiny_world.ask("Who is mayor of Pinewick?", corpus, model=str(run))
    (answer,) = ask.run(dataclasses.replace(config, top_k=2), heard())
    assert len(answer.sources) == 2 and answer.memory_tokens > 0


NOTED = {  # what the log says of LoRA, for kinds that keep linear weights otherwise
    "qwen3_moe": ("without dropout mlp.experts.down_proj", "left out: mlp.gate.weight"),
    "mamba2": ("mixer.in_proj", "left out: mixer.out_proj"),
    "llama4_text": ("feed_forward.experts.gate_up_proj", "left out: feed_forward.router"),
}
EVERY_KIND = os.environ.get("CLARA_KINDS") == "all"


@pytest.mark.parametrize("kind", tiny_kinds.READ if EVERY_KIND else NOTED)
def test_a_kind_goes_the_whole_way(kind, tmp_path, heard, works):
    """Every kind that can be read with CLARA_KINDS=all, which takes minutes."""
    backbone, report = try_kinds.backbone(kind, tmp_path / "backbone"), heard()
    scp, e2e, corpus = (tmp_path / name for name in ("scp", "e2e", "a.clara"))
    pretrain.run(tiny_world.scp(works.pairs, backbone, scp, steps=2), report)
    notes = "".join(note for note in report.notes if "LoRA on" in note)
    assert all(part in notes for part in NOTED.get(kind, ()))
    train.run(tiny_world.train(works.questions, scp, e2e, "e2e", steps=2), report)
    moved = [load(LoadOptions(str(run), None, "cpu", "float32")).model for run in (scp, e2e)]
    before, after = (model.role_parameters("generator") for model in moved)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    compress.run(tiny_world.compress(works.documents, e2e, corpus), report)
    config = tiny_world.ask("Who is mayor of Pinewick?", corpus, model=str(e2e))
    (answer,) = ask.run(dataclasses.replace(config, top_k=2), heard())
    assert len(answer.sources) == 2 and answer.memory_tokens > 0
