"""Two arms on the same questions: difference, test, cost. Pure functions; `agents.rule` draws the conclusion.

The scores of an arm are an array [seeds, questions]; an arm that is not trained has one seed.
Sources: paired tests and Holm's correction as in `rag.statistics`; cost and break-even are plain arithmetic on seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rag.statistics import Interval, holm, mcnemar, needed_questions, paired_bootstrap, paired_permutation


@dataclass(frozen=True, slots=True)
class ArmCost:
    """What an arm costs, in seconds of the machine: to answer a question, and once before the first.

    `latency` are the seconds of single questions answered one at a time (for p50 and p95); `update_seconds` is the time
    of one update of the index.
    """

    seconds_per_question: float
    training_seconds: float = 0.0
    index_seconds: float = 0.0
    update_seconds: float = 0.0
    latency: tuple[float, ...] = ()

    def fixed(self, updates: int = 0) -> float:
        """Seconds spent whatever the number of questions."""
        return self.training_seconds + self.index_seconds + updates * self.update_seconds

    def per_query(self, queries: float, updates: int = 0) -> float:
        """Seconds of one question with its share of training and indexing, when `queries` questions share them."""
        return self.seconds_per_question + self.fixed(updates) / queries


@dataclass(frozen=True, slots=True)
class Pair:
    """`a` against `b` on the primary metric; `difference` is a − b.

    `a_better` and `b_better` count the discordant questions. `discordance` is the mean squared difference of a question
    (for scores 0 and 1: the share of discordant ones); `needed` is how many questions would show the minimal gain.
    """

    a: str
    b: str
    difference: Interval
    p: float
    p_adjusted: float
    a_better: int
    b_better: int
    discordance: float
    needed: int
    test: str

    def reversed(self) -> Pair:
        """The same comparison from the other side."""
        d = self.difference
        return replace(
            self,
            a=self.b,
            b=self.a,
            difference=Interval(-d.mean, -d.high, -d.low),
            a_better=self.b_better,
            b_better=self.a_better,
        )


@dataclass(frozen=True, slots=True)
class BreakEven:
    """From `queries` questions on, `arm` (dearer to prepare, cheaper to run) costs less than `other`; None: never."""

    arm: str
    other: str
    queries: float | None


class Pairs:
    """Comparisons looked up in either direction."""

    def __init__(self, pairs: Sequence[Pair], *, alpha: float, minimal_gain: float) -> None:
        self._found = {(p.a, p.b): p for p in pairs} | {(p.b, p.a): p.reversed() for p in pairs}
        self._alpha, self._minimal_gain = alpha, minimal_gain

    def __call__(self, a: str, b: str) -> Pair:
        return self._found[a, b]

    def significant(self, a: str, b: str) -> bool:
        """Is a better than b beyond chance, by however little?"""
        pair = self(a, b)
        return pair.p_adjusted < self._alpha and pair.difference.low > 0

    def beats(self, a: str, b: str) -> bool:
        """Is a better than b beyond chance, and by at least the minimal gain?"""
        return self.significant(a, b) and self(a, b).difference.mean >= self._minimal_gain


def compare(
    scores: Mapping[str, np.ndarray],
    *,
    clusters: Sequence[str],
    minimal_gain: float,
    alpha: float,
    power: float,
    resamples: int,
    seed: int,
) -> tuple[Pair, ...]:
    """Every pair of arms with its interval, and its p-value raw and after Holm's correction over all pairs."""
    pairs = []
    for a, b in itertools.combinations(scores, 2):
        mean_a, mean_b = scores[a].mean(axis=0), scores[b].mean(axis=0)
        interval = paired_bootstrap(
            scores[a], scores[b], clusters=clusters, resamples=resamples, alpha=alpha, seed=seed
        )
        a_better, b_better = int(np.sum(mean_a > mean_b)), int(np.sum(mean_b > mean_a))
        test, p = _test(mean_a, mean_b, a_better, b_better, clusters=clusters, resamples=resamples, seed=seed)
        discordance = float(np.mean((mean_a - mean_b) ** 2))
        needed = needed_questions(discordance, minimal_gain, alpha=alpha, power=power)
        pairs.append(Pair(a, b, interval, p, p, a_better, b_better, discordance, needed, test))
    adjusted = holm([pair.p for pair in pairs])
    return tuple(replace(pair, p_adjusted=p) for pair, p in zip(pairs, adjusted, strict=True))


def _test(
    a: np.ndarray, b: np.ndarray, a_better: int, b_better: int, *, clusters: Sequence[str], resamples: int, seed: int
) -> tuple[str, float]:
    """Exact McNemar for right-or-wrong scores of independent questions, else a sign-flip test over documents."""
    independent = len(set(clusters)) == len(clusters)
    if independent and np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        return "exact McNemar", mcnemar(a_better, b_better).exact
    p = paired_permutation(a, b, clusters=clusters, resamples=resamples, seed=seed)
    return ("permutation" if independent else "permutation by document"), p


def pareto(quality: Mapping[str, float], cost: Mapping[str, float]) -> tuple[str, ...]:
    """Arms that no other beats: at least as good, at least as cheap, better in one of the two. Cheapest first."""

    def dominated(arm: str) -> bool:
        return any(
            quality[other] >= quality[arm]
            and cost[other] <= cost[arm]
            and (quality[other] > quality[arm] or cost[other] < cost[arm])
            for other in quality
        )

    return tuple(sorted((arm for arm in quality if not dominated(arm)), key=lambda arm: cost[arm]))


def break_even(costs: Mapping[str, ArmCost], updates: int = 0) -> tuple[BreakEven, ...]:
    """For each pair the number of questions from which the arm that is dearer to prepare pays: N* = ΔC_fixed /
    Δc_run.
    """
    found = []
    for a, b in itertools.combinations(costs, 2):
        fixed_a, fixed_b = costs[a].fixed(updates), costs[b].fixed(updates)
        if fixed_a == fixed_b:
            continue
        arm, other = (a, b) if fixed_a > fixed_b else (b, a)
        saved = costs[other].seconds_per_question - costs[arm].seconds_per_question
        found.append(BreakEven(arm, other, abs(fixed_a - fixed_b) / saved if saved > 0 else None))
    return tuple(found)
