"""Teacher-forced log-probabilities: how likely the model finds given answers, token by token.

The output layer runs only on positions that predict a completion token, in bounded pieces. What all prompts have in
common runs once, and so does what some of them share beyond that: a prompt with several completions, a passage that
stands in front of several questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.decode import MIN_SHARED, common_prefix
from rag.engine import PlainBackend
from rag.errors import NumericalError
from rag.packed import PackedBackend, Segment

if TYPE_CHECKING:
    import torch

KEPT_POSITIONS = 512  # of these, fp32 logits over 50k tokens take 100 MB
GROUPS = 8
"""Groups of rows whose common beginnings are held at once."""
Row = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows whose prompts have their first `stem` tokens in common; of each prompt at least one token is left."""

    rows: Sequence[int]
    stem: int


@dataclass(frozen=True, slots=True)
class Place:
    """A row to be scored: its number, how many of its prompt's tokens were run before, and the slot that holds them."""

    row: int
    past: int
    slot: int


def score_rows(make_backend: Callable[[int, int], Any], rows: Sequence[Row]) -> list[np.ndarray]:
    """Natural log-probabilities of the second part's tokens after the first part's, one float32 array for each row.

    Raises:
        NumericalError: a value is not finite, named by row.
    """
    if not rows:
        return []
    shared = common_prefix([prompt for prompt, _ in rows]) if len(rows) > 1 else 0
    shared = shared if shared >= MIN_SHARED else 0
    groups, alone = _grouped(rows, shared)
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    backend = make_backend(longest, min(len(groups), GROUPS) + 1)
    results: dict[int, np.ndarray] = {}
    if isinstance(backend, PlainBackend):
        results = {i: _score_plain(backend.model, row) for i, row in enumerate(rows)}
    else:
        backend.share(rows[0][0][:shared])
        _score_packed(backend, rows, shared, groups, alone, results)
    bad = [i for i, values in results.items() if not np.isfinite(values).all()]
    if bad:
        raise NumericalError(f"The model gave no finite log-probability for rows {sorted(bad)[:10]}. Try --dtype fp32.")
    return [results[i] for i in range(len(rows))]


def _grouped(rows: Sequence[Row], shared: int) -> tuple[list[Group], list[int]]:
    """Rows whose prompts go on alike behind what all share: several completions of one prompt, or several questions
    behind one passage; and the rows that stand alone."""
    order = sorted(range(len(rows)), key=lambda i: (list(rows[i][0]), len(rows[i][1])))
    groups: list[Group] = []
    alone: list[int] = []
    members: list[int] = []
    stem = 0
    for i in [*order, None]:
        if members and i is not None:
            common = common_prefix([rows[members[0]][0], rows[i][0]])
            if common >= shared + MIN_SHARED:
                stem = min(stem, common)
                members.append(i)
                continue
        if len(members) > 1:
            groups.append(Group(members, stem))
        else:
            alone += members
        members = [i] if i is not None else []
        stem = len(rows[i][0]) - 1 if i is not None else 0
    return groups, alone


def _score_packed(
    backend: PackedBackend,
    rows: Sequence[Row],
    shared: int,
    groups: Sequence[Group],
    alone: Sequence[int],
    results: dict[int, np.ndarray],
) -> None:
    """What all prompts share was run; then the beginning of each group, then what is scored."""
    slots = backend.slots - 1  # the last one is for rows in pieces
    if not slots:
        alone, groups = [*alone, *(i for group in groups for i in group.rows)], []
    single = [Place(i, shared, backend.slots) for i in sorted(alone, key=lambda i: -len(rows[i][0]))]
    _score_places(backend, rows, single, results)
    for begin in range(0, len(groups), max(1, slots)):
        batch = groups[begin : begin + slots]
        backend.admit([(slot, rows[group.rows[0]][0][shared : group.stem]) for slot, group in enumerate(batch)])
        places = [Place(i, group.stem, slot) for slot, group in enumerate(batch) for i in group.rows]
        _score_places(backend, rows, places, results)


def _score_places(
    backend: PackedBackend, rows: Sequence[Row], places: Sequence[Place], results: dict[int, np.ndarray]
) -> None:
    """Rows side by side in bounded passes."""
    pack: list[Place] = []
    tokens = positions = 0
    for place in [*places, None]:
        row = rows[place.row] if place is not None else ((), ())
        size = len(row[0]) + len(row[1]) - place.past if place is not None else 0
        full = place is None or tokens + size > backend.prefill_tokens or positions + len(row[1]) > KEPT_POSITIONS
        if full and pack:
            _score_pack(backend, rows, pack, results)
            pack, tokens, positions = [], 0, 0
        if place is None:
            return
        if size > backend.prefill_tokens or len(row[1]) > KEPT_POSITIONS:
            results[place.row] = _score_long(backend, row, place)
            continue
        pack.append(place)
        tokens += size
        positions += len(row[1])


def _score_pack(
    backend: PackedBackend, rows: Sequence[Row], pack: Sequence[Place], results: dict[int, np.ndarray]
) -> None:
    segments: list[Segment] = []
    keep: list[int] = []
    targets: list[int] = []
    end = 0
    for place in pack:
        prompt, completion = rows[place.row]
        ids = [*prompt[place.past :], *completion[:-1]]
        segments.append(Segment(ids, place.past, place.slot))
        end += len(ids)
        keep += range(end - len(completion), end)
        targets += completion
    values = _logprobs(backend.forward(segments, keep), targets)
    begin = 0
    for place in pack:
        size = len(rows[place.row][1])
        results[place.row] = values[begin : begin + size]
        begin += size


def _score_long(backend: PackedBackend, row: Row, place: Place) -> np.ndarray:
    """A row too long for one pass, in pieces that build on the slot of the pieces before."""
    prompt, completion = row
    scratch = backend.slots - 1
    ids = [*prompt, *completion[:-1]]
    targets = [-1] * (len(prompt) - 1) + list(completion)
    parts: list[np.ndarray] = []
    at, source = place.past, place.slot
    while at < len(ids):
        scored = at >= len(prompt) - 1
        end = min(len(ids), at + (KEPT_POSITIONS if scored else backend.prefill_tokens))
        end = end if scored else min(end, len(prompt) - 1)
        wanted = targets[at:end] if scored else []
        keep = list(range(end - at)) if scored else [0]
        logits = backend.forward([Segment(ids[at:end], at, source, scratch)], keep)
        if scored:
            parts.append(_logprobs(logits, wanted))
        at, source = end, scratch
    return np.concatenate(parts)


def _score_plain(model: Any, row: Row) -> np.ndarray:
    import torch

    prompt, completion = row
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits[0].float()
    return _logprobs(logits[-len(completion) - 1 : -1], list(completion))


def _logprobs(logits: torch.Tensor, targets: Sequence[int]) -> np.ndarray:
    import torch

    picked = logits[torch.arange(len(targets)), torch.tensor(targets, device=logits.device)]
    return (picked - torch.logsumexp(logits, dim=-1)).cpu().numpy().astype(np.float32)
