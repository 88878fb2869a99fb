"""How well will each arm answer this question? Small calibrated models, fitted by scikit-learn, applied with numpy.

For each arm one model of its expected score in [0, 1]: a logistic regression, or boosted trees of depth 2. A score
between 0 and 1 is a target that is partly right: the question counts with weight q as right and 1 − q as wrong.
Calibration is Platt's (1999): a logistic curve over predictions for questions that the model did not see.
Everything fitted is plain numbers, so that it is stored as JSON and nothing has to be unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

_CLIP = 4.0  # standard deviations from which a feature counts no further: scores of other corpora are no evidence
_EDGE = 1e-3  # predictions stay this far from 0 and 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to fit: `strength` is C of the logistic regression (small: simple) or the number of trees; `components`
    is how many principal components of the question's embedding are looked at."""

    kind: Literal["logistic", "boosted"] = "logistic"
    strength: float = 0.1
    components: int = 0

    def __str__(self) -> str:
        size = f"C = {self.strength:g}" if self.kind == "logistic" else f"{self.strength:g} trees"
        return f"{self.kind} ({size}, {self.components} components of the embedding)"


@dataclass(frozen=True, slots=True)
class Scaling:
    """Features to model columns: standardised and clipped, then the embedding's principal components likewise.

    mean, scale [f + c]; centre [d] and axes [c, d] are of the embedding (empty without components).
    """

    mean: np.ndarray
    scale: np.ndarray
    centre: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, vectors: np.ndarray | None, components: int) -> Scaling:
        """`values` [n, f]; `vectors` [n, d] or None."""
        centre, axes = np.zeros(0), np.zeros((0, 0))
        if vectors is not None and components:
            centre = vectors.mean(axis=0)
            axes = np.linalg.svd(vectors - centre, full_matrices=False)[2][:components]
            values = np.hstack([values, (vectors - centre) @ axes.T])
        spread = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(spread > 1e-9, spread, 1.0), centre, axes)

    def apply(self, values: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
        """Columns float64 [n, f + c]."""
        if len(self.axes):
            assert vectors is not None, "this model looks at the embedding"
            values = np.hstack([values, (vectors - self.centre) @ self.axes.T])
        return np.clip((values - self.mean) / self.scale, -_CLIP, _CLIP)


@dataclass(frozen=True, slots=True)
class Logistic:
    """weights [arms, columns], bias [arms]."""

    weights: np.ndarray
    bias: np.ndarray

    def predict(self, columns: np.ndarray) -> np.ndarray:
        return sigmoid(columns @ self.weights.T + self.bias)


@dataclass(frozen=True, slots=True)
class Boosted:
    """Trees of all arms side by side: arrays [arms, trees, nodes]; a leaf points to itself. `base` [arms]."""

    base: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    depth: int

    def predict(self, columns: np.ndarray) -> np.ndarray:
        rounded = columns.astype(np.float32)  # scikit-learn compares float32 features with float64 thresholds
        arms, trees, _ = self.column.shape
        a, t = np.arange(arms)[:, None], np.arange(trees)[None, :]
        out = np.empty((len(columns), arms))
        for i, row in enumerate(rounded):
            node = np.zeros((arms, trees), dtype=np.int64)
            for _ in range(self.depth):
                below = row[self.column[a, t, node]] <= self.threshold[a, t, node]
                node = np.where(below, self.left[a, t, node], self.right[a, t, node])
            out[i] = self.base + self.value[a, t, node].sum(axis=1)
        return np.clip(out, _EDGE, 1 - _EDGE)


@dataclass(frozen=True, slots=True)
class Model:
    """Expected score of each arm. `calibration` [arms, 2] is slope and offset on the logit of a raw prediction."""

    recipe: Recipe
    scaling: Scaling
    body: Logistic | Boosted
    calibration: np.ndarray

    def expected(self, values: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
        """Expected scores in (0, 1), float64 [n, arms]."""
        return self.from_columns(self.scaling.apply(values, vectors))

    def from_columns(self, columns: np.ndarray) -> np.ndarray:
        """The same from columns that were scaled already."""
        return calibrated(self.body.predict(columns), self.calibration)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))


def calibrated(raw: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Raw predictions [n, arms] through the curve [arms, 2] of each arm."""
    return sigmoid(logit(raw) * curve[:, 0] + curve[:, 1])


def fit(recipe: Recipe, values: np.ndarray, vectors: np.ndarray | None, quality: np.ndarray, *, seed: int = 0) -> Model:
    """A model without calibration; `quality` [n, arms] are the scores that the arms got, in [0, 1]."""
    scaling = Scaling.fit(values, vectors, recipe.components)
    columns = scaling.apply(values, vectors)
    identity = np.tile([1.0, 0.0], (quality.shape[1], 1))
    if recipe.kind == "boosted":
        return Model(recipe, scaling, _boost(columns, quality, int(recipe.strength), seed), identity)
    fitted = [_regress(columns, target, recipe.strength) for target in quality.T]
    body = Logistic(np.array([w for w, _ in fitted]), np.array([b for _, b in fitted]))
    return Model(recipe, scaling, body, identity)


def calibrate(raw: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Slope and offset for each arm, [arms, 2], from predictions for unseen questions. A curve that would fall says
    that the predictions are worth nothing: then the arm's mean takes their place."""
    curves = []
    for p, target in zip(raw.T, quality.T, strict=True):
        weights, bias = _regress(logit(p)[:, None], target, 100.0)
        curves.append((float(weights[0]), bias) if weights[0] > 0 else (0.0, float(logit(target.mean()))))
    return np.array(curves)


def _regress(columns: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Weights and bias of a logistic regression on scores in [0, 1]."""
    from sklearn.linear_model import LogisticRegression

    target = np.clip(target, 0.0, 1.0)
    if target.max() < _EDGE or target.min() > 1 - _EDGE:  # one class only
        return np.zeros(columns.shape[1]), float(logit(np.array(target.mean())))
    right, wrong = target > 0, target < 1
    model = LogisticRegression(C=strength, max_iter=500)
    model.fit(
        np.vstack([columns[right], columns[wrong]]),
        np.r_[np.ones(right.sum()), np.zeros(wrong.sum())],
        sample_weight=np.r_[target[right], 1 - target[wrong]],
    )
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _boost(columns: np.ndarray, quality: np.ndarray, trees: int, seed: int) -> Boosted:
    from sklearn.ensemble import GradientBoostingRegressor

    depth, rate = 2, 0.1
    nodes = 2 ** (depth + 1) - 1
    arms = quality.shape[1]
    shape = (arms, trees, nodes)
    own = np.broadcast_to(np.arange(nodes), shape)
    found = Boosted(
        quality.mean(axis=0), np.zeros(shape, np.int64), np.full(shape, np.inf), own.copy(), own.copy(),
        np.zeros(shape), depth,
    )  # fmt: skip
    for arm in range(arms):
        if np.ptp(quality[:, arm]) < _EDGE:
            continue  # nothing to learn: the mean is the answer
        model = GradientBoostingRegressor(
            n_estimators=trees, max_depth=depth, learning_rate=rate, subsample=0.7, max_features=0.3,
            min_samples_leaf=max(5, len(columns) // 50), random_state=seed,
        )  # fmt: skip
        model.fit(columns, quality[:, arm])
        for t, estimator in enumerate(model.estimators_[:, 0]):
            tree = estimator.tree_
            inner = np.flatnonzero(tree.children_left >= 0)
            found.column[arm, t, inner] = tree.feature[inner]
            found.threshold[arm, t, inner] = tree.threshold[inner]
            found.left[arm, t, inner] = tree.children_left[inner]
            found.right[arm, t, inner] = tree.children_right[inner]
            found.value[arm, t, : tree.node_count] = rate * tree.value[:, 0, 0]
    return found


# ------------------------------------------------------------------------------------------------------------ storage


def to_json(model: Model) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "recipe": asdict(model.recipe),
        "scaling": _lists(asdict(model.scaling)),
        "body": _lists(asdict(model.body)),
        "calibration": model.calibration.tolist(),
    }


def from_json(data: Mapping[str, Any], *, arms: int, features: int) -> Model:
    """The inverse. Raises ValueError, KeyError or TypeError for what is not such a model of this many arms and
    features."""
    recipe = Recipe(**data["recipe"])
    scaling = Scaling(*(np.array(data["scaling"][name], np.float64) for name in ("mean", "scale", "centre", "axes")))
    raw = data["body"]
    body: Logistic | Boosted
    if recipe.kind == "logistic":
        body = Logistic(np.array(raw["weights"], np.float64), np.array(raw["bias"], np.float64))
        shapes = [body.weights.shape == (arms, len(scaling.mean)), body.bias.shape == (arms,)]
    else:
        whole = {name: np.array(raw[name], np.int64) for name in ("column", "left", "right")}
        threshold = np.array([[[np.inf if x is None else x for x in t] for t in a] for a in raw["threshold"]])
        body = Boosted(
            np.array(raw["base"], np.float64), whole["column"], threshold, whole["left"], whole["right"],
            np.array(raw["value"], np.float64), int(raw["depth"]),
        )  # fmt: skip
        size = body.value.shape
        shapes = [body.base.shape == (arms,), size[0] == arms, len(size) == 3, 0 < body.depth < 20]
        shapes += [array.shape == size for array in (body.column, body.threshold, body.left, body.right)]
        shapes += [_within(body.column, len(scaling.mean)), _within(body.left, size[2]), _within(body.right, size[2])]
    calibration = np.array(data["calibration"], np.float64)
    shapes += [calibration.shape == (arms, 2), len(scaling.mean) == features + len(scaling.axes)]
    shapes += [scaling.mean.shape == scaling.scale.shape, not len(scaling.axes) or scaling.axes.ndim == 2]
    if not all(shapes):
        raise ValueError("arrays of other shapes than its arms and features")
    return Model(recipe, scaling, body, calibration)


def _within(numbers: np.ndarray, limit: int) -> bool:
    return bool(((numbers >= 0) & (numbers < limit)).all())


def _lists(data: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as lists; infinity, which JSON lacks, as null."""
    out: dict[str, Any] = {}
    for name, value in data.items():
        listed = value.tolist() if isinstance(value, np.ndarray) else value
        out[name] = _finite(listed)
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if value == float("inf") else value


def recipes(embedded: bool, questions: int) -> Sequence[Recipe]:
    """What is tried, simplest first."""
    components = [0, 8] if embedded else [0]
    found = [Recipe("logistic", c, n) for c in (0.003, 0.03, 0.3) for n in components]
    return [*found, *(Recipe("boosted", 40, n) for n in components[-1:])] if questions >= 200 else found
