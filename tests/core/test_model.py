"""Roles, memory and prompts on a tiny random backbone."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_roles import CPU, TEXTS, build
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_cli.core.backbone import inner_model, load_backbone
from clara_cli.core.batch import AnswerExample, answer_batch, retrieval_batch, scp_batch
from clara_cli.core.model import ClaraModel
from clara_cli.core.stage_losses import TRAINED, contrastive_loss, end_to_end_loss, read_memory_loss
from clara_cli.errors import ArtefactError
from clara_cli.records import Pair


@pytest.fixture(scope="module")
def model(tiny_backbone) -> ClaraModel:
    return build(tiny_backbone)


def encode(
    model: ClaraModel, texts: list[str], role: str = "compressor", memory_tokens: int | None = None
):
    with torch.no_grad():
        return model.encode(
            [model.prompter.passage(t) for t in texts], role, memory_tokens
        ).memory_BMD


def test_the_first_rows_of_a_longer_memory_are_the_shorter_memory(model):
    """Compress at 4x and cut to a quarter equals compress at 16x."""
    assert (
        encode(model, TEXTS, memory_tokens=16)[:, :4] - encode(model, TEXTS, memory_tokens=4)
    ).abs().max() < 1e-5


def test_a_passage_does_not_depend_on_its_batch(model):
    together = encode(model, TEXTS)
    for i, text in enumerate(TEXTS):
        assert (encode(model, [text])[0] - together[i]).abs().max() < 1e-5


def test_memory_tokens_begin_apart_from_each_other(model):
    memory = torch.nn.functional.normalize(model.memory_MD.detach(), dim=-1)
    cosine = memory @ memory.T - torch.eye(len(memory))
    assert cosine.abs().max() < 0.8
    assert len(model.memory_MD.unique(dim=0)) == model.memory_tokens


def test_roles_differ_and_the_bare_backbone_is_the_backbone(model, tiny_backbone):
    by_role = [encode(model, TEXTS[:1], role) for role in model.roles]
    assert (by_role[0] - by_role[1]).abs().max() > 1e-3
    assert (by_role[0] - by_role[2]).abs().max() > 1e-3
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        found = model(None, model.embed(ids, None))
        plain = load_backbone(str(tiny_backbone), CPU, torch.float32).model
        expected = plain.model(input_ids=ids).last_hidden_state
    assert torch.equal(found, expected)


def test_a_role_returns_on_exit_even_after_an_error(model):
    with model.role("generator"):
        with pytest.raises(RuntimeError), model.role("query_reasoner"):
            raise RuntimeError
        assert model._active == "generator"
    with pytest.raises(ValueError, match="no role 'judge'"), model.role("judge"):
        pass


def test_a_switch_computes_what_pefts_own_does_and_leaves_what_trains_alone(tiny_backbone):
    model = build(tiny_backbone)
    base = model.peft.base_model
    embeds = model.embed(torch.tensor([[1, 40, 50, 60]]), None)
    expected = {}
    for role in model.roles:
        base.set_adapter(role)
        expected[role] = inner_model(model.causal_lm)(inputs_embeds=embeds).last_hidden_state
    base.set_adapter(model.roles[0])
    with model.peft.disable_adapter():
        expected[None] = inner_model(model.causal_lm)(inputs_embeds=embeds).last_hidden_state
    model.train_only(("generator",), memory=True)
    trained = model.trained_parameters().keys()
    for role in (*model.roles, None, *reversed(model.roles)):
        with model.role(role):
            assert torch.equal(model(role, embeds), expected[role]), role
            assert model.trained_parameters().keys() == trained
    model.add_role("judge", "generator")
    assert model.trained_parameters().keys() == trained
    assert torch.equal(model("judge", embeds), expected["generator"])
    assert torch.equal(model("compressor", embeds), expected["compressor"])


def stage_loss(model: ClaraModel, stage: str):
    prompter = model.prompter
    if stage == "scp":
        pairs = [
            Pair("qa", ("Who?",), ("Nora",), (TEXTS[0],)),
            Pair("paraphrase", (), ("Rain.",), (TEXTS[1],)),
        ]
        return read_memory_loss(model, scp_batch(prompter, pairs, [0, 3], 4, 512), 0.1)
    examples = [
        AnswerExample("Who is mayor?", "Nora", tuple(TEXTS[:3]), golds=(0,)),
        AnswerExample("Rain?", "yes", tuple(TEXTS), golds=(1, 3)),
    ]
    if stage == "retrieval":
        return contrastive_loss(model, retrieval_batch(prompter, examples, 4), 0.5)
    top_k = 2 if stage == "e2e" else None
    batch = answer_batch(prompter, examples, 4, 512, top_k)
    return (
        end_to_end_loss(model, batch, 0.5, "exact")
        if stage == "e2e"
        else read_memory_loss(model, batch, 0.1)
    )


@pytest.mark.parametrize("stage", TRAINED)
def test_each_stage_gives_gradient_to_its_roles_and_to_no_other(tiny_backbone, stage):
    model = build(tiny_backbone)
    model.train_only(TRAINED[stage], memory=stage == "scp")
    stage_loss(model, stage).loss.backward()
    for role in model.roles:
        gradients = [p.grad for p in model.role_parameters(role).values()]
        if role in TRAINED[stage]:
            assert all(g is not None and g.abs().sum() > 0 for g in gradients), role
        else:
            assert all(g is None for g in gradients), role
    assert (model.memory_MD.grad is not None) == (stage == "scp")
    others = {n for n, p in model.named_parameters() if p.grad is not None and "lora_" not in n}
    assert others == ({"memory_MD"} if stage == "scp" else set())


@pytest.mark.parametrize("stage", TRAINED)
def test_training_a_stage_leaves_the_other_roles_bit_identical(tiny_backbone, stage):
    model = build(tiny_backbone)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train_only(TRAINED[stage])
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        stage_loss(model, stage).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        trained = any(f".{role}." in name for role in TRAINED[stage])
        assert torch.equal(parameter, before[name]) != trained, name


def test_e2e_gradient_of_the_query_reasoner_against_finite_differences(tiny_backbone):
    """Along the gradient, the soft choice's loss changes as the gradient says: the straight-through
    estimate equals the derivative of the loss with the soft weights in place of the hard ones,
    when the loss is linear in the weights. Here: weights against a fixed upstream."""
    from clara_cli.core.topk import cosines, straight_through_topk

    model = build(tiny_backbone).double()
    model.train_only(("query_reasoner",))
    rows = [model.prompter.passage(t) for t in TEXTS]
    pool = model.encode(rows, "compressor", 4).memory_BMD.detach()
    upstream = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def scores():
        query = model.encode(
            [model.prompter.passage("Who is the mayor?")], "query_reasoner", 4
        ).memory_BMD
        return cosines(query, pool)

    weights, _ = straight_through_topk(scores(), 1, 0.5)
    (weights * upstream).sum().backward()
    name, parameter = next(
        (n, p) for n, p in model.role_parameters("query_reasoner").items() if "lora_B" in n
    )
    direction = parameter.grad / parameter.grad.norm()

    def soft_loss(step: float) -> float:
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            value = ((scores() / 0.5).softmax(-1).unsqueeze(1) * upstream).sum().item()
            parameter.sub_(direction, alpha=step)
        return value

    numeric = (soft_loss(1e-2) - soft_loss(-1e-2)) / 2e-2
    assert numeric == pytest.approx(
        (parameter.grad * direction).sum().item(), rel=2e-2, abs=1e-6
    ), name


def test_merging_changes_nothing_but_speed(tiny_backbone):
    model = build(tiny_backbone)
    before = encode(model, TEXTS)
    model.merge("compressor")
    assert (encode(model, TEXTS) - before).abs().max() < 1e-5


def test_generation_stops_and_repeats(model):
    prompt = model.prompter.prompt(model.prompter.answer_chat("Who?", 2, 4))
    memory = encode(model, TEXTS[:2], memory_tokens=4).flatten(0, 1)
    first = model.generate([prompt], memory, 12)
    assert first == model.generate([prompt], memory, 12)
    assert len(first[0]) <= 12 and not set(first[0]) & set(model.end_ids())


def test_a_prompt_with_the_wrong_number_of_memories_is_refused(model):
    prompt = model.prompter.prompt(model.prompter.answer_chat("Who?", 2, 4))
    with pytest.raises(ValueError, match="8 memory positions, 4 vectors"):
        model.generate([prompt], encode(model, TEXTS[:1], memory_tokens=4).flatten(0, 1), 2)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=60),
    st.sampled_from(["<s>", "</s>", "<|memory|>", "<|separator|>", "<|seam|>", "<pad>"]),
)
def test_special_tokens_in_a_text_are_read_as_characters(model, text, special):
    prompter = model.prompter
    row = prompter.passage(f"{text}{special}{text}")
    specials = {*prompter.memory_ids, prompter.encode_id, prompter.separator_id, 0, 1, 2}
    assert row[0] == prompter.encode_id and row[1] == 1
    assert not specials & set(row[2:-1])
    question = prompter.prompt(prompter.answer_chat(f"{special}?", 1, 4))
    assert sum(i in prompter.memory_ids for i in question) == 4


def test_labels_stand_on_the_answer_alone_for_any_template(model):
    prompter = model.prompter
    ids, labels = prompter.example(prompter.answer_chat("Who?", 1, 4), "Nora Velden", 512)
    answer = [i for i, label in zip(ids, labels, strict=True) if label >= 0]
    assert prompter.tokenizer.decode(answer) == "Nora Velden</s>"
    prompt = prompter.prompt(prompter.answer_chat("Who?", 1, 4))
    assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + len(answer)


def test_a_tokenizer_of_another_backbone_is_refused(tiny_backbone):
    """Its ids would read other tokens' embeddings, or none; the markers alone have none."""
    model = build(tiny_backbone)
    model.prompter.passage("A river.")
    model.prompter.tokenizer.add_tokens([f"w{n}" for n in range(model.table_VD.shape[0])])
    model.prompter.tokenizer.add_tokens(["river"])
    model.prompter.passage("A lake.")
    with pytest.raises(ArtefactError, match=r"token 'river' with id \d+, the backbone has embedd"):
        model.prompter.passage("A river.")
