"""Teacher-forced log-probabilities: how likely the model finds given answers, token by token.

The output layer runs only on positions that predict a completion token, in bounded pieces, and rows that share a
prompt (several candidate answers to one question) run that prompt once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.decode import MIN_SHARED, common_prefix
from rag.engine import PlainBackend
from rag.errors import NumericalError
from rag.packed import PackedBackend, Segment

if TYPE_CHECKING:
    import torch

KEPT_POSITIONS = 512  # of these, fp32 logits over 50k tokens take 100 MB
Row = tuple[Sequence[int], Sequence[int]]


def score_rows(make_backend: Callable[[int, int], Any], rows: Sequence[Row]) -> list[np.ndarray]:
    """Natural log-probabilities of the second part's tokens after the first part's, one float32 array for each row.

    Raises:
        NumericalError: a value is not finite, named by row.
    """
    if not rows:
        return []
    backend = make_backend(max(len(prompt) + len(completion) for prompt, completion in rows), 1)
    results: dict[int, np.ndarray] = {}
    if isinstance(backend, PlainBackend):
        results = {i: _score_plain(backend.model, row) for i, row in enumerate(rows)}
    else:
        order = sorted(range(len(rows)), key=lambda i: (list(rows[i][0]), len(rows[i][1])))
        alone: list[int] = []
        for _, members in groupby(order, key=lambda i: list(rows[i][0])):
            group = list(members)
            if len(group) > 1 and len(rows[group[0]][0]) >= MIN_SHARED:
                _score_group(backend, rows, group, results)
            else:
                alone += group
        if alone:
            _score_group(backend, rows, sorted(alone, key=lambda i: -len(rows[i][0])), results)
    bad = [i for i, values in results.items() if not np.isfinite(values).all()]
    if bad:
        raise NumericalError(f"The model gave no finite log-probability for rows {sorted(bad)[:10]}. Try --dtype fp32.")
    return [results[i] for i in range(len(rows))]


def _score_group(backend: PackedBackend, rows: Sequence[Row], group: list[int], results: dict[int, np.ndarray]) -> None:
    """Rows whose prompts begin alike: the common beginning runs once, the rest packed into bounded passes."""
    shared = common_prefix([rows[i][0] for i in group]) if len(group) > 1 else 0
    shared = shared if shared >= MIN_SHARED else 0
    backend.share(rows[group[0]][0][:shared])
    pack: list[int] = []
    tokens = positions = 0
    for i in [*group, None]:
        size = len(rows[i][0]) + len(rows[i][1]) - shared if i is not None else 0
        full = i is None or tokens + size > backend.prefill_tokens or positions + len(rows[i][1]) > KEPT_POSITIONS
        if full and pack:
            _score_pack(backend, rows, pack, shared, results)
            pack, tokens, positions = [], 0, 0
        if i is None:
            return
        if size > backend.prefill_tokens or len(rows[i][1]) > KEPT_POSITIONS:
            results[i] = _score_long(backend, rows[i], shared)
            continue
        pack.append(i)
        tokens += size
        positions += len(rows[i][1])


def _score_pack(
    backend: PackedBackend, rows: Sequence[Row], pack: list[int], shared: int, results: dict[int, np.ndarray]
) -> None:
    segments: list[Segment] = []
    keep: list[int] = []
    targets: list[int] = []
    end = 0
    for i in pack:
        prompt, completion = rows[i]
        ids = [*prompt[shared:], *completion[:-1]]
        segments.append(Segment(ids, shared, backend.slots))
        end += len(ids)
        keep += range(end - len(completion), end)
        targets += completion
    values = _logprobs(backend.forward(segments, keep), targets)
    begin = 0
    for i in pack:
        results[i] = values[begin : begin + len(rows[i][1])]
        begin += len(rows[i][1])


def _score_long(backend: PackedBackend, row: Row, shared: int) -> np.ndarray:
    """A row too long for one pass, in pieces that build on the slot of the pieces before."""
    prompt, completion = row
    ids = [*prompt, *completion[:-1]]
    targets = [-1] * (len(prompt) - 1) + list(completion)
    parts: list[np.ndarray] = []
    at, source = shared, backend.slots
    while at < len(ids):
        scored = at >= len(prompt) - 1
        end = min(len(ids), at + (KEPT_POSITIONS if scored else backend.prefill_tokens))
        end = end if scored else min(end, len(prompt) - 1)
        wanted = targets[at:end] if scored else []
        keep = list(range(end - at)) if scored else [0]
        logits = backend.forward([Segment(ids[at:end], at, source, 0)], keep)
        if scored:
            parts.append(_logprobs(logits, wanted))
        at, source = end, 0
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
