"""Intervals and paired tests: is the difference between two arms more than the luck of the questions?

Scores of an arm are an array [questions] or, for an arm trained with several seeds, [seeds, questions]. Questions
that ask about one document are not independent; `clusters` (one label for each question) makes every test draw, or
flip, whole documents. Formulas: Efron & Tibshirani 1993 (bootstrap), Berg-Kirkpatrick et al. 2012 (paired bootstrap
test), Fagerland et al. 2013 (McNemar variants), Wilson 1927, Holm 1979, Connor 1987 (sample size). Everything that
draws is seeded; nothing here needs scipy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_BATCH = 4_000_000  # numbers drawn at once: 32 MB, whatever the number of questions and resamples
_TIE = 1e-12  # two resampled means nearer than this are equal: sums in another order differ in the last bits


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean (or another statistic) with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two-sided p-values for discordant counts b and c; `chi2` has the continuity correction and wants b + c ≥ 25."""

    b: int
    c: int
    exact: float
    mid_p: float
    chi2: float
    chi2_p: float


def group(clusters: Sequence[object] | None, n: int) -> np.ndarray:
    """Cluster number of each question, int array [n]; every question its own cluster where `clusters` is None."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster labels for {n} questions; give one for each question")
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.int64)


def draws(n: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches [b, n]: how often each of n things was drawn in n draws with replacement; the b sum to `resamples`."""
    size = max(1, _BATCH // max(n, 1))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        picked = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap_ratios(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    clusters: Sequence[object] | None = None,
    resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Interval]:
    """Percentile intervals of Σ numerators / Σ denominators, one for each column.

    Both arrays are [questions, metrics]: a mean has denominators 1 (0 where a metric does not apply to a question),
    precision and recall have counts. All metrics share the draws. A ratio without denominator is 0 with the interval
    [0, 0].
    """
    n, columns = numerators.shape
    if n == 0:
        return [Interval(0.0, 0.0, 1.0)] * columns
    groups = group(clusters, n)
    top, bottom = _cluster_sums(numerators, groups), _cluster_sums(denominators, groups)
    rng = np.random.default_rng(seed)
    values = np.concatenate([_ratio(w @ top, w @ bottom) for w in draws(len(top), resamples, rng)])
    point = _ratio(top.sum(axis=0), bottom.sum(axis=0))
    intervals = []
    for j in range(columns):
        sample = values[~np.isnan(values[:, j]), j]
        if np.isnan(point[j]) or not len(sample):
            intervals.append(Interval(0.0, 0.0, 1.0))
            continue
        low, high = np.quantile(sample, [alpha / 2, 1 - alpha / 2])
        intervals.append(Interval(float(point[j]), float(low), float(high)))
    return intervals


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    clusters: Sequence[object] | None = None,
    resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Interval:
    """Interval of mean(a) − mean(b) over the same questions; with [seeds, questions] a two-level bootstrap.

    Questions are drawn once for both sides; the seeds of each side are drawn independently. With few seeds (2–3) the
    seed part is still too narrow by a factor of about (S − 1)/S in variance: more seeds, not more draws, is the cure.
    """
    return contrast([(1.0, a), (-1.0, b)], clusters=clusters, resamples=resamples, alpha=alpha, seed=seed)


def contrast(
    terms: Sequence[tuple[float, np.ndarray]],
    *,
    clusters: Sequence[object] | None = None,
    resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Interval:
    """Interval of Σ weight·mean(scores) over the same questions, e.g. the interaction (A3 − A1) − (A2 − A0)."""
    scores = [(weight, np.atleast_2d(np.asarray(s, dtype=np.float64))) for weight, s in terms]
    n = scores[0][1].shape[1]
    if any(s.shape[1] != n for _, s in scores) or n == 0:
        raise ValueError(f"paired scores need the same questions, at least one; got {[s.shape[1] for _, s in scores]}")
    groups = group(clusters, n)
    sums = [(weight, _cluster_sums(s.T, groups)) for weight, s in scores]  # [clusters, seeds]
    counts = np.bincount(groups).astype(np.float64)
    rng = np.random.default_rng(seed)
    values = []
    for drawn in draws(len(counts), resamples, rng):
        total = drawn @ counts
        value = np.zeros(len(drawn))
        for weight, by_seed in sums:
            seeds = by_seed.shape[1]
            seed_weights = np.concatenate(list(draws(seeds, len(drawn), rng))) / seeds
            value += weight * ((drawn @ by_seed) * seed_weights).sum(axis=1) / total
        values.append(value)
    low, high = np.quantile(np.concatenate(values), [alpha / 2, 1 - alpha / 2])
    return Interval(float(sum(weight * s.mean() for weight, s in scores)), float(low), float(high))


def bootstrap_test(a: np.ndarray, b: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the shifted paired bootstrap: (1 + #{|δ* − δ| ≥ |δ|}) / (resamples + 1)."""
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    delta, hits = d.mean(), 0
    for drawn in draws(len(d), resamples, np.random.default_rng(seed)):
        hits += int(np.sum(np.abs(drawn @ d / len(d) - delta) >= abs(delta) - _TIE))
    return (hits + 1) / (resamples + 1)


def paired_permutation(
    a: np.ndarray, b: np.ndarray, *, clusters: Sequence[object] | None = None, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of the sign-flip test on the mean difference: (1 + #{|δ*| ≥ |δ|}) / (resamples + 1).

    The signs of a whole cluster flip together. Scores [seeds, questions] are averaged over their seeds first, so the
    test covers the questions only; `paired_bootstrap` covers the seeds.
    """
    d = np.atleast_2d(a).mean(axis=0) - np.atleast_2d(b).mean(axis=0)
    sums = _cluster_sums(d[:, None], group(clusters, len(d)))[:, 0]
    observed, rng, hits = abs(sums.sum()), np.random.default_rng(seed), 0
    size = max(1, _BATCH // max(len(sums), 1))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        signs = rng.integers(0, 2, size=(rows, len(sums)), dtype=np.int8) * 2.0 - 1.0
        hits += int(np.sum(np.abs(signs @ sums) >= observed - _TIE * max(len(d), 1)))
    return (hits + 1) / (resamples + 1)


def mcnemar(b: int, c: int) -> McNemar:
    """McNemar's tests; b = questions only the first arm has right, c = only the second. Without any of them p is 1."""
    n, smaller = b + c, min(b, c)
    if n == 0:
        return McNemar(b, c, 1.0, 1.0, 0.0, 1.0)
    tail = sum(math.comb(n, i) for i in range(smaller + 1))
    exact = min(1.0, float(2 * tail / 2**n) if n < 1000 else 2 * _binomial_tail(smaller, n))
    at = math.exp(math.lgamma(n + 1) - math.lgamma(smaller + 1) - math.lgamma(n - smaller + 1) - n * math.log(2))
    chi2 = max(0, abs(b - c) - 1) ** 2 / n
    return McNemar(b, c, exact, exact - at, chi2, math.erfc(math.sqrt(chi2 / 2)))


def wilson(successes: float, n: int, *, alpha: float = 0.05) -> Interval:
    """Wilson's score interval of a proportion; `n` = 0 gives [0, 1]."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    z, p = NormalDist().inv_cdf(1 - alpha / 2), successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: max over j ≤ i of min(1, (m − j + 1)·p_(j))."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for position, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[i]))
        adjusted[i] = running
    return adjusted


def needed_questions(discordance: float, difference: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Questions needed to see a true `difference`: (z_α·√d + z_β·√(d − δ²))² / δ², rounded up (Connor 1987).

    `discordance` d is the share of discordant pairs; for graded scores the mean squared difference of a pair, which
    is the same thing for scores 0 and 1 and makes this the sample size of the paired z test.
    """
    if difference <= 0:
        raise ValueError(f"the difference to be seen must be above 0, got {difference}")
    d = max(discordance, difference**2)
    z_a, z_b = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    return math.ceil((z_a * math.sqrt(d) + z_b * math.sqrt(d - difference**2)) ** 2 / difference**2)


def detectable_difference(discordance: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that n questions show with this power (inverse of `needed_questions`); at most 1."""
    low, high = 1e-6, 1.0
    if n <= 0 or discordance <= 0:
        return high if n <= 0 else 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if needed_questions(discordance, middle, alpha=alpha, power=power) <= n else (middle, high)
        )
    return high


def quantile(values: Sequence[float], q: float, *, alpha: float = 0.05) -> Interval:
    """The q-quantile (linear interpolation) with its distribution-free interval from order statistics.

    With few values the interval of a high quantile ends at the largest value seen, which understates it.
    """
    if not len(values):
        return Interval(0.0, 0.0, 0.0)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    spread = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(n * q * (1 - q))
    low, high = max(0, math.floor(n * q - spread) - 1), min(n - 1, math.ceil(n * q + spread))
    return Interval(float(np.quantile(ordered, q)), float(ordered[low]), float(ordered[high]))


def _binomial_tail(k: int, n: int) -> float:
    """P(X ≤ k) for X ~ Binomial(n, 1/2), through logarithms because 2**n leaves the range of a float near n = 1000."""
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return math.fsum(math.exp(x) for x in logs)


def _cluster_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums [clusters, columns] of the rows of each cluster."""
    out = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(out, groups, values)
    return out


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
