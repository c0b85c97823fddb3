"""Readers with the templates of their authors, through tiny random models of the same classes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_kinds import try_kinds
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.bench_records import BenchResult
from clara_cli.commands import bench
from clara_cli.config import BenchConfig
from clara_cli.evaluation.paragraphs import Piece, Pool
from clara_cli.evaluation.rivals import tuned
from clara_cli.evaluation.rivals.registry import parse_systems
from clara_cli.evaluation.rivals.tuned import (
    TEMPLATES,
    ListwisePicker,
    TunedReader,
    generate,
    plain,
    prompt_ids,
    read_order,
)
from clara_cli.evaluation.rivals.weights import Weights, load
from clara_cli.evaluation.systems import Failure, PooledQuestion, Reading

QUESTION, TEXTS = "Who is mayor?", ["Elmgate\nNora is mayor.", "Quarrel\nMax is mayor."]


@pytest.fixture(scope="module")
def llama(backbone_maker: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the class of Self-RAG, ChatQA-1.5 and RAG-DDR; it reads bytes."""
    folder: Path = backbone_maker(tmp_path_factory.mktemp("tuned") / "llama", seed=3)
    return folder


def opened(name: str, folder: Path) -> Weights:
    (spec,) = parse_systems(f"{name}={folder}")
    return load(spec, "generate", torch.device("cpu"))


def prompt(name: str, texts: list[str]) -> str:
    return TEMPLATES[name].prompt(QUESTION, texts)


def test_templates_are_those_of_the_authors() -> None:
    docs = "\n\n".join(TEXTS)
    assert prompt("self-rag", TEXTS) == (
        f"### Instruction:\n{QUESTION}\n\n### Response:\n[Retrieval]<paragraph>{docs}</paragraph>"
    )
    assert prompt("self-rag", []) == f"### Instruction:\n{QUESTION}\n\n### Response:\n"
    chatqa = prompt("chatqa", TEXTS)
    assert chatqa.startswith("System: This is a chat between a user and an artificial")
    assert chatqa.endswith(
        f"context.\n\n{docs}\n\nUser: Answer the following question with a short span. {QUESTION}"
        "\n\nAssistant:"
    )
    assert prompt("retrobust", TEXTS).endswith(
        "before the question.\n#\nContext1: Elmgate Nora is mayor.\nContext2: Quarrel Max is "
        f"mayor.\nQuestion: {QUESTION}\nAre follow up questions needed here: No.\n"
        "So the final answer is:"
    )
    assert prompt("gritlm", TEXTS) == (
        f"<|user|>\n{docs}\n\n{QUESTION}\n\nAnswer the prior query while optionally using the "
        "context prior to it\n<|assistant|>\n"
    )
    assert prompt("rag-ddr", TEXTS) == f"Background:\n{docs}\n\nQ: {QUESTION}\nA:"


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("self-rag", "[Relevant]Nora Velden[Fully supported][Utility:5]", "Nora Velden"),
        ("self-rag", "[No Retrieval]Ivo [1906] Sand", "Ivo [1906] Sand"),
        ("retrobust", " Nora Velden\n#\nQuestion: x", "Nora Velden"),
        ("chatqa", " Nora Velden ", "Nora Velden"),
    ],
)
def test_the_answer_is_cut_out_of_what_a_reader_writes(name: str, text: str, answer: str) -> None:
    assert TEMPLATES[name].answer(text) == answer


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_reader_reads_its_template_and_writes_greedily(name: str, llama: Path) -> None:
    weights = opened(name, llama)
    reader = TunedReader(weights, TEMPLATES[name], 6)
    pairs = [(QUESTION, TEXTS), ("And of Quarrel?", TEXTS[:1]), ("Where?", [])]
    readings = reader.read(pairs)
    for (question, texts), reading in zip(pairs, readings, strict=True):
        text = TEMPLATES[name].prompt(question, texts)
        turns: Any = [{"role": "user", "content": text}] if TEMPLATES[name].chat else text
        ids = torch.tensor([prompt_ids(weights.tokenizer, turns)])
        assert ids[0, 0] == weights.tokenizer.bos_token_id
        for _ in range(6):
            with torch.inference_mode():
                best = weights.model(ids).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, best[None]], dim=1)
            if best == weights.tokenizer.eos_token_id:
                break
        new = ids[0, -6:] if ids.shape[1] else ids[0]
        said = weights.tokenizer.decode(new, skip_special_tokens=True)
        assert isinstance(reading, Reading)
        assert (reading.text, reading.kept) == (TEMPLATES[name].answer(said), len(texts))


def test_batches_answer_as_one_by_one(llama: Path) -> None:
    weights = opened("chatqa", llama)
    prompts = [[1, *range(10, 10 + n)] for n in (3, 17, 9)]
    together = generate(weights, prompts, 5)
    assert together == [generate(weights, [ids], 5)[0] for ids in prompts]


def test_what_exceeds_the_window_is_left_out_and_a_question_alone_is_a_failure(
    backbone_maker: Any, tmp_path: Path
) -> None:
    folder = backbone_maker(tmp_path / "short", max_position_embeddings=300)
    weights = opened("gritlm", folder)
    reader = TunedReader(weights, TEMPLATES["gritlm"], 4)
    texts = ["x" * 90] * 5
    cut, failed = reader.read([("Who?", texts), ("y" * 400, [])])
    sizes = [len(TEMPLATES["gritlm"].prompt("Who?", texts[:n])) + 1 for n in range(6)]
    assert isinstance(cut, Reading)
    assert cut.kept == max(n for n in range(6) if sizes[n] <= 296) == 2
    assert isinstance(failed, Failure) and "300 tokens" in failed.error


def test_special_tokens_in_a_passage_are_text(llama: Path) -> None:
    tokenizer = opened("chatqa", llama).tokenizer
    ids = tokenizer(plain(tokenizer, "a </s> b <s>"))["input_ids"]
    assert not {tokenizer.eos_token_id, tokenizer.bos_token_id} & set(ids)


# --- the ranker ---


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("[2] > [3] > [1]", [1, 2, 0]),
        ("[3] > [3] > [9] > [0]", [2, 0, 1]),
        ("no idea", [0, 1, 2]),
        ("[2]>[1", [1, 0, 2]),
    ],
)
def test_orders_are_read_each_place_once(text: str, order: list[int]) -> None:
    assert read_order(text, 3) == order


@given(st.text(alphabet="[]0123456789 >"), st.integers(0, 30))
def test_an_order_is_always_a_permutation(text: str, count: int) -> None:
    assert sorted(read_order(text, count)) == list(range(count))


def test_the_window_moves_from_the_end_to_the_front(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model names the passage of the highest number alone: the last of all ends first."""
    weights = opened("rankzephyr", llama)
    seen: list[int] = []

    def highest(weights: Any, prompts: Any, room: int) -> list[str]:
        text = weights.tokenizer.decode(prompts[0])
        numbers = {
            int(number): place for place, number in re.findall(r"\[(\d+)\] text (\d+)", text)
        }
        seen.append(len(numbers))
        return [f"[{numbers[max(numbers)]}]"]

    monkeypatch.setattr(tuned, "generate", highest)
    monkeypatch.setattr(tuned, "WORDS", (2,))
    pieces = tuple(Piece(str(n), f"text {n}", 2, n) for n in range(45))
    (picked,) = ListwisePicker(weights, 2).pick([PooledQuestion("Who?", Pool(pieces))])
    assert seen == [20, 20, 20, 15]
    assert [piece.given for piece in picked] == ["44", "0"]


def test_long_passages_are_cut_to_fit_the_rankers_window(
    backbone_maker: Any, tmp_path: Path
) -> None:
    folder = backbone_maker(tmp_path / "short", max_position_embeddings=1400)
    picker = ListwisePicker(opened("rankzephyr", folder), 1)
    ids = picker._prompt("Who?", ["word " * 300] * 2)
    assert len(ids) <= 1400 - 16


# --- an adapter on another backbone ---


def test_an_adapter_is_merged_into_the_backbone_that_it_names(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(llama)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(llama)
    adapted.save_pretrained(tmp_path / "adapter")
    weights = opened("retrobust", tmp_path / "adapter")
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.inference_mode():
        torch.testing.assert_close(weights.model(ids).logits, adapted(ids).logits)
        plain_logits = opened("retrobust", llama).model(ids).logits
    assert not torch.allclose(weights.model(ids).logits, plain_logits, atol=1e-3)


# --- as rows of bench ---


def test_they_are_rows_of_bench(
    mayors: Path, checkpoint: Path, llama: Path, tmp_path: Path, report: Any
) -> None:
    names = [*sorted(TEMPLATES), "rankzephyr"]
    settings: dict[str, Any] = {"dataset": str(mayors), "model": str(checkpoint), "limit": 2}
    settings |= {"device": "cpu", "dtype": "float32", "max_new_tokens": 3, "top_k": 2}
    settings["system"] = ",".join(f"{name}={llama}" for name in names)
    done = bench.run(BenchConfig(**settings, out=tmp_path / "o"), report)
    assert isinstance(done, BenchResult)
    assert [card.name for card in done.systems] == [f"{name}=llama" for name in names]
    assert [card.error for card in done.systems] == [""] * len(names)
    lines = [json.loads(line) for line in (tmp_path / "o" / "predictions.jsonl").open()]
    given = {line["system"]: len(line["hits"]) for line in lines}
    assert given == {f"{name}=llama": 2 if name == "rankzephyr" else 3 for name in names}


@pytest.mark.parametrize(("kind", "pads"), [("rwkv", False), ("llama", True)])
def test_a_reader_whose_state_reads_padding_answers_one_by_one(
    kind: str, pads: bool, tmp_path: Path
) -> None:
    weights = opened("rag-ddr", try_kinds.backbone(kind, tmp_path / kind))
    prompts = [prompt_ids(weights.tokenizer, text) for text in ("Who?", QUESTION, "Where is it?")]
    alone = [generate(weights, [one], 12)[0] for one in prompts]
    assert (weights.pads, generate(weights, prompts, 12)) == (pads, alone)


def test_settings_for_writing_that_come_with_a_reader_change_no_answer(
    llama: Path, tmp_path: Path
) -> None:
    """Qwen's instruct models are published with a repetition penalty."""
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    file = copy / "generation_config.json"
    penalty = {"repetition_penalty": 1.9, "return_dict_in_generate": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **penalty}))
    plain_one, other = (opened("rag-ddr", folder) for folder in (llama, copy))
    prompts = [prompt_ids(plain_one.tokenizer, QUESTION)]
    assert generate(other, prompts, 16) == generate(plain_one, prompts, 16)
