"""Intervals and tests against the values of the card, closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from rag.statistics import (
    Interval,
    bootstrap_ratios,
    bootstrap_test,
    contrast,
    detectable_difference,
    holm,
    mcnemar,
    needed_questions,
    paired_bootstrap,
    paired_permutation,
    quantile,
    wilson,
)


def test_mcnemar_worked_example() -> None:
    result = mcnemar(15, 5)
    assert result.exact == pytest.approx(0.0414, abs=5e-5)
    assert result.chi2 == pytest.approx(4.05)
    assert result.chi2_p == pytest.approx(0.0442, abs=5e-5)
    assert result.mid_p == pytest.approx(result.exact - 15504 / 2**20)  # C(20, 5) = 15504
    assert mcnemar(5, 15).exact == result.exact


def test_mcnemar_without_discordant_pairs_and_with_equal_counts() -> None:
    assert mcnemar(0, 0) == mcnemar(0, 0).__class__(0, 0, 1.0, 1.0, 0.0, 1.0)
    assert mcnemar(4, 4).exact == 1.0


@pytest.mark.parametrize(("b", "c"), [(0, 6), (3, 9), (480, 520), (700, 900)])
def test_mcnemar_exact_is_the_binomial_test(b: int, c: int) -> None:
    assert mcnemar(b, c).exact == pytest.approx(scipy.stats.binomtest(b, b + c).pvalue, rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (7, 10), (150, 300), (1, 1)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    ours, theirs = wilson(k, n), scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.mean, ours.low, ours.high) == pytest.approx((k / n, theirs.low, theirs.high))


def test_wilson_of_nothing() -> None:
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0)


def test_holm_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_needed_questions_worked_examples() -> None:
    assert needed_questions(0.20, 0.05) == pytest.approx(625, abs=3)  # the card rounds z to 1.96 and 0.84
    assert needed_questions(0.20, 0.03) == pytest.approx(1740, abs=8)
    with pytest.raises(ValueError, match="above 0"):
        needed_questions(0.2, 0.0)


def test_detectable_difference_inverts_needed_questions() -> None:
    difference = detectable_difference(0.2, 625)
    assert difference == pytest.approx(0.05, abs=2e-4)
    assert needed_questions(0.2, difference) <= 625 < needed_questions(0.2, difference * 0.99)


def test_paired_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    b = rng.normal(size=400)
    a = b + rng.normal(0.1, 0.5, size=400)
    interval, d = paired_bootstrap(a, b, seed=3), a - b
    half = 1.96 * d.std(ddof=1) / 20
    assert interval.mean == pytest.approx(d.mean())
    assert interval.low == pytest.approx(d.mean() - half, abs=0.006)
    assert interval.high == pytest.approx(d.mean() + half, abs=0.006)
    assert paired_bootstrap(a, b, seed=3) == interval
    swapped = paired_bootstrap(b, a, seed=3)
    assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))


def test_equal_arms_have_a_zero_interval_and_p_one() -> None:
    a = np.linspace(0, 1, 50)
    assert paired_bootstrap(a, a) == Interval(0.0, 0.0, 0.0)
    assert paired_permutation(a, a) == 1.0
    assert bootstrap_test(a, a) == 1.0


def test_clusters_widen_the_interval_by_the_design_effect() -> None:
    # 40 documents with 5 identical questions each hold the information of 40 questions: √5 wider than 200 alone.
    d = np.repeat(np.random.default_rng(2).normal(size=40), 5)
    alone, grouped = (
        paired_bootstrap(d, d * 0),
        paired_bootstrap(d, d * 0, clusters=np.repeat(np.arange(40), 5).tolist()),
    )
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(5**0.5, rel=0.08)


def test_permutation_and_shifted_bootstrap_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(5)
    b, noise = rng.normal(size=300), rng.normal(0.1, 0.8, size=300)
    p = scipy.stats.ttest_rel(b + noise, b).pvalue
    assert 0.001 < p < 0.3
    assert paired_permutation(b + noise, b) == pytest.approx(p, abs=0.015)
    assert bootstrap_test(b + noise, b) == pytest.approx(p, abs=0.015)


def test_permutation_flips_clusters_together() -> None:
    # Two documents: the sums of two signs reach the observed total half of the time, however many questions they hold.
    d = np.ones(100)
    assert paired_permutation(d, d * 0, clusters=[0] * 50 + [1] * 50) == pytest.approx(0.5, abs=0.02)
    assert paired_permutation(d, d * 0) < 0.001


def test_permutation_holds_its_level_where_nothing_differs() -> None:
    rng = np.random.default_rng(7)
    p = [paired_permutation(*rng.random((2, 60)), resamples=400, seed=i) for i in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.1


def test_two_level_bootstrap_adds_the_variance_of_the_seeds() -> None:
    rng = np.random.default_rng(0)
    items = rng.random(200)
    seeds = np.stack([items + shift for shift in (-0.2, 0.0, 0.2)])
    one, three = paired_bootstrap(items, items * 0.9), paired_bootstrap(seeds, items * 0.9)
    assert three.mean == pytest.approx(one.mean)
    # Drawing 3 of {-.2, 0, .2}: the sd of their mean is sqrt(.08 / 3 / 3) = 0.094, which swamps the items.
    assert three.high - three.low > 0.25 > 0.05 > one.high - one.low


def test_contrast_is_the_interaction() -> None:
    a0, a1, a2, a3 = np.random.default_rng(4).random((4, 80))
    interval = contrast([(1, a3), (-1, a1), (-1, a2), (1, a0)])
    assert interval.mean == pytest.approx(((a3 - a1) - (a2 - a0)).mean())
    assert interval.low < interval.mean < interval.high
    with pytest.raises(ValueError, match="same questions"):
        contrast([(1, a0), (-1, a1[:5])])


def test_ratios_are_recomputed_in_every_draw() -> None:
    hits, asked = np.array([[1.0], [0.0], [1.0], [0.0]]), np.array([[1.0], [0.0], [2.0], [0.0]])
    (interval,) = bootstrap_ratios(hits, asked)
    assert interval.mean == pytest.approx(2 / 3)
    assert interval.low == pytest.approx(0.5) and interval.high == pytest.approx(1.0)
    assert bootstrap_ratios(hits * 0, asked * 0) == [Interval(0.0, 0.0, 1.0)]
    assert bootstrap_ratios(hits[:0], asked[:0]) == [Interval(0.0, 0.0, 1.0)]


def test_quantile() -> None:
    values = list(range(1, 101))
    median = quantile(values, 0.5)
    assert median.mean == 50.5 and 38 <= median.low <= 42 and 58 <= median.high <= 63
    assert quantile([3.0], 0.95) == Interval(3.0, 3.0, 3.0)
    assert quantile([], 0.5) == Interval(0.0, 0.0, 0.0)
