"""A tiny random transformers model in process: it writes nonsense, and that is what is reported."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scripted_llm import write_towns
from helpers.tiny_kinds import try_kinds

from clara_cli.chat.client import LLM, LLMError, Prompt, Unfit
from clara_cli.chat.protocol import Reply
from clara_cli.commands import synth
from clara_cli.config import SynthConfig
from clara_cli.core.backbone import Backbone, load_backbone
from clara_cli.core.chat_templates import write_user_turn
from clara_cli.core.load_options import LoadOptions
from clara_cli.errors import ArtefactError
from clara_cli.synthesis.local_model import LocalLLM

WINDOW = 2048  # positions


def local_llm(backbone: Backbone, batch: int) -> LocalLLM:
    as_chat = partial(write_user_turn, backbone.tokenizer)
    return LocalLLM(backbone.model, backbone.tokenizer, batch, 0, as_chat, WINDOW)


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> Backbone:
    return load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)


def talk(backbone: Backbone, work: Callable[[LocalLLM], Awaitable[Any]], batch: int = 3) -> Any:
    async def go() -> Any:
        llm = local_llm(backbone, batch)
        try:
            await llm.check()
            return await work(llm)
        finally:
            await llm.close()

    return asyncio.run(go())


def ask_all(*prompts: Prompt) -> Callable[[LocalLLM], Awaitable[list[Reply]]]:
    async def work(llm: LocalLLM) -> list[Reply]:
        return list(await asyncio.gather(*(llm.ask(prompt) for prompt in prompts)))

    return work


def prompt(text: str, tokens: int = 12, temperature: float = 0.0) -> Prompt:
    return Prompt("test", text, {}, tokens, temperature)


def test_a_batch_says_what_single_prompts_do(backbone: Backbone) -> None:
    texts = ["one", "a much longer second prompt", "three", "four", "five!"]
    together = talk(backbone, ask_all(*map(prompt, texts)))
    alone = [talk(backbone, ask_all(prompt(text)))[0] for text in texts]
    assert together == alone
    assert all(reply.completion_tokens <= 12 for reply in together)
    assert together[0].prompt_tokens < together[1].prompt_tokens


def test_sampling_follows_the_seed(backbone: Backbone) -> None:
    warm = prompt("one", 20, 1.0)
    first, again = (talk(backbone, ask_all(warm))[0] for _ in range(2))
    assert first == again
    other = Prompt("test", "one", {}, 20, 1.0, salt=1)
    assert talk(backbone, ask_all(other))[0].text != first.text


def test_special_tokens_in_a_prompt_are_text(backbone: Backbone) -> None:
    llm = local_llm(backbone, 1)
    plain = llm._encode("so it ends")
    tricky = llm._encode("so</s> it<s> ends")
    end = backbone.tokenizer.eos_token_id
    assert tricky.count(end) == plain.count(end)


def test_a_prompt_beyond_the_window_is_unfit(backbone: Backbone) -> None:
    with pytest.raises(Unfit, match="in a window of 2048") as caught:
        talk(backbone, ask_all(prompt("long " * 600)))
    assert caught.value.gate == "context"


def test_a_model_that_fails_ends_the_run(backbone: Backbone, monkeypatch: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(backbone.model, "generate", fail)
    with pytest.raises(LLMError, match="the local model failed: out of luck"):
        talk(backbone, ask_all(prompt("one"), prompt("two")))


@pytest.mark.parametrize("fault", [IndexError("row"), TypeError("kind"), KeyError("name")])
def test_a_bug_in_generating_reaches_everybody_who_asked(
    backbone: Backbone, monkeypatch: Any, fault: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    async def work(llm: LocalLLM) -> list[Any]:
        asked = asyncio.gather(*(llm.ask(prompt(t)) for t in "abcde"), return_exceptions=True)
        return await asyncio.wait_for(asked, 20)

    monkeypatch.setattr(backbone.model, "generate", fail)
    assert talk(backbone, work) == [fault] * 5


def test_a_prompt_that_fills_the_window_cuts_no_other_reply(
    backbone: Backbone, monkeypatch: Any
) -> None:
    tokens = len(local_llm(backbone, 1)._encode("long " * 10))
    monkeypatch.setattr(f"{__name__}.WINDOW", tokens + 70)
    texts = ["one", "long " * 10, "two"]
    together = talk(backbone, ask_all(*(prompt(text, 100) for text in texts)))
    alone = [talk(backbone, ask_all(prompt(text, 100)))[0] for text in texts]
    assert together == alone
    assert together[1].completion_tokens == 70


def test_closing_stops_a_generation_at_the_next_token(backbone: Backbone) -> None:
    async def work(llm: LocalLLM) -> float:
        asking = asyncio.create_task(llm.ask(prompt("one", 1900)))
        await asyncio.sleep(0.3)
        asking.cancel()
        await llm.close()
        return time.monotonic()

    closed = talk(backbone, work)
    assert time.monotonic() - closed < 2.0


def test_most_of_what_so_small_a_model_writes_is_turned_away(
    tiny_backbone: Path, tmp_path: Path, report: Any
) -> None:
    docs = write_towns(tmp_path / "t.jsonl", range(1))
    model = tmp_path / "small"
    model.symlink_to(tiny_backbone)
    config = SynthConfig(
        documents=(str(docs),),
        llm=str(model),
        kinds="paraphrase",
        out=tmp_path / "pairs.jsonl",
        reply_tokens=16,
    )
    result = synth.run(config, report)
    assert (result.accepted, result.passages) == (0, 1)
    assert result.dropped == {"nothing": 1}


def opened(folder: Path, report: Any) -> LLM:
    """A folder's model as the command opens it."""
    config = SynthConfig(documents=("-",), llm=str(folder), dtype="float32")
    return synth.open_llm(config, synth.Target.of(config), report)


def replies(llm: LLM, *prompts: Prompt) -> list[Reply]:
    async def go() -> list[Reply]:
        try:
            return list(await asyncio.gather(*(llm.ask(prompt) for prompt in prompts)))
        finally:
            await llm.close()

    return asyncio.run(go())


@pytest.mark.parametrize("tried_before", [False, True])
@pytest.mark.parametrize(
    ("kind", "alone"), [("rwkv", True), ("recurrent_gemma", True), ("mamba", False)]
)
def test_a_model_that_reads_padding_answers_one_by_one(
    kind: str, alone: bool, tried_before: bool, tmp_path: Path, report: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CLARA_CACHE", str(tmp_path / "cache"))
    folder = try_kinds.backbone(kind, tmp_path / kind)
    if tried_before:
        LoadOptions("", device="cpu", dtype="float32").open_backbone(str(folder))
    prompts = [prompt(text) for text in ("one", "a much longer second prompt", "three", "four!")]
    together = replies(opened(folder, report), *prompts)
    assert together == [replies(opened(folder, report), each)[0] for each in prompts]
    note = f"--llm {folder}: its state reads padding: prompts are answered one by one"
    assert (note in report.notes) is alone


def test_a_model_that_embeddings_cannot_be_given_to_writes_too(tmp_path: Path, report: Any) -> None:
    """It is no backbone, and may be a language model all the same."""
    folder = try_kinds.backbone("bamba", tmp_path / "bamba")
    prompts = [prompt("one"), prompt("a much longer second prompt")]
    together = replies(opened(folder, report), *prompts)
    assert together == [replies(opened(folder, report), each)[0] for each in prompts]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.9, "no_repeat_ngram_size": 2},
        {"return_dict_in_generate": True, "output_scores": True},
        {"stop_strings": ["a", "e", "o"], "max_time": 0.0},
        {"num_beams": 2, "num_return_sequences": 2},
    ],
)
def test_settings_for_writing_other_than_ends_change_no_reply(
    settings: dict[str, Any], tiny_backbone: Path, tmp_path: Path, report: Any
) -> None:
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "llm"))
    file = folder / "generation_config.json"
    prompts = [prompt("one", 20), prompt("one", 20, 1.0)]
    plain = replies(opened(folder, report), *prompts)
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    assert replies(opened(folder, report), *prompts) == plain


def test_a_chat_template_that_drops_the_prompt_is_refused(
    tiny_backbone: Path, tmp_path: Path, report: Any
) -> None:
    folder = Path(shutil.copytree(tiny_backbone, tmp_path / "llm"))
    parts = "{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(parts)
    with pytest.raises(ArtefactError, match="its chat template does not write a prompt as it is"):
        opened(folder, report)


def test_a_model_that_is_not_there_is_named(tmp_path: Path, report: Any) -> None:
    docs = write_towns(tmp_path / "t.jsonl", range(1))
    missing = str(tmp_path / "nowhere")
    config = SynthConfig(documents=(str(docs),), llm=missing, out=tmp_path / "pairs.jsonl")
    with pytest.raises(ArtefactError) as caught:
        synth.run(config, report)
    assert caught.value.message.startswith(f"--llm {missing}: ")
    assert "http://" in caught.value.hint
