"""Where the answer begins, for the chat templates there are: labels stand on the answer and on what
ends its turn, on nothing before it."""

from __future__ import annotations

import pytest
from helpers.backbone_templates import DEAF, TEMPLATES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from clara_cli.core.losses import IGNORE
from clara_cli.core.prompts import ANSWER_SYSTEM, Prompter
from clara_cli.errors import ArtefactError


@pytest.fixture(scope="module", params=TEMPLATES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompter(name, tiny_backbone) -> Prompter:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = TEMPLATES[name][0]
    return Prompter(tokenizer, 64)


@settings(max_examples=15, deadline=None)
@example(answer=" ", question="Who?")
@given(answer=st.text(min_size=1, max_size=20), question=st.text(min_size=1, max_size=20))
def test_labels_are_the_answer_and_what_ends_its_turn(name, prompter, answer, question):
    chat = prompter.answer_chat(question, 2, 4)
    ids, labels = prompter.example(chat, answer, 10_000)
    prompt = prompter.prompt(chat)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORE] * len(prompt)
    assert labels[len(prompt) :] == ids[len(prompt) :]
    target = answer + TEMPLATES[name][1]
    assert prompter.tokenizer.decode(ids[len(prompt) :]) in (target, f" {target}")
    assert sum(i in prompter.memory_ids for i in ids) == 8


def test_the_system_text_is_in_the_prompt_unless_the_template_leaves_it_out(name, prompter):
    prompt = prompter.render(prompter.answer_chat("Who?", 1, 4), None)
    assert prompt.count(ANSWER_SYSTEM) == (name != "deaf")


def test_an_answer_that_merges_with_the_prompts_end_is_tokenised_apart(tiny_backbone):
    """A tokenizer with the token "A:No" would give the joint text a token that is half prompt."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.add_tokens(["A:No"])
    tokenizer.chat_template = DEAF.replace("A: {{", "A:{{")
    prompter = Prompter(tokenizer, 64)
    chat = prompter.answer_chat("Who?", 1, 4)
    prompt = prompter.prompt(chat)
    ids, labels = prompter.example(chat, "Nora", 10_000)
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode([i for i in labels if i != IGNORE]) == "Nora</s>"


def test_a_template_that_is_too_long_is_refused_with_the_place_it_is_from(tiny_backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = "x" * 1_000_001
    with pytest.raises(ArtefactError, match=f"{tiny_backbone}: its chat template has more than"):
        Prompter(tokenizer, 64).prompt(("", "Who?"))
