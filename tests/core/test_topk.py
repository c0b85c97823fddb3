"""The straight-through top-k: recorded values and gradients, and what each mask does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clara_cli.core.topk import cosines, select, straight_through_topk

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = [c for c in json.loads((FIXTURES / "topk_cases.json").read_text()) if c["fn"] == "topk"]
TENSORS = load_file(FIXTURES / "topk.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_released_mask_matches_the_recorded_values(case):
    key = case["id"]
    logits = TENSORS[f"{key}.logits"].clone().requires_grad_()
    weights, indices = straight_through_topk(logits, case["k"], case["temperature"], "released")
    weights.backward(TENSORS[f"{key}.upstream"])
    if case.get("ties"):  # which of two equal scores comes first is nobody's promise
        taken = torch.sort(logits.gather(-1, indices), descending=True).values
        best = torch.sort(logits, descending=True).values[..., : case["k"]]
        assert torch.equal(taken, best)
        return
    assert torch.equal(indices, TENSORS[f"{key}.idx"].long())
    assert (weights - TENSORS[f"{key}.W"]).abs().max() < 1e-5
    expected = TENSORS[f"{key}.grad"]
    assert (logits.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-6


def reference_gradient(scores, k, temperature, upstream):
    """d/dscores of sum(upstream * soft), the softmax of slot j over candidates not yet taken,
    by the closed form soft * (g - <soft, g>) / T, row by row in float64."""
    gradient = torch.zeros_like(scores, dtype=torch.float64)
    for b in range(scores.shape[0]):
        left = list(range(scores.shape[1]))
        for j in range(k):
            values = scores[b, left].double() / temperature
            soft = torch.exp(values - values.max())
            soft = soft / soft.sum()
            g = upstream[b, j, left].double()
            gradient[b, left] += soft * (g - (soft * g).sum()) / temperature
            left.remove(max(left, key=lambda i: scores[b, i].item()))
    return gradient


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([0.02, 0.5, 1.0]))
def test_exact_mask_gradient_against_an_independent_reference(seed, count, temperature):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, count, generator=generator) * 2 - 1
    k = 1 + seed % count
    upstream = torch.randn(2, k, count, generator=generator)
    leaf = scores.clone().requires_grad_()
    weights, indices = straight_through_topk(leaf, k, temperature)
    weights.backward(upstream)
    expected = reference_gradient(scores, k, temperature, upstream)
    assert (leaf.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-4
    hard = torch.nn.functional.one_hot(indices, count).float()
    assert (weights - hard).abs().max() < 1e-5
    assert all(len(set(row.tolist())) == k for row in indices)


def test_the_released_penalty_starves_later_slots_and_the_exact_mask_does_not():
    scores = torch.tensor([[0.9, 0.3, 0.28, 0.1]])
    upstream = torch.zeros(1, 2, 4)
    upstream[0, 1, 1] = 1.0
    gradients = {}
    for mask in ("exact", "released"):
        leaf = scores.clone().requires_grad_()
        straight_through_topk(leaf, 2, 0.02, mask)[0].backward(upstream)
        gradients[mask] = leaf.grad[0, 1].item()
    assert gradients["exact"] == pytest.approx(9.8, abs=0.1)
    assert abs(gradients["released"]) < 1e-2


@pytest.mark.parametrize(("k", "mask"), [(0, "exact"), (5, "exact"), (2, "soft")])
def test_bad_arguments_are_refused(k, mask):
    with pytest.raises(ValueError, match="k is|mask is"):
        straight_through_topk(torch.zeros(1, 4), k, 0.02, mask)


def test_a_candidate_that_does_not_exist_is_never_weighted():
    scores = torch.tensor([[0.5, -torch.inf, 0.1]], requires_grad=True)
    weights, indices = straight_through_topk(scores, 2, 0.1)
    assert indices.tolist() == [[0, 2]]
    weights[0, 0, 0].backward()
    assert scores.grad[0, 1] == 0


def test_cosine_is_of_the_flattened_memory():
    query, memory = torch.randn(2, 3, 4), torch.randn(5, 3, 4)
    scores = cosines(query, memory)
    for b in range(2):
        for n in range(5):
            a, c = query[b].flatten(), memory[n].flatten()
            assert scores[b, n].item() == pytest.approx(
                (a @ c / a.norm() / c.norm()).item(), abs=1e-6
            )


def test_selection_takes_the_memories_in_slot_order():
    memory = torch.randn(1, 3, 2, 4)
    weights, indices = straight_through_topk(torch.tensor([[0.1, 0.9, 0.5]]), 2, 0.02)
    assert indices.tolist() == [[1, 2]]
    assert torch.allclose(select(weights, memory)[0], memory[0, [1, 2]], atol=1e-5)
