"""The decision rule on made-up scores: winners, ties, limits, costs, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from agents.compare import ArmCost, break_even, compare, pareto
from agents.rule import DecideConfig, decide
from rag.errors import ConfigError, UsageError
from rag.evaluate import Evaluation, Item, summarise

FAST = DecideConfig(resamples=1000)
COSTS = {
    "base": ArmCost(0.5),
    "rag": ArmCost(1.0, index_seconds=100),
    "tuned": ArmCost(0.4, training_seconds=600),
    "tuned+rag": ArmCost(0.9, training_seconds=600, index_seconds=100),
    "oracle": ArmCost(0.9),
}


def evaluation(
    scores: Sequence[float], *, metric: str = "f1", shared: int = 1, kinds: Sequence[str] = (), **more: float
) -> Evaluation:
    """Scores as an evaluation; `shared` questions ask about one document."""
    items = [
        Item(f"q{i}", f"d{i // shared}", {metric: float(s), "seconds": 1.0, **more}, kinds[i] if kinds else None)
        for i, s in enumerate(scores)
    ]
    return Evaluation(tuple(items), summarise(items, resamples=100))


def arms(n: int = 400, *, seed: int = 0, shift: Mapping[str, float] | None = None) -> dict[str, Evaluation]:
    """Four arms whose scores differ by `shift` on average, plus noise of their own."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(0.2, 0.6, size=n)
    means = shift or {"base": 0.0, "rag": 0.1, "tuned": 0.05, "tuned+rag": 0.3}
    return {arm: evaluation(np.clip(common + m + rng.normal(0, 0.15, size=n), 0, 1)) for arm, m in means.items()}


def test_a_clear_winner_is_picked_with_its_numbers() -> None:
    decision = decide(arms(), COSTS, FAST)
    assert (decision.chosen, decision.outcome) == ("tuned+rag", "better")
    assert "tuned+rag answers best for its cost" in decision.reason and "400 questions" in decision.reason
    pair = next(p for p in decision.pairs if (p.a, p.b) == ("rag", "tuned+rag"))
    assert pair.difference.high < -0.1 and pair.p_adjusted < 0.01 and pair.b_better > 3 * pair.a_better
    assert len(decision.pairs) == 6
    assert decision.documents == decision.questions == 400


@pytest.mark.parametrize("seed", range(5))
def test_where_no_arm_differs_it_says_so_and_takes_the_cheapest(seed: int) -> None:
    same = arms(seed=seed, shift=dict.fromkeys(("base", "rag", "tuned", "tuned+rag"), 0.1))
    decision = decide(same, COSTS, FAST)
    assert (decision.chosen, decision.outcome) == ("tuned", "not separable")  # 0.4 + 600 / 10,000 = 0.46 s
    assert decision.reason.startswith("Not separable") and "take the cheapest: tuned" in decision.reason


def test_identical_answers_of_all_arms_are_not_separable() -> None:
    scores = evaluation([0.0, 1.0] * 200)
    decision = decide(dict.fromkeys(COSTS, scores), COSTS, FAST)
    assert (decision.chosen, decision.outcome) == ("tuned", "not separable")
    assert all(p.p == p.p_adjusted == 1.0 for p in decision.pairs)


def test_twenty_questions_warn() -> None:
    decision = decide(arms(20), COSTS, FAST)
    assert any("Small question set: with 20 questions" in w for w in decision.warnings)
    assert not any(
        "Small" in w for w in decide(arms(400), COSTS, DecideConfig(minimal_gain=0.1, resamples=500)).warnings
    )


def test_enough_questions_in_number_but_not_for_the_gain_asked_about() -> None:
    rng = np.random.default_rng(0)
    noisy = {arm: evaluation(rng.integers(0, 2, size=400)) for arm in ("base", "rag")}
    (warning,) = [w for w in decide(noisy, COSTS, FAST).warnings if "Small" in w]
    assert "to see 0.02 about" in warning and "More questions may change the choice" in warning


def test_a_significant_but_small_gain_does_not_pay() -> None:
    b = np.linspace(0.2, 0.8, 400)
    decision = decide({"base": evaluation(b), "rag": evaluation(b + 0.01)}, COSTS, FAST)
    assert (decision.chosen, decision.outcome) == ("base", "too small")
    assert "0.02 that would be worth its cost" in decision.reason


def test_a_cheaper_arm_within_the_margin_of_the_best_is_preferred() -> None:
    b = np.linspace(0.1, 0.6, 400)
    made = {"base": evaluation(b), "tuned": evaluation(b + 0.096), "rag": evaluation(b + 0.1)}
    costs = {"base": ArmCost(0.1), "tuned": ArmCost(0.2), "rag": ArmCost(0.9)}
    decision = decide(made, costs, FAST)
    assert (decision.chosen, decision.outcome) == ("tuned", "better")
    strict = decide(made, costs, DecideConfig(minimal_gain=0.003, margin=0.0, resamples=500))
    assert strict.chosen == "rag"


def test_the_cheapest_arm_that_is_best_of_all_is_a_clear_choice() -> None:
    b = np.linspace(0.1, 0.6, 300)
    decision = decide({"base": evaluation(b + 0.2), "rag": evaluation(b)}, COSTS, FAST)
    assert (decision.chosen, decision.outcome) == ("base", "better")


def test_questions_that_share_documents_weaken_the_evidence() -> None:
    rng = np.random.default_rng(3)
    by_document = np.repeat(0.05 + 0.2 * np.sin(np.arange(12) * 1.7), 30)
    b = rng.uniform(0.3, 0.5, size=360)
    alone = decide({"base": evaluation(b), "rag": evaluation(b + by_document)}, COSTS, FAST)
    shared = decide({"base": evaluation(b, shared=30), "rag": evaluation(b + by_document, shared=30)}, COSTS, FAST)
    assert (alone.chosen, shared.chosen) == ("rag", "base")
    assert shared.pairs[0].test == "permutation by document" and shared.documents == 12
    assert any("about 12 documents only" in w for w in shared.warnings)


def test_right_or_wrong_scores_are_tested_by_mcnemar() -> None:
    a = [1.0] * 15 + [0.0] * 5 + [1.0] * 380
    b = [0.0] * 15 + [1.0] * 5 + [1.0] * 380
    config = DecideConfig(primary="em", resamples=500)
    decision = decide({"base": evaluation(b, metric="em"), "rag": evaluation(a, metric="em")}, COSTS, config)
    (pair,) = decision.pairs
    assert pair.test == "exact McNemar" and pair.p == pytest.approx(0.0414, abs=5e-5)
    assert (pair.a_better, pair.b_better, pair.discordance) == (5, 15, 0.05)


def test_hard_limits_drop_arms() -> None:
    costs = COSTS | {"tuned+rag": ArmCost(0.9, latency=(0.5,) * 18 + (4.0, 5.0))}
    decision = decide(arms(), costs, DecideConfig(max_p95_seconds=2.0, resamples=500))
    assert decision.chosen == "rag"
    (dropped,) = [a for a in decision.arms if a.dropped]
    assert dropped.arm == "tuned+rag" and "5.00 s, above the limit of 2 s" in (dropped.dropped or "")
    nothing = decide(arms(), COSTS, DecideConfig(min_support=0.5, resamples=500))
    assert (nothing.chosen, nothing.outcome) == (None, "none") and "No arm keeps the limits" in nothing.reason


def test_support_limit_uses_the_lower_bound() -> None:
    made = {"base": arms()["base"], "rag": evaluation(arms()["rag"].scores("f1"), citation_recall=1.0)}
    decision = decide(made, COSTS, DecideConfig(min_support=0.9, resamples=500))
    assert (decision.chosen, decision.outcome) == ("rag", "only arm")


def test_the_oracle_is_reported_but_never_chosen() -> None:
    made = arms() | {"oracle": evaluation(np.ones(400))}
    decision = decide(made, COSTS, FAST)
    assert decision.chosen == "tuned+rag" and len(decision.pairs) == 6
    assert decision.headroom is not None and decision.headroom.low > 0.1
    assert [a.arm for a in decision.arms if not a.selectable] == ["oracle"]


def test_interaction_is_the_difference_of_gains() -> None:
    b = np.linspace(0.1, 0.4, 300)
    made = {"base": b, "rag": b + 0.2, "tuned": b + 0.1, "tuned+rag": b + 0.25}
    decision = decide({k: evaluation(v) for k, v in made.items()}, COSTS, FAST)
    assert decision.interaction is not None and decision.interaction.mean == pytest.approx(-0.05)
    assert decide(dict(list(arms().items())[:2]), COSTS, FAST).interaction is None


def test_the_number_of_questions_decides_whether_training_pays() -> None:
    b = np.linspace(0.1, 0.6, 400)
    made = {"base": evaluation(b), "tuned": evaluation(b)}  # equal in quality: the cheaper is taken
    costs = {"base": ArmCost(0.5), "tuned": ArmCost(0.4, training_seconds=600)}
    decision = decide(made, costs, FAST)
    chosen = {s.queries: s.chosen for s in decision.sensitivity}
    assert chosen[100] == chosen[1000] == "base" and chosen[10_000] == chosen[1_000_000] == "tuned"
    (point,) = decision.break_even
    assert (point.arm, point.other, point.queries) == ("tuned", "base", pytest.approx(6000))


def test_costs() -> None:
    cost = ArmCost(1.0, training_seconds=500, index_seconds=100, update_seconds=10)
    assert cost.per_query(1000) == pytest.approx(1.6)
    assert cost.per_query(1000, updates=20) == pytest.approx(1.8)
    never = break_even({"base": ArmCost(0.4), "tuned": ArmCost(0.5, training_seconds=10)})
    assert never[0].queries is None
    assert break_even({"a": ArmCost(1.0), "b": ArmCost(2.0)}) == ()
    made = decide(arms(), COSTS, DecideConfig(price_per_hour=3.6, resamples=200))
    assert next(a for a in made.arms if a.arm == "base").price == pytest.approx(0.0005)


def test_pareto() -> None:
    quality = {"a": 0.5, "b": 0.6, "c": 0.55, "d": 0.6}
    assert pareto(quality, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.0}) == ("a", "b", "d")


def test_seeds_widen_the_interval_and_lift_the_warning() -> None:
    made = arms(shift={"base": 0.0, "tuned": 0.05})
    costs = {"base": ArmCost(0.1), "tuned": ArmCost(0.4)}
    one = decide(made, costs, FAST)
    assert any("One training seed (tuned)" in w for w in one.warnings)
    scores = made["tuned"].scores("f1")
    seeds = [evaluation(scores + s) for s in (-0.1, 0.0, 0.1)]
    three = decide({"base": made["base"], "tuned": seeds}, costs, FAST)
    assert not any("One training seed" in w for w in three.warnings)
    narrow, wide = one.pairs[0].difference, three.pairs[0].difference
    assert wide.mean == pytest.approx(narrow.mean) and wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert (one.chosen, three.chosen) == ("tuned", "base")  # with this luck of training the gain is not proven


def test_changing_knowledge_is_judged_on_the_fresh_questions() -> None:
    kinds = ["fresh", "old"] * 200
    b = np.full(400, 0.4)
    tuned = np.where(np.arange(400) % 2 == 0, 0.1, 0.9)
    made = {"base": evaluation(b, kinds=kinds), "tuned": evaluation(tuned, kinds=kinds)}
    costs = {"base": ArmCost(0.1), "tuned": ArmCost(0.2)}
    assert decide(made, costs, FAST).chosen == "tuned"
    fresh = decide(made, costs, DecideConfig(fresh_kind="fresh", resamples=500))
    assert (fresh.chosen, fresh.questions) == ("base", 200)


def test_match_with_unequal_lengths_is_warned_about() -> None:
    made = {
        "base": evaluation([0.0, 1.0] * 200, metric="match", answer_words=40.0),
        "rag": evaluation([0.0, 1.0] * 200, metric="match", answer_words=3.0),
    }
    warnings = decide(made, COSTS, DecideConfig(primary="match", resamples=200)).warnings
    assert any("base 40, rag 3" in w for w in warnings)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="same ones"):
        decide({"base": evaluation([1.0] * 5), "rag": evaluation([1.0] * 6)}, COSTS)
    with pytest.raises(UsageError, match="nothing to decide"):
        decide({}, COSTS)
    with pytest.raises(UsageError, match='No question of kind "x"'):
        decide({"base": evaluation([1.0] * 5)}, COSTS, DecideConfig(fresh_kind="x"))


@pytest.mark.parametrize(
    "bad", [{"margin": 0.1}, {"minimal_gain": 0.0, "margin": 0.0}, {"alpha": 1.0}, {"queries": 0}, {"updates": -1}]
)
def test_settings_that_are_not_allowed(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        DecideConfig(**bad)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_decision() -> None:
    assert decide(arms(), COSTS, FAST) == decide(arms(), COSTS, FAST)


def test_holm_covers_all_pairs() -> None:
    scores = {arm: e.scores("f1")[None, :] for arm, e in arms(40).items()}
    pairs = compare(
        scores, clusters=[str(i) for i in range(40)], minimal_gain=0.02, alpha=0.05, power=0.8, resamples=500, seed=0
    )
    smallest = min(pairs, key=lambda p: p.p)
    assert smallest.p_adjusted == pytest.approx(min(1.0, 6 * smallest.p))
