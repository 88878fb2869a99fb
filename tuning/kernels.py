"""Faster forward and backward of frozen linear layers with LoRA, RMS norms and gated MLPs; same numbers, less memory.

PEFT runs a LoRA layer as five operations and keeps three activations; here it is one autograd node that keeps its input
and the rank-r product:

    y  = x Wᵀ + s (x Aᵀ) Bᵀ
    dx = g W  + s (g B) A        dA = s (g B)ᵀ x        dB = s gᵀ (x Aᵀ)

Only forwards of module instances are replaced: parameters, names and saved files stay PEFT's own.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class LoraLinear(torch.autograd.Function):
    """A frozen linear layer plus its LoRA product; x [..., in], W [out, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.formats = a.dtype, b.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = flat @ a.t()
        out = F.linear(flat, w, bias)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, w, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, w, a, b, low = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        gb = g @ b
        da = (gb.t() @ flat).to(ctx.formats[0]).mul_(ctx.scale)
        db = (g.t() @ low).to(ctx.formats[1]).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ w
            dx.addmm_(gb, a, alpha=ctx.scale)
            dx = dx.view(ctx.shape)
        return dx, None, None, da, db, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class RmsNorm(torch.autograd.Function):
    """x / rms(x) · w with a frozen w; the mean square in fp32, rounded to x's format before w, as transformers does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:  # type: ignore[override]
        wide = _wide(x)
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, w, inverse)
        return (wide * inverse).to(x.dtype).mul_(w)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w, inverse = ctx.saved_tensors
        gw = _wide(grads[0] * w)
        unit = _wide(x) * inverse
        along = (gw * unit).mean(-1, keepdim=True)
        return gw.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None


class GatedDown(torch.autograd.Function):
    """The lower half of a gated MLP: (silu(gate) · up) through a frozen linear layer plus its LoRA product.

    The product silu(gate) · up, the widest activation of a layer, is computed again in the backward pass.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.formats = a.dtype, b.dtype
        a, b = a.to(gate.dtype), b.to(gate.dtype)
        flat = F.silu(gate).mul_(up).reshape(-1, gate.shape[-1])
        low = flat @ a.t()
        out = F.linear(flat, w, bias)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(gate, up, w, a, b, low)
        ctx.scale = scale
        return out.view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, w, a, b, low = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        gb = g @ b
        db = (g.t() @ low).to(ctx.formats[1]).mul_(ctx.scale)
        slope = torch.sigmoid(gate)
        active = slope * gate
        dx = (g @ w).addmm_(gb, a, alpha=ctx.scale).view(gate.shape)
        da = (gb.t() @ (active * up).reshape(-1, gate.shape[-1])).to(ctx.formats[0]).mul_(ctx.scale)
        dup = dx * active
        # d silu(z)/dz = σ + z σ (1 − σ), with z σ = active
        dgate = active.sub_(active * slope).add_(slope).mul_(dx).mul_(up)
        return dgate, dup, None, None, da, db, None


def install(model: nn.Module) -> int:
    """Replace the forwards that can be; returns how many. What does not fit exactly is left as it is.

    Left alone: quantised base layers, DoRA, LoRA dropout or bias, more than one adapter, trained norms.
    """
    from peft.tuners.lora import Linear as PeftLinear

    done = 0
    for module in model.modules():
        if isinstance(module, PeftLinear) and _plain(module):
            module.forward = MethodType(_lora_forward, module)
        elif _is_rms_norm(module):
            module.forward = MethodType(_norm_forward, module)
        elif _is_gated_mlp(module):
            module.forward = MethodType(_mlp_forward, module)
        else:
            continue
        done += 1
    return done


def _plain(module: Any) -> bool:
    names = list(module.active_adapters)
    if len(names) != 1 or names[0] not in module.lora_A or module.lora_variant:
        return False
    name = names[0]
    return (
        type(module.base_layer) is nn.Linear
        and not module.base_layer.weight.requires_grad
        and isinstance(module.lora_dropout[name], nn.Identity)
        and module.lora_B[name].bias is None
    )


def _is_rms_norm(module: nn.Module) -> bool:
    # The Llama family: Gemma's norms add 1 to the weight and round later, and have other names
    named = type(module).__name__ in (
        "LlamaRMSNorm",
        "MistralRMSNorm",
        "Qwen2RMSNorm",
        "Qwen3RMSNorm",
        "SmolLM3RMSNorm",
    )
    return named and not module.weight.requires_grad


def _is_gated_mlp(module: nn.Module) -> bool:
    from peft.tuners.lora import Linear as PeftLinear

    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    if not isinstance(module.down_proj, PeftLinear) or not _plain(module.down_proj):
        return False
    return type(module).__name__ in ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP") and (
        isinstance(module.act_fn, nn.SiLU) or type(module.act_fn).__name__ in ("SiLUActivation", "SiLU")
    )


def _lora_forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or not torch.is_grad_enabled():
        return type(self).forward(self, x, *args, **kwargs)
    name = self.active_adapters[0]
    base = self.base_layer
    return LoraLinear.apply(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name])
    )


def _norm_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return RmsNorm.apply(x, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if down.disable_adapters or down.merged or not torch.is_grad_enabled():
        return down(self.act_fn(gate) * up)
    name = down.active_adapters[0]
    base = down.base_layer
    return GatedDown.apply(
        gate, up, base.weight, base.bias, down.lora_A[name].weight, down.lora_B[name].weight, float(down.scaling[name])
    )
