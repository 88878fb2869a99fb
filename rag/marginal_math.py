"""Probability of an answer when each passage has a prompt of its own; everything in log space (natural log).

With p(z|x) the weight of passage z and p(y_i|x,z,y_<i) what the model says after z (Lewis et al. 2020, arXiv
2005.11401, section 2.1):

    RAG-Sequence   log Σ_z p(z|x) Π_i p(y_i|x,z,y_<i)      one passage for the whole answer; RA-DIT's ensemble, too
    RAG-Token      Σ_i log Σ_z p(z|x) p(y_i|x,z,y_<i)      the passage may change at each token; REPLUG's ensemble, too

One passage: both are the plain model. Equal passages, any weights: both are the model over one of them. One token:
the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rag.errors import ConfigError, NumericalError
from rag.types import Passage


def log_weights(scores: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """log p(z|x) = log softmax(scores / temperature) over the passages retrieved, float64 [K].

    Scores (2, 0) at temperature 1 are weights (.8808, .1192). Cosine scores differ by a few hundredths, so at
    temperature 1 their weights are nearly equal; at 0 the best passage would have all the weight.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0.")
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise NumericalError(f"A retrieval score is not finite: {values.tolist()[:10]}.")
    if not values.size:
        return values
    scaled = values / temperature
    return np.asarray(scaled - logsumexp(scaled, axis=0))


def passage_weights(passages: Sequence[Passage], temperature: float) -> np.ndarray:
    """`log_weights` of passages by their cosine; by the score of their last stage where one of them has no cosine
    (found by words alone). Without passages, the weight of the one prompt that has none."""
    if not passages:
        return np.zeros(1)
    dense = [p.scores.dense for p in passages]
    known = [s for s in dense if s is not None]
    return log_weights(known if len(known) == len(dense) else [p.score for p in passages], temperature)


def rag_sequence(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """log p(y|x) from log weights [K] and total log-probabilities [K, ...] of the answer after each passage."""
    return logsumexp(_column(weights, totals) + totals, axis=0)


def rag_token(weights: np.ndarray, tokens: np.ndarray) -> float:
    """log p(y|x) from log weights [K] and log-probabilities of each token [K, N] of the answer after each passage."""
    return float(logsumexp(_column(weights, tokens) + tokens, axis=0).sum())


def responsibility(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """p(z|x,y) [K]: how much of the answer's probability comes from each passage. Where it is zero under every one of
    them, the weights."""
    joint = weights + totals
    if np.isneginf(joint).all():
        joint = weights
    return np.asarray(np.exp(joint - logsumexp(joint, axis=0)))


def logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    """log Σ exp along an axis, without underflow; −inf where all are −inf."""
    top = values.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(values - safe).sum(axis=axis, keepdims=True)) + safe
    return np.asarray(np.squeeze(total, axis=axis))


def _column(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights.reshape(-1, *[1] * (values.ndim - 1))
