"""Candidate answers of several passages: equal ones merged, scored under every passage, the best chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rag.marginal_math import rag_sequence, responsibility
from rag.metrics import normalise
from rag.prompt import is_abstention


@dataclass(frozen=True, slots=True)
class Found:
    """What one passage (its place among the retrieved) gave: a text and its log-probability there.

    `exact`: scoring the text anew would give this log-probability (same tokens, ended by the model).
    """

    text: str
    passage: int
    logprob: float
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer to choose from: the passages that gave it, most probable first, and what it has `under` each [K].

    These are log-probabilities; NaN is "not known", and the scorer writes it in.
    """

    text: str
    sources: tuple[int, ...]
    under: np.ndarray


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen. `source` is the passage that gave it; `logprobs` are those of all candidates, None where a lone
    candidate needed no comparison; `shares` [K] is how much of the choice's probability comes from each passage."""

    text: str
    source: int
    candidates: tuple[Candidate, ...]
    logprobs: tuple[float | None, ...]
    shares: tuple[float, ...] | None


def merge(found: Sequence[Sequence[Found]], weights: np.ndarray, *, fast: bool) -> list[Candidate]:
    """Candidates from the answers of each passage, in the order of the passages.

    Answers that SQuAD's normalisation makes equal are one candidate, spelled as its most probable source spells it; all
    ways to say "not in the documents" are one, too. With `fast` a passage that did not give a candidate has probability
    zero for it; else only exactly known values are kept, and the others are NaN.
    """
    groups: dict[str, list[Found]] = {}
    for own in found:
        for one in own:
            groups.setdefault(_key(one.text), []).append(one)
    out = []
    for members in groups.values():
        members.sort(key=lambda one: -(weights[one.passage] + one.logprob))  # of equals, the better passage first
        best = members[0]
        under = np.full(len(weights), -np.inf if fast else np.nan)
        for one in members:
            if fast:
                under[one.passage] = np.logaddexp(under[one.passage], one.logprob)
            elif one.exact and one.text.strip() == best.text.strip():
                under[one.passage] = one.logprob
        sources = tuple(dict.fromkeys(one.passage for one in members))
        out.append(Candidate(best.text.strip(), sources, under))
    return out


def _key(text: str) -> str:
    return "" if is_abstention(text) else normalise(text) or text.strip()


def choose(candidates: Sequence[Candidate], weights: np.ndarray, *, abstain: Literal["last", "vote"]) -> Choice:
    """The candidate with the highest weighted probability; of equals the first, which a better passage gave.

    With `abstain` "last" a candidate that says "not in the documents" is chosen only where there is no other.
    """
    logprobs = [None if np.isnan(c.under).any() else float(rag_sequence(weights, c.under)) for c in candidates]
    allowed = list(range(len(candidates)))
    if abstain == "last":
        allowed = [i for i in allowed if not is_abstention(candidates[i].text)] or allowed
    best = max(allowed, key=lambda i: -np.inf if logprobs[i] is None else logprobs[i])  # type: ignore[arg-type, return-value]
    chosen = candidates[best]
    if logprobs[best] is None:
        return Choice(chosen.text, chosen.sources[0], tuple(candidates), tuple(logprobs), None)
    shares = responsibility(weights, chosen.under)
    source = max(chosen.sources, key=lambda z: float(shares[z]))
    return Choice(chosen.text, source, tuple(candidates), tuple(logprobs), tuple(shares.tolist()))
