"""Words as they come, likelihoods of given answers, and the words memory is nearest to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clara_cli.core.adapters import LoraSettings
from clara_cli.core.backbone import Backbone, load_backbone
from clara_cli.core.decode import RepetitionStop, TextStream, lens, log_likelihoods
from clara_cli.core.model import ClaraModel, fresh_memory
from clara_cli.core.prompts import Prompter

ROLES = ("compressor", "generator")


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> ClaraModel:
    base = load_backbone(str(tiny_backbone), torch.device("cpu"), torch.float32)
    seeded = torch.Generator().manual_seed(0)
    memory = fresh_memory(4, base.model.get_input_embeddings().weight, seeded)
    return ClaraModel(base, Prompter(base.tokenizer, 64), LoraSettings(4, 8), ROLES, *memory)


# --- streams ---


def told(pieces: list[list[int]], words: dict[int, bytes], ends: list[int]) -> list[str]:
    said: list[str] = []

    def decode(ids: list[int]) -> str:
        return b"".join(words[i] for i in ids).decode("utf-8", "replace")

    stream = TextStream(decode, ends, said.append)
    for piece in pieces:
        stream.put(torch.tensor(piece, dtype=torch.long))
    stream.end()
    return said


def test_a_stream_tells_whole_characters_and_the_stripped_answer():
    words = {1: b" Z", 2: b"\xc3", 3: b"\xbc", 4: b"rich", 5: b" \n", 6: b"!", 9: b"</s>"}
    assert told([[], [1], [2], [3], [4], [5], [6], [5], [9]], words, [9]) == [
        *("Z", "ü", "rich", " \n!")
    ]
    assert told([[], [1], [2]], words, [9]) == ["Z", "\N{REPLACEMENT CHARACTER}"]
    assert told([[], [5], [9]], words, [9]) == []


def test_what_is_streamed_is_the_answer(model):
    prompt = model.prompter.prompt(model.prompter.answer_chat("Who?", 1, 4))
    memory_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    decode = model.prompter.tokenizer.decode
    said: list[str] = []
    stream = TextStream(decode, model.end_ids(), said.append)
    (ids,) = model.generate([prompt], memory_ND, 24, streamer=stream)
    assert "".join(said) == decode(ids).strip()
    assert len(said) > 1
    assert model.generate([prompt], memory_ND, 24) == [ids]


# --- likelihoods ---


def test_likelihood_is_the_mean_log_probability_whatever_the_batch(model):
    prompter = model.prompter
    prompts = [prompter.prompt(prompter.answer_chat(q, n, 4)) for q, n in (("A?", 1), ("Why?", 0))]
    answers = [prompter.ids("Nora"), prompter.ids("No")]
    memory_ND = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    together = log_likelihoods(model, prompts, answers, memory_ND)
    for i, memory in enumerate((memory_ND, None)):
        ids = torch.tensor([[*prompts[i], *answers[i]]])
        hidden_TD = model("generator", model.embed(ids, memory))[0]
        logits_TV = model.causal_lm.get_output_embeddings()(hidden_TD)
        logp = logits_TV.log_softmax(-1)
        start = len(prompts[i]) - 1
        by_hand = [logp[start + t, token].item() for t, token in enumerate(answers[i])]
        assert together[i] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)


# --- the logit lens ---

VOCABULARY = ["<unk>", "<s>", "</s>", "the", "bridge", "over", "zyzzyva", "river", "is", "old"]


@pytest.fixture(scope="module")
def averaging() -> ClaraModel:
    """A backbone whose every position is the mean of what stands before it, and whose head is its
    embedding: one layer of uniform attention over one-hot words."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    width = 16
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=width, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    causal = LlamaForCausalLM(config).eval()
    layer = causal.model.layers[0]
    with torch.no_grad():
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            projection.weight.zero_()
        for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            projection.weight.copy_(torch.eye(width))
        causal.model.embed_tokens.weight.copy_(torch.eye(width)[: len(VOCABULARY)])
    memory, markers = torch.zeros(4, width), torch.zeros(2, width)
    base = Backbone(causal, tokenizer, "averaging", None)
    return ClaraModel(base, Prompter(tokenizer, 64), LoraSettings(2, 4), ROLES, memory, markers)


def test_a_passage_built_around_a_rare_word_shows_it(averaging):
    """The planted-word check: the word's memory says it, and that of the same passage without it
    does not."""
    planted = "zyzzyva zyzzyva the bridge over the zyzzyva is old zyzzyva"
    plain = planted.replace("zyzzyva", "river")
    for text, word in ((planted, "zyzzyva"), (plain, "river")):
        row = averaging.prompter.passage(text)
        memory_MD = averaging.encode([row], "compressor").memory_BMD[0]
        words = lens(averaging, memory_MD, 3)
        assert len(words) == 4
        assert [row[0] for row in words] == [word] * 4
        other = "river" if word == "zyzzyva" else "zyzzyva"
        assert all(other not in row for row in words)


@pytest.mark.parametrize(
    ("ids", "ends"),
    [
        ([7] * 12, True),
        ([7] * 11, False),
        ([1, 2, 3] * 4, True),
        ([1, 2, 3] * 3, False),  # nine tokens: a list may look like that
        ([9, *range(24), *range(24), *range(24)], True),
        ([*range(25)] * 3, False),
        ([*range(40)], False),
        ([], False),
    ],
)
def test_an_answer_that_repeats_itself_ends(ids, ends):
    stop = RepetitionStop()
    assert stop(torch.tensor([ids], dtype=torch.long), None).tolist() == [ends]
    other = torch.tensor([ids, [*range(100, 100 + len(ids))]], dtype=torch.long)
    assert stop(other, None).tolist() == [ends, False]


def test_a_model_that_would_go_on_for_ever_is_stopped():
    """Token after token, only the row that repeats itself is at its end."""
    stop, row = RepetitionStop(), [3, 1, 4, 1, 5]
    written = list(row)
    while not stop(torch.tensor([written]), None).item():
        written.append(8)
        assert len(written) < 40
    assert written == [*row, *[8] * 12]
