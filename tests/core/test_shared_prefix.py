"""Rows over the same passages, computed once: losses and gradients are those of each alone."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_roles import build
from hypothesis import given
from hypothesis import strategies as st

from clara_cli.core.batch import AnswerExample, answer_batch, text_batch
from clara_cli.core.losses import IGNORE
from clara_cli.core.shared_prefix import attention_mask, pack, shared_length
from clara_cli.core.stage_losses import read_memory_loss, read_text_loss

TEXTS = (
    "Pinewick lies on the Arle. Its mayor is Odette Marr.",
    "Larchmouth has a harbour and two mills.",
)
QUESTIONS = [
    ("Who is mayor of Pinewick?", "Odette Marr", TEXTS[:1]),
    ("On which river does Pinewick lie?", "the Arle", TEXTS[:1]),
    ("What has Larchmouth?", "a harbour", TEXTS),
    ("How many mills has Larchmouth?", "two", TEXTS),
    ("Who is it?", "nobody", TEXTS[1:]),
]
EXAMPLES = [AnswerExample(question, answer, texts) for question, answer, texts in QUESTIONS]


def loss_and_gradients(model, batch, read) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    losses = read(model, batch)
    losses.loss.backward()
    return losses.loss.item(), {n: p.grad for n, p in model.trained_parameters().items()}


@pytest.mark.parametrize("kind", ["text", "memory"])
def test_losses_and_gradients_are_those_of_the_rows_one_by_one(tiny_backbone, kind):
    model = build(tiny_backbone)
    model.train_only(("compressor", "generator"), memory=True)
    if kind == "text":
        batch, read = text_batch(model.prompter, EXAMPLES, 2048, 5), read_text_loss
    else:
        batch = answer_batch(model.prompter, EXAMPLES, 2, 2048)
        read = lambda m, b: read_memory_loss(m, b, 0.1)  # noqa: E731
    packed = pack(batch.rows, batch.labels, batch.contexts)
    assert len(packed) == 3, "questions over the same passages share a row"
    together, slopes = loss_and_gradients(model, batch, read)
    batch.contexts = list(range(len(EXAMPLES)))
    alone, expected = loss_and_gradients(model, batch, read)
    assert together == pytest.approx(alone, rel=1e-5)
    for name, slope in slopes.items():
        assert (slope is None) == (expected[name] is None), name
        if slope is not None:
            torch.testing.assert_close(slope, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_backbone_that_ignores_positions_is_read_row_by_row(tiny_backbone, monkeypatch):
    model = build(tiny_backbone)
    inner = model.causal_lm.model.forward

    def without_positions(*args, position_ids=None, **kwargs):
        return inner(*args, **kwargs)

    monkeypatch.setattr(model.causal_lm.model, "forward", without_positions)
    assert not model.can_share_prefixes(100)


def test_rows_longer_than_a_sliding_window_are_not_packed(tiny_backbone):
    model = build(tiny_backbone)
    model.causal_lm.config.sliding_window = 64
    assert model.can_share_prefixes(64) and not model.can_share_prefixes(65)


rows_of_two = st.lists(st.integers(0, 3), min_size=2, max_size=12)


@given(st.lists(st.tuples(rows_of_two, st.integers(1, 12), st.integers(0, 2)), min_size=1))
def test_every_target_is_predicted_once_from_what_precedes_it(drawn):
    rows = [ids for ids, _, _ in drawn]
    labels = [
        [IGNORE if i < first else token for i, token in enumerate(ids)] for ids, first, _ in drawn
    ]
    packed = pack(rows, labels, [context for _, _, context in drawn], least_saved=1)
    mask_P1TT = attention_mask(packed, torch.float32, torch.device("cpu"))
    seen = []
    for row, mask_TT in zip(packed, mask_P1TT[:, 0], strict=True):
        for place, target in enumerate(row.targets):
            if target == IGNORE:
                continue
            visible = [row.ids[i] for i in range(len(row.ids)) if mask_TT[place, i] == 0]
            assert row.positions[place] == len(visible) - 1
            seen.append((visible, target))
    expected = [
        (ids[:i], ids[i])
        for ids, lab in zip(rows, labels, strict=True)
        for i in range(1, len(ids))
        if lab[i] != IGNORE
    ]
    assert sorted(seen) == sorted(expected)


def test_nothing_that_is_a_target_is_shared():
    rows = [[1, 2, 3, 4], [1, 2, 3, 4]]
    labels = [[IGNORE, IGNORE, 3, 4]] * 2
    assert shared_length(rows, labels) == 1
