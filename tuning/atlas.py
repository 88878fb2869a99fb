"""What a retriever is taught by a language model: the four targets of Atlas, p_LSR's losses, as pure functions.

    ADist    p_T ∝ attention · length of the value vectors that an answer pays to each passage
    EMDR²    − log Σ_k p_LM(a | q, d_k) · p_R(d_k | q): a likelihood, no target
    PDist    p_T ∝ p_LM(a | q, d_k)            (posterior of the passage under a uniform prior)
    LOOP     p_T ∝ 1 / p_LM(a | q, D without d_k)

After Izacard et al. 2022 (arXiv 2208.03299), section 2.2; the gradient reaches p_R alone. The target of REPLUG-LSR and
RA-DIT is `tuning.preference.lsr_target`. Their authors' code divides log-likelihoods by the tokens of the answer and
uses temperatures of 0.01 on both sides; here the caller chooses. Targets are of one question, with K passages; losses
take [questions, K], and a mask for questions that have fewer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from rag.errors import ConfigError, NumericalError

if TYPE_CHECKING:
    import torch

Direction: TypeAlias = Literal["forward", "reverse"]
"""forward: KL(p_T ‖ p_R), as Atlas's and REPLUG's code has it; reverse: KL(p_R ‖ p_T), as the two LSR papers print it.
"""


def softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """exp(s/θ) / Σ exp(s/θ) in float64. Scores of −inf have probability 0; where all are, the result is uniform."""
    _check_temperature(temperature)
    values = np.asarray(scores, np.float64)
    if not len(values):
        return values
    if np.isnan(values).any() or np.isposinf(values).any():
        raise NumericalError("A teacher's score is NaN or infinite; score the answers again.")
    if np.isneginf(values).all():
        return np.full(len(values), 1 / len(values))
    weights = np.exp((values - values.max()) / temperature)
    return np.asarray(weights / weights.sum())


def pdist_target(logprobs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax of log p_LM(a | d_k, q), float [K]. Equal likelihoods give a uniform target."""
    return softmax(logprobs, temperature)


def loop_target(logprobs_without: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax of − log p_LM(a | D \\ {d_k}, q), float [K]: most for the passage whose loss costs most."""
    return softmax(-np.asarray(logprobs_without, np.float64), temperature)


def adist_target(
    attention: np.ndarray, norms: np.ndarray, passages: np.ndarray, count: int, temperature: float = 1.0
) -> np.ndarray:
    """softmax over passages of the mean over layers, heads, answer tokens and the passage's tokens of α_n · ‖v_n‖.

    `attention` [layers, heads, answer tokens, context tokens], `norms` [layers, heads, context tokens] the lengths of
    the value vectors, `passages` int [context tokens]: the passage that each token belongs to, −1 for none.
    A passage without a token (it did not fit) gets probability 0.
    """
    weighed = (attention * norms[:, :, None, :]).mean(axis=(0, 1, 2))
    scores = np.full(count, -math.inf)
    for k in range(count):
        inside = passages == k
        if inside.any():
            scores[k] = weighed[inside].mean()
    return softmax(scores, temperature)


def kl_loss(
    scores: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float,
    direction: Direction = "forward",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over questions of the divergence of p_R = softmax(scores/θ) and `target`, both [questions, K], in nats.

    `mask` [questions, K] is True where there is a passage. With "forward" the gradient with respect to a score is
    (p_R − p_T) / θ / questions.
    """
    import torch

    _check_temperature(temperature)
    log_p = _log_softmax(scores / temperature, mask)
    target = target.to(log_p.dtype)
    if direction == "forward":
        terms = torch.special.xlogy(target, target) - torch.where(target > 0, target * log_p, 0.0)
    elif direction == "reverse":
        tiny = torch.finfo(log_p.dtype).tiny  # a target of exactly 0 would make the divergence infinite
        terms = log_p.exp() * (log_p - target.clamp_min(tiny).log())
    else:
        raise ConfigError(f"direction is {direction!r}; give 'forward' or 'reverse'.")
    if mask is not None:
        terms = torch.where(mask, terms, 0.0)
    return terms.sum(dim=-1).mean()


def emdr2_loss(
    scores: torch.Tensor, logprobs: torch.Tensor, *, temperature: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over questions of − log Σ_k p_LM(a | q, d_k) · p_R(d_k | q); both arguments [questions, K].

    In log space, so that probabilities that underflow do not matter; with one passage it is − log p_LM.
    """
    import torch

    _check_temperature(temperature)
    log_p = _log_softmax(scores / temperature, mask)
    joint = log_p + logprobs.detach().to(log_p.dtype)
    if mask is not None:
        joint = joint.masked_fill(~mask, -math.inf)
    return -torch.logsumexp(joint, dim=-1).mean()


def contrastive_loss(
    scores: torch.Tensor, positive: torch.Tensor, *, temperature: float, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over questions of − log (Σ_{positive} e^{s/θ} / Σ_{not ignored} e^{s/θ}); all [questions, candidates].

    With one positive each this is sentence-transformers' MultipleNegativesRankingLoss (scale 1/θ). Of several passages
    that hold the answer, the encoder may choose (as in EMDR²). `ignored` passages are neither right nor wrong.
    """
    import torch

    _check_temperature(temperature)
    logits = scores / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored & ~positive, -math.inf)
    right = logits.masked_fill(~positive, -math.inf)
    return (torch.logsumexp(logits, dim=-1) - torch.logsumexp(right, dim=-1)).mean()


def _log_softmax(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    import torch

    if mask is None:
        return torch.log_softmax(logits, dim=-1)
    # A large negative number, not −inf: 0 · −inf is NaN in the gradient.
    return torch.log_softmax(logits.masked_fill(~mask, -1e4), dim=-1)


def _check_temperature(value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"temperature is {value}; give a finite number above 0.")
