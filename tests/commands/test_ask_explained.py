"""The why of an answer: `--explain`."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_world
from helpers.answers import plain

from clara_cli.answering.explain import contributions
from clara_cli.documents.chunk import model_text

QUESTION = tiny_world.questions()[0]["question"]


def test_slots_add_up_to_the_cosine():
    seeded = torch.Generator().manual_seed(0)
    query_MD, memory_KMD = (torch.randn(*s, generator=seeded) for s in ((4, 8), (3, 4, 8)))
    parts_KM = contributions(query_MD, memory_KMD)
    for parts_M, memory_MD in zip(parts_KM, memory_KMD, strict=True):
        cosine = torch.cosine_similarity(query_MD.flatten(), memory_MD.flatten(), dim=0)
        assert parts_M.sum().item() == pytest.approx(cosine.item(), abs=1e-6)
    assert contributions(query_MD, torch.zeros(1, 4, 8)).tolist() == [[0.0] * 4]


def test_explain_says_scores_tokens_words_and_time(clara):
    answer = clara.ask(QUESTION, top_k=2, first_stage="latent", max_new_tokens=8, explain=True)
    why = plain(answer)["explain"]
    assert len(why["query"]) == 16 and all(len(words) == 3 for words in why["query"])
    for source, match in zip(answer.sources, why["passages"], strict=True):
        assert match["cosine"] == pytest.approx(source.score, abs=1e-5)
        assert sum(t["cosine_part"] for t in match["memory"]) == pytest.approx(match["cosine"])
        assert len(match["memory"]) == 16
    texts = [model_text(h.passage.title, h.passage.text) for h in answer.sources]
    prompter = clara.prompter
    as_text = len(prompter.prompt(prompter.text_chat(QUESTION, texts)))
    assert why["tokens"] == {"read": answer.prompt_tokens, "as_text": as_text}
    assert set(why["seconds"]) == {"query", "search", "generate", "support", "first_token"}
    assert why["seconds"]["first_token"] <= sum(why["seconds"].values())
    assert "explain" not in plain(clara.ask(QUESTION, max_new_tokens=8))
