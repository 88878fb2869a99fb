"""Steps of a layer that the processor does in one pass: the gated MLP's activation and product, and RMSNorm's scaling.

In a long prompt much of the time goes to steps between the products, each of which reads and writes everything once
more (what this brings: `benchmarks/fused.py`). The gate's activation and the product of both halves become part of
oneDNN's products (rounded to bf16 once, where the model's own code rounds three times), and RMSNorm works in place.
Only what was prepacked (`rag.prepacked`) is changed, and only where a trial gives what the model's own code gives;
passes that want gradients go the ordinary way.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HALVES = ("gate_proj", "up_proj", "down_proj")
TOLERANCE = 2**-6  # of the largest value: two roundings to bf16, of eight bits each


def fuse(model: Any) -> int:
    """Let the gated MLPs and the RMSNorms of a prepacked model run in fewer passes; how many modules now do."""
    same: dict[type, bool] = {}
    changed = 0
    for module in list(model.modules()):
        forward = _mlp if _gated(module) else _norm if _rms(module) else None
        if forward is None:
            continue
        kind = type(module)
        if kind not in same:
            same[kind] = _agrees(module, forward)
        if same[kind]:
            module.forward = MethodType(forward, module)
            changed += 1
    return changed


def _gated(module: Any) -> bool:
    """Whether a module is down(silu(gate(x)) · up(x)) by its parts; the trial says whether it is by its values."""
    parts = [_linear(getattr(module, name, None)) for name in HALVES]
    activation = type(getattr(module, "act_fn", None)).__name__
    return all(part is not None for part in parts) and activation in ("SiLU", "SiLUActivation")


def _rms(module: Any) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _linear(layer: Any) -> Any:
    """The prepacked linear layer without bias that this is, or that stands for it with an adapter around it: one that
    is off, or whose product the weight holds already; else None."""
    if hasattr(layer, "base_layer"):
        return _linear(layer.base_layer) if layer.disable_adapters != layer.merged else None
    return layer if hasattr(layer, "kept") and layer.bias is None else None


def _agrees(module: Any, forward: Any) -> bool:
    """Whether both ways give the same on numbers drawn at random, but for rounding."""
    import torch

    weight = (module.gate_proj if _gated(module) else module).weight
    x = torch.randn(1, 40, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.inference_mode():
        try:
            theirs, ours = type(module).forward(module, x).float(), forward(module, x).float()
        except (RuntimeError, NotImplementedError, AttributeError):  # no such kernel, or a module of another make
            return False
        return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max())


def _mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    import torch

    from rag.prepacked import held, product

    gate, up, down = (_linear(getattr(self, name)) for name in HALVES)
    given = gate is not None and up is not None and down is not None and x.dtype == gate.weight.dtype
    if torch.is_grad_enabled() or not given or not x.numel():
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    gated = torch.ops.mkldnn._linear_pointwise(x, held(gate), None, "swish", [], "")
    both = torch.ops.mkldnn._linear_pointwise.binary(x, gated, held(up), None, "mul")
    return product(both, held(down))


def _norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Zhang and Sennrich 2019, as transformers' Llama rounds it: scaled in fp32, rounded, times the weight."""
    import torch

    if torch.is_grad_enabled() or x.dtype != self.weight.dtype or x.dtype == torch.float32:
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.rsqrt(length * length * (1 / x.shape[-1]) + self.variance_epsilon)
    return wide.mul_(scale).to(x.dtype).mul_(self.weight)
