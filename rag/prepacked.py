"""bf16 weights kept in the layout in which the processor's matrix unit reads them.

oneDNN brings a weight into that layout at every product; where an answer is decoded token by token that costs about as
much as the product. Here each linear layer keeps its weight in both layouts. A switched or changed weight is seen and
laid out anew; training (any pass that wants gradients) goes the ordinary way.
"""

from __future__ import annotations

import time
from types import MethodType
from typing import TYPE_CHECKING, Any

from rag.fused import fuse
from rag.hardware import machine_key
from rag.starters import read_cache, write_cache

if TYPE_CHECKING:
    import torch

MOST_BYTES = 1 << 30
"""Larger models stay as they are: the second layout takes as much memory as the first."""
ROWS = 32  # what the layout is made for; measured: as good for 1 and for 500 rows
KEPT = 8  # weights of one layer: the base's, and those of adapters that take turns at every token
MARGIN = 1.1  # at least this much faster, else it is not worth the memory


class Kept(dict[tuple[int, int], "tuple[torch.Tensor, torch.Tensor]"]):
    """(address, version) of a weight → the weight, so that its address stays its own, and its second layout."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()  # a copied module may get other weights, and lays them out itself


def prepack(model: Any) -> bool:
    """Let the linear layers of a model keep their weights laid out; False where that cannot be or does not pay."""
    import torch

    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    small = sum(layer.weight.nbytes for layer in layers) <= MOST_BYTES
    plain = all(layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu" for layer in layers)
    if not layers or not small or not plain or not pays():
        return False
    for layer in layers:
        layer.kept = Kept()
        layer.forward = MethodType(_forward, layer)
    fuse(model)
    return True


def forget(layer: Any, weight: torch.Tensor) -> None:
    """Let go of a weight that this layer had for a while and will not have again."""
    kept = layer.kept if hasattr(layer, "kept") else Kept()
    for key in [key for key in kept if key[0] == weight.data_ptr()]:
        del kept[key]


def pays() -> bool:
    """Whether this machine multiplies a few rows faster with laid out weights; measured once and remembered."""
    import torch

    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    key = machine_key(torch.device("cpu"))
    known = read_cache("prepacked", key)
    if isinstance(known, dict) and isinstance(known.get("pays"), bool):
        return bool(known["pays"])
    seconds = probe()
    found = seconds["plain"] > MARGIN * seconds["packed"]
    write_cache("prepacked", key, {"pays": found, "seconds": seconds})
    return found


def probe(*, layers: int = 60, rows: int = 4, rounds: int = 5) -> dict[str, float]:
    """Seconds (best of `rounds`, the two ways taking turns) of products with more weights than a cache holds."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(1536, 576, generator=generator).bfloat16() for _ in range(layers)]
    x = torch.randn(rows, 576, generator=generator).bfloat16()
    best = {"plain": float("inf"), "packed": float("inf")}
    with torch.inference_mode():
        try:
            packed = [laid_out(weight) for weight in weights]
            for _ in range(rounds):
                for name, many in (("plain", weights), ("packed", packed)):
                    begin = time.perf_counter()
                    for weight in many:
                        product(x, weight) if name == "packed" else torch.nn.functional.linear(x, weight)
                    best[name] = min(best[name], time.perf_counter() - begin)
        except (RuntimeError, NotImplementedError):  # this build or processor has no such kernel
            return best
    return best


def laid_out(weight: torch.Tensor) -> torch.Tensor:
    """A weight [outputs, inputs] in oneDNN's own layout (opaque)."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)  # type: ignore[no-any-return]


def product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` with a laid out weight; no gradients."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


def held(layer: Any) -> torch.Tensor:
    """The weight that a prepacked layer has now, laid out. What writes into `weight.data` in place, as PEFT's `merge`
    does, goes unseen once the weight was used: it must write into a copy, as `rag.adapters_tokens.fold` does."""
    weight = layer.weight
    key = (weight.data_ptr(), weight._version)
    found = layer.kept.get(key)
    if found is None:
        if len(layer.kept) >= KEPT:
            layer.kept.pop(next(iter(layer.kept)))
        found = layer.kept[key] = (weight.data, laid_out(weight.data))
    return found[1]  # type: ignore[no-any-return]


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    import torch

    weight = self.weight
    if torch.is_grad_enabled() or x.dtype != weight.dtype or not x.numel():
        return torch.nn.functional.linear(x, weight, self.bias)
    return product(x, held(self), self.bias)
