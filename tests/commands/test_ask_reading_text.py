"""Passages read as text, all of them or the best: `--read text|auto`."""

from __future__ import annotations

import pytest
from helpers import tiny_world
from helpers.answers import plain

from clara_cli.answering.reading import texts_within
from clara_cli.cli.show import answers
from clara_cli.commands import ask, compress
from clara_cli.core.checkpoint_info import READ_MODES, ReadingDefaults
from clara_cli.documents.chunk import model_text
from clara_cli.errors import ArtefactError

QUESTION = tiny_world.questions()[0]["question"]


def test_text_is_read_by_the_bare_backbone(clara):
    answer = clara.ask(QUESTION, top_k=2, max_new_tokens=8, read="text")
    record = plain(answer)
    assert record["read"] == "text" and record["memory_tokens"] == 0
    assert {source["read"] for source in record["sources"]} == {"text"}
    prompter = clara.prompter
    texts = [model_text(h.passage.title, h.passage.text) for h in answer.sources]
    prompt = prompter.prompt(prompter.text_chat(QUESTION, texts))
    (ids,) = clara.model.generate([prompt], None, 8, role=None)
    assert record["answer"] == prompter.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert record["prompt_tokens"] == len(prompt)


def test_auto_reads_the_best_as_text_within_the_budget_and_says_so(clara):
    memory = clara.ask(QUESTION, top_k=3, max_new_tokens=8)
    tokens = [hit.passage.tokens for hit in memory.sources]
    mixed = clara.ask(QUESTION, top_k=3, max_new_tokens=8, read="auto", text_tokens=tokens[0] + 1)
    assert [hit.read for hit in mixed.sources] == ["text", "memory", "memory"]
    assert mixed.memory_tokens == 32 and mixed.text_tokens_replaced == sum(tokens[1:])
    assert mixed.prompt_tokens > memory.prompt_tokens
    assert "1 read as text" in answers._balance(mixed)
    none = clara.ask(QUESTION, top_k=3, max_new_tokens=8, read="auto", text_tokens=0)
    assert none.answer == memory.answer and none.prompt_tokens == memory.prompt_tokens


def test_a_budget_takes_whole_passages_in_order():
    assert texts_within([5, 5, 5], 10) == 2
    assert texts_within([11, 1], 10) == 0
    assert texts_within([], 10) == 0


def test_memory_alone_may_be_read_of_another_number_of_passages():
    reading = ReadingDefaults("text", 3, generator_reads_text=True, memory_passages=1)
    assert [reading.passages_of(mode) for mode in READ_MODES] == [1, 3, 3]
    assert [ReadingDefaults().passages_of(mode) for mode in READ_MODES] == [5, 5, 5]


def test_text_needs_text(works, report, tmp_path):
    mute = tmp_path / "mute.clara"
    compress.run(tiny_world.compress(works.documents, works.e2e, mute, text=False), report)
    for read in ("text", "auto"):
        with pytest.raises(ArtefactError, match="kept no text"):
            list(ask.run(tiny_world.ask(QUESTION, mute, read=read), report))
