"""Towards the untouched model's whole distribution, for rows that are its own answers.

As a hard target an own answer is one draw of what the model knows, and a few hundred of them are learnt by heart, at
the cost of others. The probabilities of all tokens at the same places say what it would have said otherwise (Hinton et
al. 2015, arXiv 1503.02531; against forgetting: Li and Hoiem 2016, arXiv 1606.09282). They cost one more forward,
without gradient and with the adapters off, of rows that are short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from tuning.trainer import Encoded


def token_loss(model: Any, rows: Sequence[Encoded], logits_of: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Summed loss (nats) of the trained tokens of `rows`, whose logits [tokens, vocabulary] `logits_of` computes.

    Cross-entropy against the token that stands there, or, in rows that are `own`, against the distribution of the model
    with its adapters off. A model without adapters has none: own rows are then rows like all others.
    """
    own = torch.tensor([r.own for r in rows for _ in r.targets()])
    teacher = None
    if own.any() and hasattr(model, "disable_adapter"):
        with model.disable_adapter(), torch.no_grad():  # before the other forward: it switches requires_grad
            said = logits_of()
            teacher = said[own.to(said.device)].float().softmax(-1)
    logits = logits_of().float()
    targets = torch.tensor([r.ids[p] for r in rows for p in r.targets()], device=logits.device)
    if teacher is None:
        return F.cross_entropy(logits, targets, reduction="sum")
    own = own.to(logits.device)
    return F.cross_entropy(logits[own], teacher, reduction="sum") + F.cross_entropy(
        logits[~own], targets[~own], reduction="sum"
    )
