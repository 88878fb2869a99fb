"""Attention of packed rows, against the formula: softmax over a segment's past and itself, and nothing else."""

from __future__ import annotations

import pytest
import torch

from rag.packed import ROUND, Prefill, Segment, Slots, Step, over

HEADS, SHARED, SIZE = 4, 2, 8


def drawn(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [1, heads, count, size]; two query heads share a key head."""
    shapes = [(1, HEADS, count, SIZE), (1, SHARED, count, SIZE), (1, SHARED, count, SIZE)]
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """[heads, queries, size], the queries standing at the end of the keys."""
    k, v = (t.repeat_interleave(HEADS // SHARED, 0) for t in (k, v))
    at, of = torch.arange(k.shape[1])[None, :], torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
    seen = (at <= of) & (at > of - (window or 10**6))
    return (q @ k.transpose(1, 2) * 0.5).masked_fill(~seen, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("past", [0, 1, 7, 31, 32, 33, 70])
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 40])
def test_a_segment_sees_its_past_and_itself_whatever_stands_around(past: int, size: int, window: int | None) -> None:
    """Before it another segment, behind it another or the end of the row; the slot is full of other numbers."""
    generator = torch.Generator().manual_seed(past * 100 + size)
    cache = Slots(3, past + size)
    before, after = 3, size % 5  # every fifth length ends the row
    q, k, v = drawn(before + size + after, generator)
    keys, values = cache.of(0, k, v)
    assert keys.shape[2] >= past + size and keys.shape[2] % ROUND == 0
    keys.normal_(generator=generator), values.normal_(generator=generator)
    old = keys[1, :, :past].clone(), values[1, :, :past].clone()
    segments = [Segment([0] * before), Segment([0] * size, past, 1, 2), Segment([0] * after)]
    out = Prefill(cache, segments[: 3 if after else 2]).attend(0, q, k, v, 0.5, window)
    mine = slice(before, before + size)
    all_k, all_v = (torch.cat([a, b[0, :, mine]], 1) for a, b in zip(old, (k, v), strict=True))
    expected = formula(q[0, :, mine], all_k, all_v, window)
    torch.testing.assert_close(out[0, mine].transpose(0, 1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys[2, :, : past + size], all_k, atol=0, rtol=0)
    torch.testing.assert_close(values[2, :, : past + size], all_v, atol=0, rtol=0)
    assert out.shape == (1, before + size + after, HEADS, SIZE)


@pytest.mark.parametrize("window", [None, 5])
def test_a_step_sees_as_much_of_each_slot_as_was_written(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [0, 40, 31, 32]
    cache = Slots(4, 41)
    q, k, v = drawn(4, generator)
    keys, values = cache.of(0, k, v)
    keys.normal_(generator=generator), values.normal_(generator=generator)
    before = keys.clone(), values.clone()
    longest = 41 + over(41, q.device)
    mask = (torch.arange(longest) <= torch.tensor(lengths)[:, None])[:, None, None, :]
    plan = Step(cache, torch.tensor(lengths), torch.arange(4), mask, longest)
    out = plan.attend(0, q, k, v, 0.5, window)
    for i, length in enumerate(lengths):
        all_k, all_v = (
            torch.cat([b[i, :, :length], t[0, :, i : i + 1]], 1) for b, t in zip(before, (k, v), strict=True)
        )
        expected = formula(q[0, :, i : i + 1], all_k, all_v, window)
        torch.testing.assert_close(out[0, i][:, None], expected, atol=1e-5, rtol=1e-4)


def test_only_the_processor_is_rounded_for() -> None:
    cpu = torch.device("cpu")
    assert [over(n, cpu) for n in (1, 31, 32, 33, 250)] == [31, 1, 0, 31, 6]
    assert over(250, torch.device("cuda")) == 0
