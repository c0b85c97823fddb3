"""Index keys: their numbers by hand, their freezing, their refusals."""

from __future__ import annotations

import pytest
import torch

from clara_cli.errors import ClaraError, UsageError
from clara_cli.search.keys import KEY_RULES, make_key, make_state


def test_mean_by_hand() -> None:
    memory_BMD = torch.tensor([[[4.0, 0.0], [2.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    keys_BF = make_key("mean", memory_BMD, make_state("mean", 2, 2))
    assert keys_BF[0].tolist() == pytest.approx([0.6, 0.8])
    assert keys_BF[1].tolist() == [0, 0]


def test_projection_keeps_cosines_and_is_frozen_by_its_seed() -> None:
    state = make_state("projection", 4, 64, width=1024, seed=3)
    assert state["projection_PF"].shape == (256, 1024)
    memory_BMD = torch.randn(20, 4, 64, generator=torch.Generator().manual_seed(0))
    memory_BMD[10:] += memory_BMD[:10]
    keys_BF = make_key("projection", memory_BMD, state)
    flat_BP = torch.nn.functional.normalize(memory_BMD.flatten(1))
    error = (keys_BF @ keys_BF.T - flat_BP @ flat_BP.T).abs().max()
    assert error < 0.15 and keys_BF.dtype == torch.float32
    again = make_state("projection", 4, 64, width=1024, seed=3)
    assert torch.equal(again["projection_PF"], state["projection_PF"])
    assert not torch.equal(
        make_state("projection", 4, 64, width=1024, seed=4)["projection_PF"],
        state["projection_PF"],
    )


@pytest.mark.parametrize("rule", KEY_RULES)
def test_keys_have_unit_length(rule: str) -> None:
    state = make_state(rule, 3, 8, width=16)
    keys_BF = make_key(rule, torch.randn(5, 3, 8).bfloat16(), state)
    assert keys_BF.norm(dim=-1).tolist() == pytest.approx([1] * 5)
    with pytest.raises(ClaraError, match="not finite"):
        make_key(rule, torch.full((1, 3, 8), float("inf")), state)


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="'projektion'") as caught:
        make_state("projektion", 2, 2)
    assert "'projection'" in caught.value.hint
