"""The kernels give the numbers of the modules they stand in for, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.tuning.tiny import tiny_model
from tuning import kernels


def _double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_lora_linear_passes_the_numerical_gradient_check() -> None:
    torch.manual_seed(0)
    x, a, b = _double(2, 3, 5), _double(2, 5), _double(4, 2)
    w, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = F.linear(x, w, bias) + 0.5 * F.linear(F.linear(x, a), b)
    assert torch.allclose(kernels.LoraLinear.apply(x, w, bias, a, b, 0.5), expected)
    assert torch.autograd.gradcheck(lambda x, a, b: kernels.LoraLinear.apply(x, w, bias, a, b, 0.5), (x, a, b))


def test_rms_norm_passes_the_numerical_gradient_check() -> None:
    torch.manual_seed(0)
    x, w = _double(3, 6), torch.rand(6, dtype=torch.float64) + 0.5
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w
    assert torch.allclose(kernels.RmsNorm.apply(x, w, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda x: kernels.RmsNorm.apply(x, w, 1e-6), (x,))


def test_gated_down_passes_the_numerical_gradient_check() -> None:
    torch.manual_seed(0)
    gate, up, a, b = _double(3, 6), _double(3, 6), _double(2, 6), _double(4, 2)
    w, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    inner = F.silu(gate) * up
    expected = F.linear(inner, w, bias) + 0.5 * F.linear(F.linear(inner, a), b)
    assert torch.allclose(kernels.GatedDown.apply(gate, up, w, bias, a, b, 0.5), expected)
    assert torch.autograd.gradcheck(
        lambda gate, up, a, b: kernels.GatedDown.apply(gate, up, w, bias, a, b, 0.5), (gate, up, a, b)
    )


def _adapted(**settings: object) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)  # zeros would hide errors in A
    return model.train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_installed_kernels_give_the_loss_and_gradients_of_peft(dtype: torch.dtype) -> None:
    ids = torch.tensor([[2, 5, 9, 30, 31, 32, 3, 8]])
    found = []
    for install in (False, True):
        model = _adapted()
        for name, parameter in model.named_parameters():
            if "lora" not in name:
                parameter.data = parameter.data.to(dtype)
        if install:
            assert kernels.install(model) == 7 * 3 + 2 * 3 + 1 + 3  # linears, norms of layers, last norm, MLPs
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert torch.allclose(found[0][0], found[1][0], atol=tolerance)
    for name, grad in found[0][1].items():
        assert torch.allclose(grad, found[1][1][name], atol=tolerance * max(1.0, float(grad.abs().max()))), name


def test_layers_that_do_not_fit_keep_their_forward() -> None:
    for settings in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        assert kernels.install(_adapted(**settings)) == 2 * 3 + 1  # norms alone


def test_a_disabled_adapter_is_the_base() -> None:
    ids = torch.tensor([[2, 5, 9, 30]])
    base = tiny_model()(input_ids=ids).logits
    model = _adapted()
    kernels.install(model)
    with model.disable_adapter():
        assert torch.allclose(model(input_ids=ids).logits, base, atol=1e-6)
    assert not torch.allclose(model(input_ids=ids).logits, base, atol=1e-3)
