"""What a router is worth, beside always one arm, chance, rules that look at one number, and the oracle.

Every figure is on questions that the policy was not fitted on (the outer folds). The oracle knows each outcome: nobody
can be it. The best single arm is the best on these very questions, in hindsight, which makes it hard to beat; the
router must beat it in utility, with a paired bootstrap over documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.signals import fit_rule
from rag.answer import CLOSED_BOOK
from rag.statistics import Interval, bootstrap_ratios, paired_bootstrap
from rag.types import to_dict

if TYPE_CHECKING:
    from agents.router_outcomes import Outcomes
    from agents.router_training import CrossValidated, RouterConfig

RETRIEVAL_SIGNALS = {
    "retrieval score": ("dense_top", "lexical_top"),
    "retrieval margin": ("fused_margin", "dense_margin", "lexical_margin"),
}
"""Rule → the features it may look at: the first that varies."""


class _Table:
    """Rows of policies over the same questions; utilities and seconds are [n, arms] and [arms]."""

    def __init__(self, outcomes: Outcomes, config: RouterConfig) -> None:
        self.outcomes, self.config = outcomes, config
        self.worth = config.worth_of(outcomes.seconds)
        self.groups = outcomes.groups.tolist()
        self.utility = outcomes.quality - self.worth * outcomes.seconds
        self.oracle = self.utility.max(axis=1)
        self.best = int(self.utility.mean(axis=0).argmax())
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, kind: str, shares: np.ndarray, seconds: np.ndarray, fixed: float) -> None:
        """One policy: `shares` [n, arms] is how often it takes each arm for each question, `seconds` [n] its time."""
        outcomes, config = self.outcomes, self.config
        quality = (shares * outcomes.quality).sum(axis=1)
        utility = quality - self.worth * seconds
        right = (shares * (self.utility >= self.oracle[:, None] - 1e-9)).sum(axis=1)
        mine = self.utility[:, self.best]
        pairs = {"clusters": self.groups, "resamples": config.resamples, "alpha": config.alpha, "seed": config.seed}
        gain, gain_quality = Interval(0.0, 0.0, 0.0), Interval(0.0, 0.0, 0.0)
        closed: Interval | None = None
        if name != f"always {outcomes.arms[self.best]}":
            gain = paired_bootstrap(utility, mine, **pairs)  # type: ignore[arg-type]
            gain_quality = paired_bootstrap(quality, outcomes.quality[:, self.best], **pairs)  # type: ignore[arg-type]
            if float((self.oracle - mine).sum()) > 1e-9:
                top, bottom = (utility - mine)[:, None], (self.oracle - mine)[:, None]
                closed = bootstrap_ratios(top, bottom, **pairs)[0]  # type: ignore[arg-type]
        self.rows.append(
            {
                "policy": name,
                "kind": kind,
                "quality": float(quality.mean()),
                "accuracy": float(right.mean()),
                "regret": float((self.oracle - utility).mean()),
                "utility": float(utility.mean()),
                "gain": to_dict(gain),
                "gain_quality": to_dict(gain_quality),
                "gap_closed": to_dict(closed),
                "seconds": float(seconds.mean()),
                "cost": float(seconds.mean()) + fixed / config.queries,
                "shares": dict(zip(outcomes.arms, shares.mean(axis=0).round(4).tolist(), strict=True)),
            }
        )

    def add_picks(self, name: str, kind: str, picks: np.ndarray, extra: np.ndarray | float = 0.0) -> None:
        """A policy that takes one arm for each question; `extra` are seconds besides those of the arm."""
        arms = len(self.outcomes.arms)
        used = np.unique(picks)
        fixed = float(self.outcomes.fixed[used[0]]) if len(used) == 1 else self.outcomes.fixed_all
        self.add(name, kind, np.eye(arms)[picks], self.outcomes.seconds[picks] + extra, fixed)


def report(outcomes: Outcomes, measured: CrossValidated, config: RouterConfig) -> dict[str, Any]:
    """The table of policies and the verdict, as plain JSON values."""
    table = _Table(outcomes, config)
    n, arms = outcomes.quality.shape
    for i, arm in enumerate(outcomes.arms):
        table.add_picks(f"always {arm}", "single", np.full(n, i))
    table.add("random", "random", np.full((n, arms), 1 / arms), np.full(n, outcomes.seconds.mean()), outcomes.fixed_all)
    searched = _searched(outcomes, config)
    for name, signal, extra in _signals(outcomes):
        picks = np.zeros(n, dtype=np.int64)
        for fold in np.unique(measured.folds):
            seen = measured.folds != fold
            picks[~seen] = fit_rule(signal[seen], table.utility[seen]).choose(signal[~seen])
        table.add_picks(name, "signal", picks, extra if extra is not None else searched[picks])
    routed = config.routed_seconds(outcomes) - outcomes.seconds
    table.add_picks("router", "router", measured.picks, routed[measured.picks])
    table.add_picks("oracle", "bound", table.utility.argmax(axis=1))
    router, best = table.rows[-2], outcomes.arms[table.best]
    better = router["gain"]["low"] > 0
    return {
        "better": better,
        "reason": _verdict(router, next(r for r in table.rows if r["policy"] == f"always {best}"), outcomes, better),
        "best_single": best,
        "policies": table.rows,
        "questions": n,
        "documents": len(set(table.groups)),
        "worth_of_a_second": table.worth,
        "search_seconds": config.search_seconds,
        "choose_seconds": config.choose_seconds,
        "calibration_error": calibration_error(measured.expected, outcomes.quality),
        "kinds": _kinds(outcomes, measured, table.best),
        "seed": config.seed,
    }


def _searched(outcomes: Outcomes, config: RouterConfig) -> np.ndarray:
    """Seconds that a look at the retrieval adds to each arm, [arms]."""
    return np.array([config.search_seconds if arm in CLOSED_BOOK else 0.0 for arm in outcomes.arms])


def _signals(outcomes: Outcomes) -> list[tuple[str, np.ndarray, float | None]]:
    """(name, values [n], seconds that it costs; None: a search) of each rule that can be tried here."""
    found: list[tuple[str, np.ndarray, float | None]] = []
    for name, columns in RETRIEVAL_SIGNALS.items():
        for column in columns:
            values = outcomes.values[:, outcomes.features.index(column)]
            if np.ptp(values) > 1e-9:
                found.append((name, values, None))
                break
    if "sure_alone" in outcomes.features:
        found.append(("first tokens' probability", outcomes.values[:, outcomes.features.index("sure_alone")], None))
    for name, (values, arm) in outcomes.signals.items():
        seconds = outcomes.seconds[outcomes.arms.index(arm)] if arm in outcomes.arms else 0.0
        found.append((name, values, float(seconds)))
    return found


def calibration_error(expected: np.ndarray, quality: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over all arms: Σ_bin (share of predictions) · |mean score − mean prediction|, bins
    of equal counts."""
    p, q = expected.ravel(), quality.ravel()
    order = np.argsort(p, kind="stable")
    return float(
        sum(
            abs(q[part].mean() - p[part].mean()) * len(part) / len(p)
            for part in np.array_split(order, bins)
            if len(part)
        )
    )


def _kinds(outcomes: Outcomes, measured: CrossValidated, best: int) -> dict[str, Any]:
    """For each kind of question: how many, the score of the best single arm, of the router, of the oracle, and the
    router's shares."""
    out = {}
    for kind in sorted({k for k in outcomes.kinds if k}):
        at = np.flatnonzero([k == kind for k in outcomes.kinds])
        quality, picks = outcomes.quality[at], measured.picks[at]
        shares = {arm: float((picks == i).mean()) for i, arm in enumerate(outcomes.arms)}
        out[kind] = {
            "n": len(at),
            "best_single": float(quality[:, best].mean()),
            "router": float(quality[np.arange(len(at)), picks].mean()),
            "oracle": float(quality.max(axis=1).mean()),
            "shares": shares,
        }
    return out


def _verdict(router: dict[str, Any], single: dict[str, Any], outcomes: Outcomes, better: bool) -> str:
    """One sentence: is it better, by how much, and at what cost?"""
    gain, score = router["gain"], router["gain_quality"]
    figures = (
        f"{outcomes.metric} {router['quality']:.3f} against {single['quality']:.3f} "
        f"({score['mean']:+.3f}, 95 % {score['low']:+.3f} to {score['high']:+.3f}), "
        f"{router['seconds']:.2f} s a question against {single['seconds']:.2f} s"
    )
    closed = router["gap_closed"]
    share = f"; {closed['mean']:.0%} of the gap to the oracle is closed" if closed else ""
    name = single["policy"].removeprefix("always ")
    if better:
        return f"The router is better than always {name}: {figures}{share}."
    if gain["mean"] <= 1e-9 and max(router["shares"].values()) > 0.999:
        return f"Nothing could be learnt that beats always {name} on {len(outcomes)} questions; it stays."
    return (
        f"The router is not significantly better than always {name} on {len(outcomes)} questions: {figures}; gain "
        f"after cost {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})."
    )


def shown(found: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """The table of policies as rows of text, head first; for the command line and the benchmark."""
    rows: list[tuple[str, ...]] = [
        ("policy", "score", "accuracy", "regret", "gap closed", "s/question", "cost s", "gain after cost (95 %)")
    ]
    for p in found["policies"]:
        gain, closed = p["gain"], p["gap_closed"]
        rows.append(
            (
                p["policy"] + (" *" if p["policy"] == f"always {found['best_single']}" else ""),
                f"{p['quality']:.3f}",
                f"{p['accuracy']:.2f}",
                f"{p['regret']:.3f}",
                f"{closed['mean']:.0%}" if closed else "",
                f"{p['seconds']:.2f}",
                f"{p['cost']:.2f}",
                f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if closed else "",
            )
        )
    return rows
