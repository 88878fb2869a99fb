"""Fewer passes over a layer's values: the same values but for rounding, whatever wraps the layers, and training as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rag import fused, prepacked
from rag.adapters_tokens import fold

torch = pytest.importorskip("torch")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")
pytestmark = pytest.mark.usefixtures("kernels")


def block(act: str = "silu", *, bias: bool = False) -> Any:
    """A norm and a gated MLP, as a layer of Llama has them."""
    from transformers import LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=48, intermediate_size=80, hidden_act=act, mlp_bias=bias, num_attention_heads=2)
    made = torch.nn.Sequential(llama.LlamaRMSNorm(48, eps=1e-5), llama.LlamaMLP(config)).bfloat16().eval()
    torch.nn.init.normal_(made[0].weight)
    return made


def changed(model: Any) -> list[str]:
    return [
        type(m).__name__ for m in model.modules() if vars(m).get("forward") and m.forward.__module__ == fused.__name__
    ]


def exact(model: Any, x: Any) -> Any:
    """In double precision."""
    return copy.deepcopy(model).double()(x.double())


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 48), (2, 70, 48), (0, 48)])
def test_values_are_those_of_the_model_and_as_near_to_the_exact_ones(shape: tuple[int, ...]) -> None:
    plain = block()
    model = copy.deepcopy(plain)
    assert prepacked.prepack(model) and changed(model) == ["LlamaRMSNorm", "LlamaMLP"]
    x = 3 * torch.randn(shape).bfloat16()
    before = x.clone()
    with torch.inference_mode():
        ours, theirs, true = model(x), plain(x), exact(plain, x)
    assert torch.equal(x, before), "what is scaled in place is a copy"
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if x.numel():
        assert (ours - theirs).abs().max() <= 2 * fused.TOLERANCE * theirs.abs().max()
        assert (ours.double() - true).abs().mean() <= 1.1 * (theirs.double() - true).abs().mean()


def test_a_norm_by_hand() -> None:
    model = torch.nn.Sequential(llama.LlamaRMSNorm(2, eps=0.0), torch.nn.Linear(2, 2)).bfloat16()
    assert prepacked.prepack(model) and changed(model) == ["LlamaRMSNorm"]
    model[0].weight.data = torch.tensor([2.0, 0.5]).bfloat16()
    with torch.inference_mode():
        # the root of the mean square of (1, 7) is 5
        assert torch.allclose(
            model[0](torch.tensor([[1.0, 7.0]]).bfloat16()).float(), torch.tensor([[0.4, 0.7]]), rtol=1e-2
        )


def test_gradients_go_the_ordinary_way() -> None:
    plain = block()
    model = copy.deepcopy(plain)
    assert prepacked.prepack(model)
    x = torch.randn(4, 48).bfloat16()
    for each in (model, plain):
        each(x).float().square().mean().backward()
    assert torch.equal(model[1].gate_proj.weight.grad, plain[1].gate_proj.weight.grad)
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad)


def test_an_adapter_takes_part_while_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    model = block()
    assert prepacked.prepack(model)
    x = torch.randn(5, 48).bfloat16()
    with torch.inference_mode():
        alone = model(x)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["gate_proj", "down_proj"]))
    torch.nn.init.normal_(model[1].gate_proj.lora_B["default"].weight)
    torch.nn.init.normal_(model[1].down_proj.lora_B["default"].weight)
    with torch.inference_mode():
        on = tuned(x)
        tuned.base_model.disable_adapter_layers()
        off = tuned(x)
        tuned.base_model.enable_adapter_layers()
        again = tuned(x)
        assert fold(tuned, 1 << 20) is not None  # as adapters with tokens of their own are served
        calls = []
        monkeypatch.setattr(prepacked, "held", lambda layer, held=prepacked.held: calls.append(layer) or held(layer))
        merged = tuned(x)
    assert torch.equal(off, alone) and torch.equal(on, again)
    assert len(calls) == 3, "gate, up and down, in the fused way"
    assert (merged - on).abs().max() <= 4 * fused.TOLERANCE * on.abs().max()
    assert (on - off).abs().max() > 0.1 * off.abs().max()


def test_what_is_left_alone() -> None:
    gelu, biased = block("gelu"), block(bias=True)
    assert prepacked.prepack(gelu) and changed(gelu) == ["LlamaRMSNorm"]
    assert prepacked.prepack(biased) and changed(biased) == ["LlamaRMSNorm"]
    wide = block().float()
    assert not prepacked.prepack(wide) and changed(wide) == []


def test_a_module_that_only_looks_alike_is_found_out() -> None:
    class OtherRMSNorm(llama.LlamaRMSNorm):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) + self.weight  # as Gemma: one more than the weight says

    class OtherMLP(llama.LlamaMLP):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return super().forward(x) + x

    model = block()
    model[0].__class__, model[1].__class__ = OtherRMSNorm, OtherMLP
    model[0].weight.data.fill_(1)
    assert prepacked.prepack(model) and changed(model) == []
