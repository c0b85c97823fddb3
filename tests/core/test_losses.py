"""The losses by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clara_cli.core import losses
from clara_cli.core.losses import (
    IGNORE,
    alignment_mse,
    answer_nll,
    hidden_kl,
    hidden_nll,
    infonce,
    labelled_positions,
)


def test_alignment_is_between_means_over_attended_positions():
    memory = torch.tensor([[[1.0, 3.0], [3.0, 5.0]]])
    hidden = torch.tensor([[[0.0, 0.0], [2.0, 2.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert alignment_mse(memory, hidden, mask).item() == pytest.approx(
        ((2 - 1) ** 2 + (4 - 1) ** 2) / 2
    )


def test_alignment_of_a_batch_is_the_mean_of_its_single_values_and_trains_both_sides():
    memory, hidden = (
        torch.randn(3, 2, 4, requires_grad=True),
        torch.randn(3, 5, 4, requires_grad=True),
    )
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    whole = alignment_mse(memory, hidden, mask)
    single = [
        alignment_mse(memory[i : i + 1], hidden[i : i + 1], mask[i : i + 1]) for i in range(3)
    ]
    assert whole.item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)
    whole.backward()
    assert memory.grad.abs().sum() > 0 and hidden.grad[0, :3].abs().sum() > 0
    assert hidden.grad[0, 3:].abs().sum() == 0


def test_nll_shifts_by_one_and_means_over_labelled_tokens():
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]))
    labels = torch.tensor([[IGNORE, 1, 0]])
    expected = -(math.log(0.5) + math.log(0.25)) / 2
    assert answer_nll(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_nll_without_a_label_is_an_error_not_nan():
    with pytest.raises(ValueError, match="no labelled token"):
        answer_nll(torch.zeros(1, 3, 2), torch.full((1, 3), IGNORE))


def test_infonce_by_hand_with_several_positives():
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    positives = torch.tensor([[1, 0, 1], [0, 0, 0]])
    e = [math.exp(v / 0.5) for v in (1, 2, 3)]
    expected = -math.log((e[0] + e[2]) / sum(e))
    assert infonce(scores, positives, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_infonce_without_any_positive_is_zero_with_a_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    loss = infonce(scores, torch.zeros(2, 3), 0.02)
    loss.backward()
    assert loss.item() == 0 and scores.grad.abs().sum() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.sampled_from([0.02, 0.5]))
def test_infonce_gradient_is_the_difference_of_two_softmaxes(seed, count, temperature):
    """d loss / d score = (softmax over all - softmax over the golds) / T, a row at a time in
    float64; candidates that do not exist get none."""
    seeded = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, count, generator=seeded) * 2 - 1
    positives = torch.rand(3, count, generator=seeded) < 0.4
    positives[0, 0], positives[1] = True, False
    scores[2, -1], positives[2, -1] = -torch.inf, False
    leaf = scores.clone().requires_grad_()
    infonce(leaf, positives, temperature).backward()
    rows = [row for row in range(3) if positives[row].any()]
    expected = torch.zeros(3, count, dtype=torch.float64)
    for row in rows:
        weights = torch.exp((scores[row].double() - scores[row].max()) / temperature)
        among = weights * positives[row]
        share = weights / weights.sum() - among / among.sum()
        expected[row] = share / temperature / len(rows)
    assert (leaf.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-4


@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_the_chunked_loss_and_its_gradient_are_those_of_all_logits(monkeypatch, chunk):
    """Chunks of one position, of three with a rest, and of all; a head that is not linear."""
    monkeypatch.setattr(losses, "CHUNK_VALUES", chunk)
    seeded = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 6, generator=seeded)
    labels = torch.randint(0, 10, (3, 5), generator=seeded)
    labels[0], labels[1, :3] = IGNORE, IGNORE

    def head(hidden):
        return 3 * torch.tanh(hidden @ weight.T / 3)

    found, expected = (torch.randn(3, 5, 6, generator=seeded.manual_seed(1)) for _ in range(2))
    made = hidden_nll(*labelled_positions(found.requires_grad_(), labels), head)
    plain = answer_nll(head(expected.requires_grad_()), labels)
    assert made.item() == pytest.approx(plain.item(), rel=1e-6)
    (made * 0.3).backward()
    (plain * 0.3).backward()
    assert (found.grad - expected.grad).abs().max() < 1e-7
    with torch.no_grad():
        again = hidden_nll(*labelled_positions(found, labels), head)
    assert again.item() == pytest.approx(plain.item(), rel=1e-6)
    with pytest.raises(ValueError, match="no labelled token"):
        hidden_nll(*labelled_positions(found, torch.full((3, 5), IGNORE)), head)


@pytest.mark.parametrize("chunk", [1, 30, 10_000])
def test_the_chunked_divergence_is_that_of_all_logits(monkeypatch, chunk):
    """Against torch's own, of the teacher's predictions to the student's; the teacher stands."""
    monkeypatch.setattr(losses, "CHUNK_VALUES", chunk)
    seeded = torch.Generator().manual_seed(0)
    weight, teacher = torch.randn(10, 6, generator=seeded), torch.randn(7, 6, generator=seeded)

    def head(hidden):
        return 3 * torch.tanh(hidden @ weight.T / 3)

    found, expected = (torch.randn(7, 6, generator=seeded.manual_seed(1)) for _ in range(2))
    taught = teacher.clone().requires_grad_()
    made = hidden_kl(found.requires_grad_(), taught, head)
    plain = F.kl_div(
        head(expected.requires_grad_()).log_softmax(-1),
        head(teacher).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    assert made.item() == pytest.approx(plain.item(), rel=1e-5)
    (made * 0.3).backward()
    (plain * 0.3).backward()
    assert (found.grad - expected.grad).abs().max() < 1e-7
    assert taught.grad is None
    assert hidden_kl(teacher, teacher, head).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no labelled token"):
        hidden_kl(found[:0], teacher[:0], head)


def test_the_chunked_loss_never_holds_all_logits(monkeypatch):
    widest = []

    def head(hidden):
        widest.append(hidden.shape[0])
        return hidden.repeat(1, 4)

    monkeypatch.setattr(losses, "CHUNK_VALUES", 64)
    hidden_nll(torch.randn(80, 8, requires_grad=True), torch.ones(80).long(), head).backward()
    assert max(widest) == 2 and sum(widest) == 1 + 80
