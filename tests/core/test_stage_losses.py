"""What a training step computes and keeps: roles, recomputation, memory held, what stays frozen."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.tiny_roles import QUESTIONS, TEXTS, batch_of, build, gradients, loss_of

from clara_cli.core.backbone import check_head, head_logits, inner_model
from clara_cli.core.batch import (
    AnswerExample,
    add_reconstructions,
    answer_batch,
    retrieval_batch,
)
from clara_cli.core.length_grouping import pad_rows
from clara_cli.core.losses import IGNORE, answer_nll
from clara_cli.core.stage_losses import (
    TRAINED,
    contrastive_loss,
    encode,
    rank_pools,
    read_memory_loss,
)
from clara_cli.errors import ArtefactError

# --- recomputation ---


@pytest.mark.parametrize("stage", TRAINED)
def test_recomputing_layers_changes_no_number_and_keeps_less(tiny_backbone, stage):
    found, held = [], []
    for checkpointing in (False, True):
        model = build(tiny_backbone, dropout=0.1)
        model.train_only(TRAINED[stage], memory=stage == "scp")
        if checkpointing:
            model.checkpoint_layers()
        model.train()
        torch.manual_seed(0)
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = loss_of(model, stage)
        held.append(sum(kept.values()))
        result.loss.backward()
        found.append({"loss": result.loss.detach(), **gradients(model)})
    plain, again = found
    assert plain.keys() == again.keys()
    for name, expected in plain.items():
        assert (again[name] - expected).norm() <= 1e-5 * expected.norm() + 1e-8, name
    assert held[1] < 0.7 * held[0]


def test_a_layer_is_recomputed_in_the_role_it_ran_in(tiny_backbone):
    """Backward runs when no role is active any more; without the pin every layer would be run
    again in whatever role comes last."""
    model = build(tiny_backbone)
    model.train_only(("compressor", "generator"))
    model.checkpoint_layers()
    model.train()
    ran: list[str | None] = []
    layer = inner_model(model.causal_lm).layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: ran.append(model._active))
    with model.role("query_reasoner"):
        result = loss_of(model, "scp")
    generators = ["generator"] * (len(ran) - 1)
    assert ran == ["compressor", *generators] and generators
    result.loss.backward()
    assert ran == ["compressor", *generators, *generators, "compressor"]


# --- roles ---


VARIANTS = [
    ("scp", ("generator",)),
    ("scp", ("compressor",)),
    ("instruct", ("generator",)),
    ("instruct", ("compressor",)),
    ("e2e", ("generator",)),
    ("e2e", ("query_reasoner",)),
]


@pytest.mark.parametrize(("stage", "roles"), VARIANTS)
def test_a_part_of_the_roles_has_the_whole_stages_loss_and_gradient(tiny_backbone, stage, roles):
    """A role that is frozen gets no gradient; those that train get the same as with all of them."""
    model = build(tiny_backbone)
    model.train_only(TRAINED[stage])
    whole = loss_of(model, stage)
    whole.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.train_only(roles)
    part = loss_of(model, stage)
    part.loss.backward()
    assert part.loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)
    found = gradients(model)
    assert found.keys() == {n for n in expected if any(f".{role}." in n for role in roles)}
    # the alignment loss moves the text side through the compressor alone: nothing else differs
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-7, name


def test_dropout_acts_on_roles_that_train_alone(tiny_backbone):
    model = build(tiny_backbone, dropout=0.5)
    model.train_only(("generator",))
    model.train()
    row = model.prompter.passage(TEXTS[0])

    def twice(role: str) -> float:
        embeds = model.embed(torch.tensor([row]), None)
        with torch.no_grad():
            return (model(role, embeds) - model(role, embeds)).abs().max().item()

    assert twice("compressor") == 0.0 == twice("query_reasoner") and twice("generator") > 0
    model.train_only(("compressor",))
    assert twice("generator") == 0.0 and twice("compressor") > 0


def test_only_lora_and_memory_move_and_a_tied_table_stays_to_the_bit(tiny_backbone, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_backbone, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    model = build(tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train_only(TRAINED["scp"], memory=True)
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-2, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, "scp").loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    roles = (".compressor.", ".generator.")
    assert moved == {"memory_MD"} | {n for n in before if any(role in n for role in roles)}
    table = model.causal_lm.get_input_embeddings().weight
    assert table is model.causal_lm.get_output_embeddings().weight and not table.requires_grad


# --- passages ---


def test_a_passage_is_encoded_once_and_counts_as_often_as_it_is_read(tiny_backbone):
    """Three questions read nine passages, four of them different."""
    model = build(tiny_backbone)
    batch = batch_of(model, "instruct")
    assert len(batch.passages) == 4 and batch.read == 9
    shared = read_memory_loss(model, batch, 0.1)
    apart = answer_batch(model.prompter, [], 4, 512)
    apart.rows, apart.labels = batch.rows, batch.labels
    apart.passages = [batch.passages[i] for pool in batch.pools for i in pool]
    sizes = [len(pool) for pool in batch.pools]
    apart.pools = [list(range(sum(sizes[:b]), sum(sizes[: b + 1]))) for b in range(3)]
    alone = read_memory_loss(model, apart, 0.1)
    assert shared.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)
    assert shared.mse == pytest.approx(alone.mse, rel=1e-5)


def test_pools_of_unlike_sizes_and_golds_against_a_loop(tiny_backbone):
    """InfoNCE of each question by hand, from memories encoded one at a time."""
    model = build(tiny_backbone)
    expected = []
    for example in QUESTIONS:
        with torch.no_grad():
            asked = model.encode([model.prompter.query(example.question)], "query_reasoner", 4)
            rows = [model.prompter.passage(text) for text in example.texts]
            pool = [model.encode([row], "compressor", 4).memory_BMD.flatten() for row in rows]
        query = asked.memory_BMD.flatten()
        cosines = torch.stack([query @ m / query.norm() / m.norm() for m in pool]).double()
        shares = (cosines / 0.5).softmax(0)
        expected.append(-torch.log(shares[list(example.golds)].sum()).item())
    found = contrastive_loss(model, batch_of(model, "retrieval"), 0.5)
    assert found.ce == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_a_stored_memory_stands_in_for_reading(tiny_backbone):
    model = build(tiny_backbone)
    batch = batch_of(model, "e2e")
    memory = encode(model, batch.passages, "compressor", 4).memory_BMD.detach()
    read, stored = rank_pools(model, batch)[1], rank_pools(model, batch, memory)[1]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(read, stored, strict=True))


def test_a_question_is_read_at_its_own_length(tiny_backbone):
    """Longer than a passage may be, it keeps its end; beside others it stays the same."""
    model = build(tiny_backbone, passage_tokens=16)
    question = "Which of these two towns lies upstream?"
    row = model.prompter.query(question)
    assert len(row) == len(question) + 3 and row[-1] == model.prompter.tokenizer.eos_token_id
    examples = [AnswerExample(question, "", tuple(TEXTS), golds=(0,)), QUESTIONS[1]]
    alone = contrastive_loss(model, retrieval_batch(model.prompter, examples[:1], 4), 0.5)
    with torch.no_grad():
        scores = rank_pools(model, retrieval_batch(model.prompter, examples, 4))[1]
    expected = -torch.log((scores[0] / 0.5).softmax(0)[0]).item()
    assert alone.ce == pytest.approx(expected, rel=1e-4)


# --- heads ---


FAMILIES = {
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "head_dim": 8},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "phi3": {},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    settings = {**sizes, **heads, "initializer_range": 0.5, **FAMILIES[request.param]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **settings)).eval()


def test_logits_of_hidden_states_are_the_models_own(family):
    check_head(family)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        own = family(input_ids=ids).logits
        found = head_logits(family, inner_model(family)(input_ids=ids).last_hidden_state)
    assert (own - found).abs().max() < 1e-6 and own.abs().max() > 0.1


def test_a_backbone_with_logits_of_its_own_making_is_refused(family, monkeypatch):
    """Else its losses would be wrong without a word."""
    forward = family.forward

    def louder(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 1.5 * out.logits
        return out

    monkeypatch.setattr(family, "forward", louder)
    with pytest.raises(ArtefactError, match=f"{type(family).__name__} makes its logits"):
        check_head(family)


def test_the_generators_loss_is_that_of_all_logits(tiny_backbone):
    model = build(tiny_backbone)
    batch = batch_of(model, "instruct")
    memory_ND = torch.randn(batch.read * 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.nll(batch.rows, batch.labels, memory_ND)
        ids_BT, labels_BT = (
            pad_rows(batch.rows, 0, model.device),
            pad_rows(batch.labels, -100, model.device),
        )
        with model.role("generator"):
            logits = model.causal_lm(inputs_embeds=model.embed(ids_BT, memory_ND)).logits
    assert found.item() == pytest.approx(answer_nll(logits, labels_BT).item(), rel=1e-5)


# --- distillation ---


def test_the_generator_over_memory_learns_from_itself_over_text(tiny_backbone):
    """The divergence at the answers' tokens, from logits made one row at a time; only the reader of
    memory, and what made it, get a gradient from it."""
    model = build(tiny_backbone)
    model.train_only(("compressor", "generator"))
    batch = answer_batch(model.prompter, QUESTIONS, 4, 512, with_text=True)
    add_reconstructions(batch, model.prompter, 0.5, random.Random(0), 512)
    assert sorted(batch.text_rows) == [0, 1, 2] and len(batch.rows) > 3
    plain = read_memory_loss(model, batch, 0.0)
    distilled = read_memory_loss(model, batch, 0.0, distillation=2.0)
    rows = [model.prompter.passage(text) for text in TEXTS]
    divergences = []
    with torch.no_grad():
        memory_BMD = model.encode(rows, "compressor", 4).memory_BMD
        for number, example in enumerate(QUESTIONS):
            own = [memory_BMD[TEXTS.index(text)] for text in example.texts]
            memory_ND = torch.cat(own)
            over_memory = logits_of(model, batch.rows[number], batch.labels[number], memory_ND)
            over_text = logits_of(model, *batch.text_rows[number], None)
            teacher = over_text.log_softmax(-1)
            divergences += (teacher.exp() * (teacher - over_memory.log_softmax(-1))).sum(-1)
    expected = 2.0 * sum(divergences) / len(divergences)
    assert (distilled.loss - plain.loss).item() == pytest.approx(expected.item(), rel=1e-4)
    assert distilled.ce == pytest.approx(plain.ce, rel=1e-6)
    distilled.loss.backward()
    assert {name.split(".lora_")[1].split(".")[1] for name in gradients(model)} == {
        "compressor",
        "generator",
    }


def logits_of(model, ids, labels, memory_ND):
    """What is predicted at each labelled token of one row."""
    hidden_TD = model("generator", model.embed(torch.tensor([ids]), memory_ND))[0]
    wanted = [place for place, label in enumerate(labels[1:]) if label != IGNORE]
    return head_logits(model.causal_lm, hidden_TD[wanted])
