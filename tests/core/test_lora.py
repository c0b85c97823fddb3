"""LoRA's one product against PEFT's own operations."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from clara_cli.core.lora import is_plain, train_fast


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=bias), nn.Linear(40, 24, bias=bias)

    def forward(self, x):
        return self.second(torch.nn.functional.silu(self.first(x)))


def adapted(bias: bool = False, dtype: torch.dtype = torch.float32, **settings) -> nn.Module:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], **settings)
    model = get_peft_model(Net(bias).to(dtype), config)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def layers(model):
    return [m for m in model.modules() if hasattr(m, "lora_A")]


def run(model, x):
    """(output, gradients by name, gradient of the input)."""
    model.zero_grad()
    x = x.clone().requires_grad_(True)
    torch.manual_seed(5)
    y = model(x)
    (y.float() ** 2).sum().backward()
    return y.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, x.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_and_gradients_are_pefts(bias, dropout):
    x = torch.randn(3, 5, 24)
    expected = run(adapted(bias, lora_dropout=dropout).train(), x)
    fast = adapted(bias, lora_dropout=dropout).train()
    for layer in layers(fast):
        train_fast(layer)
    y, slopes, slope_x = run(fast, x)
    torch.testing.assert_close(y, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope_x, expected[2], rtol=1e-4, atol=1e-4)
    assert slopes.keys() == expected[1].keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, expected[1][name], rtol=1e-4, atol=1e-4, msg=name)


def test_gradients_are_right_in_double_precision():
    model = adapted(dtype=torch.float64, lora_dropout=0.0)
    for layer in layers(model):
        train_fast(layer)
    model.double()
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    a = layers(model)[0].lora_A["default"].weight
    assert torch.autograd.gradcheck(lambda x, _: model(x), (x, a))


def test_an_input_is_kept_once_and_in_its_own_type():
    model = adapted(dtype=torch.bfloat16, lora_dropout=0.0).train()
    for layer in layers(model):
        train_fast(layer)
    kept = []

    def note(tensor):
        kept.append((tensor.shape, tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model.base_model.model.first(torch.randn(7, 24, dtype=torch.bfloat16))
    assert [dtype for shape, dtype in kept if shape == (7, 24)] == [torch.bfloat16]


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_lora_stays_with_peft(settings):
    model = adapted(bias=True, **settings)
    assert not any(is_plain(layer, "default") for layer in layers(model))
    x = torch.randn(2, 24)
    before = model(x)
    for layer in layers(model):
        train_fast(layer)
    assert torch.equal(model(x), before)


def test_reading_goes_through_peft(monkeypatch):
    model = adapted(lora_dropout=0.0)
    for layer in layers(model):
        train_fast(layer)
    monkeypatch.setattr("clara_cli.core.lora.LoraProduct.apply", None)
    with torch.no_grad():
        model(torch.randn(2, 24))
