"""Several rows in one sequence, none of which sees another: block-diagonal attention, positions from 0 in each row.

After RA-DIT (Lin et al. 2023, arXiv 2310.01352, section 2): short rows fill a forward without padding, and losses and
gradients are those of the rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tuning.distil import token_loss

if TYPE_CHECKING:
    from tuning.frozen import FrozenLayers
    from tuning.trainer import Encoded


def pack_rows(rows: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    """Rows of one step in packs of at most `budget` tokens (a longer row alone): longest first, into the first pack
    with room, which is at most 22 % more packs than needed."""
    packs: list[list[Encoded]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda r: (-len(r.ids), r.id)):
        at = next((i for i, left in enumerate(room) if left >= len(row.ids)), None)
        if at is None:
            packs.append([row])
            room.append(budget - len(row.ids))
        else:
            packs[at].append(row)
            room[at] -= len(row.ids)
    return packs


def block_mask(lengths: Sequence[int], dtype: torch.dtype, device: Any) -> torch.Tensor:
    """[1, 1, T, T] to be added to attention scores: 0 for what a token may see, its own row up to itself, else the
    lowest number of the format. Four-dimensional masks are taken as they are by sdpa and eager attention."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths)))
    at = torch.arange(len(row))
    seen = (row[:, None] == row[None, :]) & (at[:, None] >= at[None, :])
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[None, None].to(device)


def packed_loss(model: Any, rows: Sequence[Encoded], frozen: FrozenLayers | None = None) -> torch.Tensor:
    """As `tuning.trainer.answer_loss`, the summed loss (nats) of the trained tokens, in one row of tokens without
    padding. With `frozen`, it begins at the first trained layer."""
    device = next(model.parameters()).device
    lengths = [len(r.ids) for r in rows]
    begins = [sum(lengths[:i]) for i in range(len(rows))]
    if frozen is None:
        given = {"input_ids": torch.tensor([[t for r in rows for t in r.ids]], device=device)}
        dtype = model.get_input_embeddings().weight.dtype
    else:
        states = torch.cat([frozen.states(r.ids) for r in rows])[None]
        given, dtype = {"inputs_embeds": states}, states.dtype
    places = [begin + p for begin, r in zip(begins, rows, strict=True) for p in r.targets()]

    def logits() -> torch.Tensor:
        with frozen.upper() if frozen else nullcontext():
            return model(  # type: ignore[no-any-return]
                **given,
                attention_mask=block_mask(lengths, dtype, device) if len(rows) > 1 else None,
                position_ids=torch.cat([torch.arange(n) for n in lengths])[None].to(device),
                use_cache=False,
                logits_to_keep=torch.tensor([p - 1 for p in places], device=device),
            ).logits[0]

    return token_loss(model, rows, logits)
