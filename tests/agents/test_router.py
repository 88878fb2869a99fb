"""The router's parts: rules by hand, models against scikit-learn, folds by document, the report, saving and choosing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.router import FILE, Router, load_router
from agents.router_features import FEATURES, describe
from agents.router_model import Recipe, Scaling, calibrate, calibrated, fit, from_json, to_json
from agents.router_outcomes import Outcomes, group_by_source
from agents.router_report import calibration_error
from agents.router_training import RouterConfig, fit_router, route, split_groups
from agents.signals import Rule, fit_rule
from rag.errors import ConfigError, UsageError
from rag.types import Chunk, Passage, Scores

FAST = RouterConfig(folds=3, inner_folds=2, resamples=300)
COLUMNS = list(FEATURES)


def passage(text: str, rank: int, *, dense: float | None = None, lexical: float | None = None) -> Passage:
    chunk = Chunk(f"c{rank}-{text[:9]}", f"d{rank}", f"{rank}.md", 0, len(text), text)
    return Passage(chunk, rank, dense or lexical or 0.0, Scores(dense=dense, lexical=lexical, fused=1.0 / rank))


def made(n: int = 160, *, signal: str | None = "dense_top", seed: int = 0) -> Outcomes:
    """Two arms of which `rag` is right where the signal is high and `base` where it is low (or both by chance)."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, len(COLUMNS)))
    high = rng.random(n) < (0.5 if signal is None else 1 / (1 + np.exp(-4 * values[:, COLUMNS.index(signal)])))
    quality = np.stack([~high, high], axis=1).astype(float)
    return Outcomes(
        tuple(f"q{i}?" for i in range(n)), tuple("even" if i % 2 == 0 else "odd" for i in range(n)), ("base", "rag"),
        "f1", quality, np.array([0.2, 0.6]), np.array([0.0, 100.0]), np.arange(n) // 2, values, fixed_all=100.0,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- single signals


def test_a_rule_finds_the_threshold_between_two_arms() -> None:
    signal = np.array([0.1, 0.2, 0.3, 0.4])
    utility = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    rule = fit_rule(signal, utility)
    assert rule == Rule(0, 1, 0.3)
    assert rule.choose(np.array([0.29, 0.3, float("nan")])).tolist() == [0, 1, 0]


def test_a_rule_without_anything_to_learn_is_always_the_best_arm() -> None:
    utility = np.array([[0.2, 0.9], [0.1, 0.8], [0.3, 0.7]])
    assert fit_rule(np.array([3.0, 1.0, 2.0]), utility).choose(np.array([-9.0, 9.0])).tolist() == [1, 1]


def test_equal_values_of_a_signal_stay_on_one_side() -> None:
    signal = np.array([1.0, 1.0, 2.0])
    utility = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # parting the two equal ones would give 3
    rule = fit_rule(signal, utility)
    picks = rule.choose(signal)
    assert picks[0] == picks[1] and utility[np.arange(3), picks].sum() == 2.0


# -------------------------------------------------------------------------------------------------------- features


def test_features_of_a_question_by_hand() -> None:
    found = dict(zip(FEATURES, describe("How much more did the Orrin ferry cost in 1911 than 1905?", []), strict=True))
    assert found["asks_how_many"] == 1.0 and found["asks_how"] == 0.0
    assert found["numbers"] == 2.0 and found["names"] == 1.0 and found["calculation"] >= 1.0
    assert found["dense_top"] == 0.0 and found["covered_by_first"] == 0.0


def test_features_of_retrieval_by_hand() -> None:
    passages = [
        passage("The ferry Orrin sails", 1, dense=0.8, lexical=2.0),
        passage("A lighthouse keeper", 2, dense=0.5, lexical=6.0),
    ]
    found = dict(zip(FEATURES, describe("Who keeps the lighthouse near the Orrin ferry?", passages), strict=True))
    assert found["asks_who"] == 1.0
    assert found["dense_top"] == 0.8 and found["dense_margin"] == pytest.approx(0.3)
    assert found["lexical_top"] == pytest.approx(np.log1p(6.0)) and found["lexical_margin"] == pytest.approx(4 / 6)
    assert found["first_in_both"] == 0.5 and found["agreement"] == 1.0  # the best by meaning is second by words
    words = 5  # keeps, lighthouse, near, orrin, ferry
    assert found["covered_by_first"] == pytest.approx(2 / words)
    assert found["covered_by_others"] == pytest.approx(1 / words) and found["names_found"] == 1.0


def test_passages_without_scores_are_no_error() -> None:
    values = describe("什么时候开门？", [passage("门在九点开", 1)])
    assert len(values) == len(FEATURES) and np.isfinite(values).all()


# ---------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("recipe", [Recipe("logistic", 0.3, 0), Recipe("logistic", 0.3, 3), Recipe("boosted", 20, 3)])
def test_a_model_survives_json_and_predicts_the_same(recipe: Recipe) -> None:
    rng = np.random.default_rng(1)
    values, vectors = rng.normal(size=(80, 5)), rng.normal(size=(80, 12))
    quality = (rng.random((80, 3)) < 0.5).astype(float)
    quality[:, 2] = 1.0  # an arm that is always right teaches nothing
    model = fit(recipe, values, vectors, quality)
    again = from_json(json.loads(json.dumps(to_json(model), allow_nan=False)), arms=3, features=5)
    expected = model.expected(values, vectors)
    assert np.allclose(again.expected(values, vectors), expected, atol=1e-12)
    assert ((expected > 0) & (expected < 1)).all() and expected[:, 2].min() > 0.99


def test_boosted_trees_predict_what_scikit_learn_does() -> None:
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(2)
    values = rng.normal(size=(120, 4))
    quality = (values[:, :1] > 0) * 0.8 + 0.1 * rng.random((120, 1))
    model = fit(Recipe("boosted", 15, 0), values, None, quality, seed=3)
    columns = model.scaling.apply(values, None)
    theirs = GradientBoostingRegressor(
        n_estimators=15, max_depth=2, learning_rate=0.1, subsample=0.7, max_features=0.3, min_samples_leaf=5,
        random_state=3,
    ).fit(columns, quality[:, 0])  # fmt: skip
    assert np.allclose(model.body.predict(columns)[:, 0], theirs.predict(columns), atol=1e-9)


def test_a_logistic_model_learns_shares() -> None:
    """Scores between 0 and 1 are right in part: without features that help, the mean is predicted."""
    quality = np.array([[0.25], [0.75], [0.5], [0.5]] * 20)
    model = fit(Recipe("logistic", 0.01, 0), np.zeros((80, 2)), None, quality)
    assert np.allclose(model.expected(np.zeros((1, 2)), None), 0.5, atol=1e-3)


def test_scaling_clips_and_keeps_constant_columns_at_zero() -> None:
    values = np.array([[0.0, 7.0], [2.0, 7.0]])
    scaling = Scaling.fit(values, None, 0)
    assert scaling.apply(values, None).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert scaling.apply(np.array([[1e9, 7.0]]), None).tolist() == [[4.0, 0.0]]


def test_calibration_mends_overconfidence_and_drops_what_is_worthless() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(4000) * 0.4 + 0.3
    quality = (rng.random(4000) < truth).astype(float)[:, None]
    sure = (1 / (1 + np.exp(-6 * np.log(truth / (1 - truth)))))[:, None]
    mended = calibrated(sure, calibrate(sure, quality))
    assert calibration_error(mended, quality) < 0.04 < calibration_error(sure, quality)
    upside_down = calibrated(1 - sure, calibrate(1 - sure, quality))
    assert np.ptp(upside_down) < 1e-9 and upside_down[0, 0] == pytest.approx(quality.mean(), abs=1e-6)


def test_arrays_of_another_shape_are_refused() -> None:
    model = to_json(fit(Recipe("boosted", 3, 0), np.eye(4), None, np.eye(4)[:, :2]))
    model["body"]["left"][0][0][0] = 99
    with pytest.raises(ValueError, match="other shapes"):
        from_json(model, arms=2, features=4)
    with pytest.raises(ValueError, match="other shapes"):
        from_json(to_json(fit(Recipe(), np.eye(4), None, np.eye(4)[:, :2])), arms=3, features=4)


# ---------------------------------------------------------------------------------------------------------- folds


def test_questions_that_share_a_document_stay_together() -> None:
    groups = group_by_source([["a"], ["b"], ["a", "c"], ["c"], [], []])
    assert groups[0] == groups[2] == groups[3]
    assert len(set(groups.tolist())) == 4


def test_folds_keep_groups_and_are_even() -> None:
    groups = np.repeat(np.arange(40), 5)
    folds = split_groups(groups, 4, seed=0)
    assert all(len(set(folds[groups == g])) == 1 for g in range(40))
    assert np.bincount(folds).tolist() == [50, 50, 50, 50]
    assert (split_groups(groups, 4, seed=0) == folds).all()


def test_the_usual_arm_answers_where_another_leads_by_too_little() -> None:
    expected = np.array([[0.5, 0.55], [0.5, 0.9], [0.5, 0.4]])
    price = np.array([0.0, 0.02])
    assert route(expected, price, 0, 0.1).tolist() == [0, 1, 0]
    assert route(expected, price, 0, 0.0).tolist() == [1, 1, 0]
    assert route(expected, price, 0, float("inf")).tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------------- training and report


@pytest.fixture(scope="module")
def router() -> Router:
    return fit_router(made(), FAST, made_with={"date": "today"})


def test_a_router_that_can_learn_is_better_and_says_so(router: Router) -> None:
    report = router.report
    rows = {row["policy"]: row for row in report["policies"]}
    assert router.better and report["reason"].startswith("The router is better than always ")
    assert list(rows) == [
        "always base",
        "always rag",
        "random",
        "retrieval score",
        "retrieval margin",
        "router",
        "oracle",
    ]
    assert rows["oracle"]["accuracy"] == 1.0 and rows["oracle"]["regret"] == pytest.approx(0.0)
    assert rows["oracle"]["gap_closed"]["mean"] == pytest.approx(1.0)
    assert rows["router"]["gap_closed"]["mean"] > 1 / 3
    assert rows["router"]["gain"]["low"] > 0
    assert rows["random"]["quality"] == pytest.approx(0.5) and rows["random"]["seconds"] == pytest.approx(0.4)
    assert rows["always rag"]["cost"] == pytest.approx(0.6 + 100 / 10_000)
    assert set(report["kinds"]) == {"even", "odd"} and report["kinds"]["odd"]["n"] == 80


def test_a_second_is_worth_the_minimal_gain_over_the_spread_of_the_arms(router: Router) -> None:
    assert router.worth == pytest.approx(0.02 / 0.4)
    assert RouterConfig(worth=0.5).worth_of(np.array([1.0, 9.0])) == 0.5
    assert RouterConfig().worth_of(np.array([1.0, 1.0])) == 0.0


def test_searching_before_choosing_is_charged_to_arms_that_do_not_read() -> None:
    config = RouterConfig(search_seconds=0.1, choose_seconds=0.01)
    assert config.routed_seconds(made()).tolist() == pytest.approx([0.31, 0.61])


def test_where_nothing_can_be_learnt_the_router_does_not_claim_to_be_better() -> None:
    noise = fit_router(made(signal=None, seed=5), FAST)
    assert not noise.better
    assert "not significantly better" in noise.report["reason"] or "Nothing could be learnt" in noise.report["reason"]


def test_reported_figures_do_not_come_from_questions_that_were_fitted() -> None:
    """Features that name each question perfectly are useless for others, however well they fit."""
    outcomes = made(signal=None, seed=7)
    rng = np.random.default_rng(0)
    outcomes = replace(outcomes, vectors=rng.normal(size=(len(outcomes), 64)))
    report = fit_router(outcomes, FAST).report
    router = next(row for row in report["policies"] if row["policy"] == "router")
    assert abs(router["quality"] - 0.5) < 0.12


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (made(60), ["at least 100 measured questions", "here are 60 questions about 30 documents"]),
        (replace(made(), groups=np.zeros(160, dtype=np.int64)), ["20 separate documents", "about 1 documents"]),
        (replace(made(), quality=np.ones((160, 2))), ["score differently", "differ on 0"]),
        (replace(made(), arms=("rag",), quality=np.ones((160, 1))), ["Only rag can be chosen", "two arms or more"]),
    ],
)
def test_too_little_to_learn_from_is_refused_with_what_is_needed(outcomes: Outcomes, words: Sequence[str]) -> None:
    with pytest.raises(UsageError) as refused:
        fit_router(outcomes, FAST)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"worth": -1.0}, {"search_seconds": -0.1}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RouterConfig(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ saving and choosing


def test_saved_and_loaded_it_chooses_the_same_and_says_why(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path)
    again = load_router(tmp_path)
    assert again is not None and again.better and again.made_with == {"date": "today"}
    near, far = [passage("Orrin ferry", 1, dense=3.0)], [passage("Orrin ferry", 1, dense=-3.0)]
    for passages in (near, far):
        assert again.choose("x?", passages).to_dict() | {"seconds": 0} == router.choose("x?", passages).to_dict() | {
            "seconds": 0
        }
    assert router.choose("x?", near).arm == "rag" and router.choose("x?", far).arm == "base"
    choice = router.choose("x?", near)
    assert "a passage means nearly the same" in choice.reason
    assert f"expected f1 {choice.expected['rag']:.2f}, by base {choice.expected['base']:.2f}" in choice.reason
    assert choice.instead_of == "base"


def test_an_arm_that_cannot_answer_here_is_not_chosen(router: Router) -> None:
    near = [passage("Orrin ferry", 1, dense=3.0)]
    choice = router.choose("x?", near, allowed=["base"])
    assert choice.arm == "base" and "no other arm" in choice.reason
    with pytest.raises(UsageError, match="None of the router's arms"):
        router.choose("x?", near, allowed=[])


def test_a_damaged_or_newer_file_is_refused_and_none_is_none(router: Router, tmp_path: Path) -> None:
    assert load_router(tmp_path) is None
    path = router.save(tmp_path)
    data = json.loads(path.read_text())
    assert path.name == FILE
    for wrong in ({"format": 99}, {"arms": ["base"]}, {"arms": ["base", "x"]}, {"features": []}, {"model": {}}):
        path.write_text(json.dumps({**data, **wrong}))
        with pytest.raises(ConfigError, match=r"upgrade ragtune|run `ragtune route` again"):
            load_router(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        load_router(tmp_path)
