"""Rules that look at one number: below a threshold one arm answers, from it on another. Baselines for the router.

Mallen et al. 2022 retrieve when an entity is unpopular; popularity is unknown in a user's corpus, so the score of
retrieval takes its place. Self-RAG retrieves when p([Retrieval]) exceeds δ; FLARE when a token of the draft is less
likely than θ. Here the threshold of each, and its two arms, are fitted on training questions: candidates are the
values that were observed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Rule:
    """`below` answers where the signal is less than `threshold` or unknown, `above` elsewhere; arms by position."""

    below: int
    above: int
    threshold: float

    def choose(self, signal: np.ndarray) -> np.ndarray:
        """Positions of arms, int64 [n]."""
        known = np.where(np.isnan(signal), -np.inf, signal)
        return np.where(known < self.threshold, self.below, self.above)


def fit_rule(signal: np.ndarray, utility: np.ndarray) -> Rule:
    """The rule with the highest total utility; `signal` [n], `utility` [n, arms].

    All pairs of arms and all thresholds between observed values are tried, also "always one arm". Equal totals: the
    first pair in the order of the arms, the lowest threshold.
    """
    known = np.where(np.isnan(signal), -np.inf, signal)
    order = np.argsort(known, kind="stable")
    ordered, gains = known[order], utility[order]
    n, arms = gains.shape
    below = np.vstack([np.zeros(arms), np.cumsum(gains, axis=0)])  # [n + 1, arms]: the first i go below
    above = below[-1] - below
    cuts = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1], True])  # equal values go together
    best, found = -np.inf, Rule(0, 0, -np.inf)
    for low in range(arms):
        for high in range(arms):
            totals = below[cuts, low] + above[cuts, high]
            at = int(totals.argmax())
            if totals[at] > best + 1e-12:
                cut = int(cuts[at])
                threshold = np.inf if cut == n else -np.inf if cut == 0 else float(ordered[cut])
                best, found = float(totals[at]), Rule(low, high, threshold)
    return found
