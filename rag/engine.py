"""Which forward pass serves a model: the packed one (`rag.packed`) where it is right, else the plain one.

`PlainBackend` is the textbook way (left padding, DynamicCache), which every causal model of transformers can do;
`make_backend_factory` tries the packed pass against it on a few tokens and keeps it only where both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rag.packed import ATTENTION, CPU_PREFILL_TOKENS, GPU_PREFILL_TOKENS, NotPackable, PackedBackend, register

if TYPE_CHECKING:
    import torch

CPU_SLOTS, GPU_SLOTS = 32, 128
CPU_KV_BYTES, GPU_KV_BYTES = 1 << 30, 8 << 30


class Backend(Protocol):
    """What the decoding loop needs from a model; slots are numbered from 0 to `slots` - 1."""

    slots: int
    continuous: bool
    prefill_tokens: int

    def share(self, prefix: Sequence[int]) -> None:
        """Run tokens that every later prompt begins with; `admit` then takes only what follows them."""
        ...

    def admit(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Run (slot, token ids) and return the logits after each, float32 [len(prompts), vocabulary]."""
        ...

    def step(self, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Append one token to each (slot, token); float32 logits in that order. Slots left out are free again."""
        ...


class PlainBackend:
    """Left padding and a DynamicCache: every causal model of transformers runs this way."""

    continuous = False

    def __init__(self, model: Any, *, slots: int) -> None:
        self.model, self.slots, self.device = model, slots, model.device
        self.prefill_tokens = CPU_PREFILL_TOKENS if self.device.type == "cpu" else GPU_PREFILL_TOKENS
        self._prefix: list[int] = []
        self._order: list[int] = []
        self._mask: Any = None
        self._cache: Any = None

    def share(self, prefix: Sequence[int]) -> None:
        """Nothing is saved here: the prefix is run with each prompt."""
        self._prefix = list(prefix)

    def admit(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Run a new batch; whatever was in the slots before is gone."""
        import torch

        rows = [[*self._prefix, *ids] for _, ids in prompts]
        width = max(len(row) for row in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, width - len(row) :] = torch.tensor(row)
            mask[at, width - len(row) :] = 1
        self._order, self._mask, self._cache = [slot for slot, _ in prompts], mask.to(self.device), None
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        return self._call(ids.to(self.device), positions)

    def step(self, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
        """One token for each slot; finished rows leave the batch."""
        import torch

        slots = [slot for slot, _ in tokens]
        if slots != self._order:
            index = torch.tensor([self._order.index(slot) for slot in slots], device=self.device)
            self._cache.reorder_cache(index)
            self._mask, self._order = self._mask[index], slots
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(slots), 1)], dim=1)
        ids = torch.tensor([[token] for _, token in tokens], device=self.device)
        return self._call(ids, self._mask.sum(1, keepdim=True) - 1)

    def _call(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            output = self.model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = output.past_key_values
        return output.logits[:, -1].float()


def kv_bytes_per_token(config: Any, item_bytes: int) -> int:
    """Bytes of keys and values that one token adds over all layers."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    queries = getattr(text, "num_attention_heads", None) or 1
    heads = getattr(text, "num_key_value_heads", None) or queries
    size = getattr(text, "head_dim", None) or text.hidden_size // queries
    return 2 * int(text.num_hidden_layers) * int(heads) * int(size) * item_bytes


def packable(model: Any) -> bool:
    """Whether the packed pass gives the plain pass's logits on three short prompts, prefill, prefix and steps alike."""
    import torch

    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    rope = getattr(text, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        return False  # these look at the longest sequence of the batch, so rows would change one another
    register()
    before = model.config._attn_implementation
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    prompts = [[(7 * i + 3 * j) % vocabulary for j in range(n)] for i, n in enumerate((5, 9, 2), start=1)]
    prefix = [11 % vocabulary, 5 % vocabulary, 2 % vocabulary]
    try:
        results = []
        for packed in (False, True):
            model.set_attn_implementation(ATTENTION if packed else before)
            if packed and model.config._attn_implementation != ATTENTION:
                return False
            backend: Any = PackedBackend(model, slots=3, capacity=16) if packed else PlainBackend(model, slots=3)
            backend.share(prefix)
            first = backend.admit(list(enumerate(prompts)))
            second = backend.step([(0, 4 % vocabulary), (2, 9 % vocabulary)])
            results.append(torch.cat([first, second]))
    except (NotPackable, TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        model.set_attn_implementation(before)
        return False
    plain, packed_logits = results
    spread = float((plain.max() - plain.min()).clamp(min=1e-3))
    low_precision = model.dtype in (torch.bfloat16, torch.float16)
    close = float((plain - packed_logits).abs().max()) <= (0.05 if low_precision else 1e-3) * spread
    if not close:
        model.set_attn_implementation(before)
    return close


def make_backend_factory(model: Any) -> Callable[[int, int], PackedBackend | PlainBackend]:
    """A function (capacity, rows) → backend for this model; capacity: the longest prompt and its answer, in tokens."""
    packed = packable(model)
    cpu = model.device.type == "cpu"
    budget = CPU_KV_BYTES if cpu else GPU_KV_BYTES
    per_token = kv_bytes_per_token(model.config, model.dtype.itemsize)

    def make(capacity: int, rows: int) -> PackedBackend | PlainBackend:
        slots = max(1, min(rows, CPU_SLOTS if cpu else GPU_SLOTS, budget // max(1, per_token * capacity)))
        return PackedBackend(model, slots=slots, capacity=capacity) if packed else PlainBackend(model, slots=slots)

    return make
