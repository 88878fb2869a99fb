"""Fitting a router, and measuring it on questions that it did not see.

Nested cross-validation, folds by document: the outer folds are only predicted; inside the rest of each, inner folds
choose the kind of model, its strength, its calibration and the margin. So nothing that is reported was chosen or
fitted on the question it is reported for. The router that is kept is chosen in the same way on all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.router import Router
from agents.router_model import Model, Recipe, calibrate, calibrated, fit, recipes
from agents.router_outcomes import Outcomes
from rag.answer import CLOSED_BOOK
from rag.errors import ConfigError

MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """How a router is fitted.

    worth: the score that a second is worth; None: from `minimal_gain`, which the step from the quickest arm to the
    slowest must bring. search_seconds: of the retrieval that it needs before it can choose, which an arm that reads
    passages needs anyway; choose_seconds: of choosing.
    """

    worth: float | None = None
    minimal_gain: float = 0.02
    search_seconds: float = 0.0
    choose_seconds: float = 0.0
    queries: int = 10_000
    folds: int = 5
    inner_folds: int = 4
    resamples: int = 10_000
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("folds", "inner_folds"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 2.")
        for name in ("minimal_gain", "search_seconds", "choose_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it cannot be negative.")
        if self.worth is not None and self.worth < 0:
            raise ConfigError(f"worth is {self.worth}; a second cannot be worth less than nothing.")

    def worth_of(self, seconds: np.ndarray) -> float:
        """The score that a second is worth, for arms of these seconds."""
        if self.worth is not None:
            return self.worth
        spread = float(np.ptp(seconds))
        return self.minimal_gain / spread if spread > 1e-9 else 0.0

    def routed_seconds(self, outcomes: Outcomes) -> np.ndarray:
        """Seconds of each arm where a router chose it, [arms]: it has searched, whether or not the arm reads."""
        extra = [self.search_seconds if arm in CLOSED_BOOK else 0.0 for arm in outcomes.arms]
        return outcomes.seconds + np.array(extra) + self.choose_seconds


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the inner folds chose."""

    recipe: Recipe
    calibration: np.ndarray
    margin: float
    usual: int


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """Out-of-fold: the arm picked for each question, int [n]; expected scores [n, arms]; the fold of each question."""

    picks: np.ndarray
    expected: np.ndarray
    folds: np.ndarray


def split_groups(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each question, int [n]: groups stay together, the largest go first into the emptiest fold."""
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(folds, dtype=np.int64)
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    for group in order[sizes[order] > 0]:
        fold_of[group] = int(filled.argmin())
        filled[fold_of[group]] += sizes[group]
    return fold_of[groups]


def route(expected: np.ndarray, price: np.ndarray, usual: int, margin: float) -> np.ndarray:
    """Positions of arms, int [n]: the one of highest utility, or the usual one where it leads by too little."""
    utility = expected - price
    best = utility.argmax(axis=1)
    lead = utility[np.arange(len(best)), best] - utility[:, usual]
    return np.where(lead > margin, best, usual)


def choose_recipe(outcomes: Outcomes, price: np.ndarray, rows: np.ndarray, config: RouterConfig) -> Chosen:
    """The recipe, calibration and margin with the highest utility over the inner folds of `rows`.

    `price` [arms] is the score that an arm's seconds cost. Equal utilities: the simpler recipe, the larger margin; so
    where nothing can be learnt the usual arm answers every question.
    """
    quality = outcomes.quality[rows]
    usual = int((quality - price).mean(axis=0).argmax())
    folds = split_groups(_renumbered(outcomes.groups[rows]), config.inner_folds, config.seed + 1)
    best, found = -np.inf, None
    for recipe in recipes(outcomes.vectors is not None, len(rows)):
        raw = np.empty_like(quality)
        for fold in range(config.inner_folds):
            seen, unseen = rows[folds != fold], folds == fold
            if unseen.any():
                raw[unseen] = _fit(outcomes, recipe, seen, config.seed).expected(*_inputs(outcomes, rows[unseen]))
        curve = calibrate(raw, quality)
        expected = calibrated(raw, curve)
        for margin in (np.inf, *reversed(MARGINS)):
            picks = route(expected, price, usual, margin)
            utility = float((quality - price)[np.arange(len(rows)), picks].mean())
            if utility > best + 1e-9:
                best, found = utility, Chosen(recipe, curve, float(margin), usual)
    assert found is not None
    return found


def cross_validate(
    outcomes: Outcomes, config: RouterConfig, progress: Callable[[int, int], None] | None = None
) -> CrossValidated:
    """Picks for every question by a router that was chosen and fitted without its fold."""
    n = len(outcomes)
    price = config.worth_of(outcomes.seconds) * config.routed_seconds(outcomes)
    folds = split_groups(outcomes.groups, config.folds, config.seed)
    picks, expected = np.zeros(n, dtype=np.int64), np.zeros_like(outcomes.quality)
    for fold in range(config.folds):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(unseen):
            chosen = choose_recipe(outcomes, price, seen, config)
            model = replace(_fit(outcomes, chosen.recipe, seen, config.seed), calibration=chosen.calibration)
            expected[unseen] = model.expected(*_inputs(outcomes, unseen))
            picks[unseen] = route(expected[unseen], price, chosen.usual, chosen.margin)
        if progress:
            progress(fold + 1, config.folds + 1)
    return CrossValidated(picks, expected, folds)


def fit_router(
    outcomes: Outcomes,
    config: RouterConfig = RouterConfig(),
    *,
    made_with: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Router:
    """The router chosen and fitted on all questions, with the report of the nested cross-validation.

    Raises UsageError when there are too few questions, documents or differences, saying how many are needed.
    """
    from agents.router_report import report

    outcomes.check()
    measured = cross_validate(outcomes, config, progress)
    rows = np.arange(len(outcomes))
    worth = config.worth_of(outcomes.seconds)
    costs = config.routed_seconds(outcomes)
    chosen = choose_recipe(outcomes, worth * costs, rows, config)
    model = replace(_fit(outcomes, chosen.recipe, rows, config.seed), calibration=chosen.calibration)
    if progress:
        progress(config.folds + 1, config.folds + 1)
    table = report(outcomes, measured, config)
    return Router(
        outcomes.arms,
        outcomes.arms[chosen.usual],
        outcomes.metric,
        tuple(map(float, costs)),
        worth,
        min(chosen.margin, 1e9),  # JSON has no infinity
        model,
        outcomes.features,
        dict(made_with or {}),
        {**table, "recipe": str(chosen.recipe)},
    )


def _fit(outcomes: Outcomes, recipe: Recipe, rows: np.ndarray, seed: int) -> Model:
    return fit(recipe, *_inputs(outcomes, rows), outcomes.quality[rows], seed=seed)


def _inputs(outcomes: Outcomes, rows: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
    return outcomes.values[rows], None if outcomes.vectors is None else outcomes.vectors[rows]


def _renumbered(groups: np.ndarray) -> np.ndarray:
    return np.unique(groups, return_inverse=True)[1]
