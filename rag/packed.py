"""Prompts of different lengths as one row of tokens: no padding, no repeated prefix, slots that fill one by one.

Linear layers see the concatenation of all prompts; attention runs for each by itself. It hooks into transformers'
attention interface, so a model's own layers run unchanged, adapters included. `rag.engine` says where it may be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ATTENTION = "ragtune_packed"
CPU_PREFILL_TOKENS, GPU_PREFILL_TOKENS = 2048, 32768
ROUND = 32  # see `over`


@dataclass(slots=True)
class Segment:
    """A piece of one sequence in a packed row: its tokens, the slot of what came before, the slot that keeps it all."""

    ids: Sequence[int]
    past: int = 0
    past_slot: int = 0
    keep_slot: int | None = None


class Slots:
    """Keys and values of many sequences: for each layer two tensors [slots, heads, capacity, head size]."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity + -capacity % ROUND
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def of(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two tensors of a layer, made on first use in the shape of what is written. Zeros, because a masked
        position still takes part in the product with the values, and 0 × NaN is NaN."""
        if layer not in self.keys:
            self.keys[layer] = key.new_zeros(self.slots, key.shape[1], self.capacity, key.shape[3])
            self.values[layer] = value.new_zeros(self.slots, value.shape[1], self.capacity, value.shape[3])
        return self.keys[layer], self.values[layer]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot into another."""
        import torch

        with torch.inference_mode():  # the tensors were made in it, and only there may they be written to
            for tensors in (self.keys, self.values):
                for tensor in tensors.values():
                    tensor[target, :, :length] = tensor[source, :, :length]


@dataclass(slots=True)
class Prefill:
    """Attention plan of a packed row: causal within each segment and over its own past."""

    cache: Slots
    segments: Sequence[Segment]
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None
    ) -> Any:
        import torch
        import torch.nn.functional as F

        outputs, begin = [], 0
        stored = self.cache.of(layer, k, v) if any(s.past or s.keep_slot is not None for s in self.segments) else None
        for segment in self.segments:
            size, past = len(segment.ids), segment.past
            banded = window is not None and 0 < window < past + size
            square = banded or 2 * past < size  # without a past, or where one is short beside what follows
            # Positions behind the past and behind the segment round both off; causality or the mask hides them.
            held = past if square else past + over(past, q.device)
            end = begin + size
            stop = end + over(past + size if square else size, q.device)
            qs, ks, vs = _piece(q, begin, stop), _piece(k, begin, stop), _piece(v, begin, stop)
            if past and stored:
                row = slice(segment.past_slot, segment.past_slot + 1)
                ks = torch.cat([stored[0][row, :, :held], ks], dim=2)
                vs = torch.cat([stored[1][row, :, :held], vs], dim=2)
            if square and past:
                # Queries of nothing stand for the past: a square causal product is exact and needs no mask.
                qs = torch.cat([qs.new_zeros(1, qs.shape[1], past, qs.shape[3]), qs], dim=2)
            if segment.keep_slot is not None and stored:
                _keep(stored, segment, (k[0, :, begin:end], v[0, :, begin:end]))
            mask = None
            if banded and window:
                mask = _band(ks.shape[2], window, ks.device)
            elif not square:
                mask = self._behind(past, held, stop - begin, q)
            out = F.scaled_dot_product_attention(
                qs, ks, vs, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=ks.shape[1] != qs.shape[1]
            )
            skip = past if square else 0
            outputs.append(out[:, :, skip : skip + size].transpose(1, 2))
            begin = end
        return torch.cat(outputs, dim=1)

    def _behind(self, past: int, held: int, length: int, like: torch.Tensor) -> torch.Tensor:
        """[length, held + length], to be added: all of the past, and the segment up to itself; the same in every
        layer."""
        import torch

        if (past, held, length) not in self.masks:
            seen = torch.ones(length, held + length, dtype=torch.bool, device=like.device).tril(held)
            seen[:, past:held] = False
            self.masks[past, held, length] = added(seen, like)
        return self.masks[past, held, length]


@dataclass(slots=True)
class Step:
    """Attention plan of one decoding step: token i belongs to slot i, whose length before it is `lengths[i]`."""

    cache: Slots
    lengths: torch.Tensor
    rows: torch.Tensor
    mask: torch.Tensor
    longest: int
    bias: torch.Tensor | None = None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int | None
    ) -> Any:
        import torch
        import torch.nn.functional as F

        keys, values = self.cache.of(layer, k, v)
        count = q.shape[2]
        keys[self.rows, :, self.lengths] = k[0].transpose(0, 1)
        values[self.rows, :, self.lengths] = v[0].transpose(0, 1)
        if self.bias is None:
            self.bias = added(self.mask, q)
        bias = self.bias
        if window and self.longest > window:
            positions = torch.arange(self.longest, device=q.device)
            bias = added(self.mask & (positions > (self.lengths[:, None, None, None] - window)), q)
        # The query heads that share a key head stand as a short sequence, so nothing is repeated in memory.
        grouped = q[0].transpose(0, 1).reshape(count, keys.shape[1], -1, q.shape[3])
        out = F.scaled_dot_product_attention(
            grouped, keys[:count, :, : self.longest], values[:count, :, : self.longest], attn_mask=bias, scale=scale
        )
        return out.reshape(1, count, q.shape[1], -1)


def over(length: int, device: torch.device) -> int:
    """What is missing to the next length that suits the processor: its attention takes up to 1.7 times as long for
    one that is no multiple of 32 (250 against 256 positions)."""
    return -length % ROUND if device.type == "cpu" else 0


def added(seen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask as what is added to the scores, once for all layers: attention would make it of a boolean one in each."""
    import torch

    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


def _piece(t: torch.Tensor, begin: int, stop: int) -> torch.Tensor:
    """Positions `begin` to `stop` [1, heads, stop − begin, size]: a view, but for zeros behind the end of the row."""
    import torch.nn.functional as F

    piece = t[:, :, begin:stop]
    missing = stop - begin - piece.shape[2]
    return F.pad(piece, (0, 0, 0, missing)) if missing else piece


def _keep(stored: tuple[torch.Tensor, torch.Tensor], segment: Segment, new: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Write a segment's keys and values behind its past, which is copied where it stands in another slot."""
    past, slot = segment.past, segment.keep_slot
    for tensor, fresh in zip(stored, new, strict=True):
        if past and slot != segment.past_slot:
            tensor[slot, :, :past] = tensor[segment.past_slot, :, :past]
        tensor[slot, :, past : past + fresh.shape[1]] = fresh


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    import torch

    at = torch.arange(length, device=device)
    return (at[None, :] <= at[:, None]) & (at[None, :] > at[:, None] - window)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    plan: Prefill | Step | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every attention layer; without a plan it is its own sdpa."""
    if plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotPackable("attention with softcap, sinks or bias")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return plan.attend(module.layer_idx, query, key, value, scale, sliding_window), None


class NotPackable(Exception):
    """This model's attention does something that the packed plan has no words for; the plain backend serves it."""


def register() -> None:
    """Make the hook known to transformers (idempotent); plain calls on the same model keep sdpa's masks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class PackedBackend:
    """See the module's docstring. Not safe for two threads at once; each run makes its own."""

    continuous = True

    def __init__(self, model: Any, *, slots: int, capacity: int) -> None:
        self.model, self.slots = model, slots
        self.device = model.device
        self.prefill_tokens = CPU_PREFILL_TOKENS if self.device.type == "cpu" else GPU_PREFILL_TOKENS
        self._cache = Slots(slots + 1, capacity)  # the last slot holds the shared prefix
        self._prefix = 0
        self._lengths = [0] * slots  # 0: free

    def forward(self, segments: Sequence[Segment], keep: Sequence[int]) -> torch.Tensor:
        """Run the segments side by side; float32 logits at the packed positions `keep`, [len(keep), vocabulary]."""
        import torch

        ids = [token for s in segments for token in s.ids]
        positions = [p for s in segments for p in range(s.past, s.past + len(s.ids))]
        return self._call(ids, positions, torch.tensor(keep, device=self.device), Prefill(self._cache, segments))

    def _call(self, ids: list[int], positions: list[int], keep: Any, plan: Prefill | Step) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            output = self.model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device),  # 4-d: taken as it is
                use_cache=False,
                logits_to_keep=keep,
                plan=plan,
            )
            return output.logits[0].float()

    def share(self, prefix: Sequence[int]) -> None:
        """Run the common prefix once."""
        self._prefix = len(prefix)
        for begin in range(0, len(prefix), self.prefill_tokens):
            piece = prefix[begin : begin + self.prefill_tokens]
            self.forward([Segment(piece, begin, self.slots, self.slots)], [len(piece) - 1])

    def admit(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Run (slot, what follows the prefix); long prompts in pieces, so that memory stays bounded."""
        import torch

        logits: list[torch.Tensor] = []
        for group in self._groups(prompts):
            segments, keep, end = [], [], 0
            for slot, ids in group:
                head = self._feed(slot, ids)
                past_slot = self.slots if head == 0 else slot
                segments.append(Segment(ids[head:], self._prefix + head, past_slot, slot))
                end += len(ids) - head
                keep.append(end - 1)
                self._lengths[slot] = self._prefix + len(ids)
            logits.append(self.forward(segments, keep))
        return torch.cat(logits)

    def _feed(self, slot: int, ids: Sequence[int]) -> int:
        """Run all but the last piece of an overlong prompt; how many tokens that was."""
        head = 0
        while len(ids) - head > self.prefill_tokens:
            past_slot = self.slots if head == 0 else slot
            piece = ids[head : head + self.prefill_tokens]
            self.forward([Segment(piece, self._prefix + head, past_slot, slot)], [len(piece) - 1])
            head += self.prefill_tokens
        return head

    def _groups(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> list[list[tuple[int, Sequence[int]]]]:
        groups: list[list[tuple[int, Sequence[int]]]] = []
        room = 0
        for slot, ids in prompts:
            if not groups or room < len(ids):
                groups.append([])
                room = self.prefill_tokens
            groups[-1].append((slot, ids))
            room -= len(ids)
        return groups

    def step(self, tokens: Sequence[tuple[int, int]], *, park: bool = False) -> torch.Tensor:
        """One token for each slot named; others below the highest one ride along unread (`park`: and keep their place,
        else they are free)."""
        import torch

        wanted = dict(tokens)
        if not park:
            self._lengths = [length if slot in wanted else 0 for slot, length in enumerate(self._lengths)]
        count = max(wanted) + 1
        lengths = torch.tensor(self._lengths[:count], device=self.device)
        longest = max(self._lengths) + 1
        longest += over(longest, self.device)
        mask = torch.arange(longest, device=self.device) <= lengths[:, None]
        plan = Step(self._cache, lengths, torch.arange(count, device=self.device), mask[:, None, None, :], longest)
        ids = [wanted.get(slot, 0) for slot in range(count)]
        logits = self._call(ids, self._lengths[:count], 0, plan)
        for slot in wanted:
            self._lengths[slot] += 1
        return logits[[slot for slot, _ in tokens]]

    def grow(self, segments: Sequence[Segment], keep: Sequence[int]) -> torch.Tensor:
        """Append several tokens to slots in one pass; the logits after the packed positions `keep`."""
        logits = self.forward(segments, keep)
        for segment in segments:
            self._lengths[segment.past_slot] = segment.past + len(segment.ids)
        return logits

    def copy(self, source: int, target: int) -> None:
        """A second slot with what the first one holds."""
        self._cache.move(source, target, self._lengths[source])
        self._lengths[target] = self._lengths[source]

    def cut(self, slot: int, length: int) -> None:
        """Forget what a slot holds beyond `length`."""
        self._lengths[slot] = length

    def compact(self, used: Sequence[int]) -> dict[int, int]:
        """Move the highest of the used slots into holes below; {old slot: new slot} of those moved."""
        moved: dict[int, int] = {}
        holes = [slot for slot in range(max(used, default=0)) if slot not in set(used)]
        for hole, slot in zip(holes, sorted(used, reverse=True), strict=False):
            if hole >= slot:
                break
            self._cache.move(slot, hole, self._lengths[slot])
            self._lengths[hole], self._lengths[slot] = self._lengths[slot], 0
            moved[slot] = hole
        return moved
