"""What a stored decision recommends for other numbers of questions and another price: pure, from `decision.json` alone.

The scores and tests stay as they were measured; only costs are worked out again: seconds of a question, and the share
of training and indexing that each of `queries` questions carries. The rule is the one that decided
(`agents.rule.choose`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from agents.compare import ArmCost, Pair, Pairs, pareto
from agents.rule import BOUNDS, DecideConfig, choose
from rag.errors import ConfigError
from rag.statistics import Interval


@dataclass(frozen=True, slots=True)
class ArmBill:
    """One arm at these numbers. `seconds` are those of a question with its share of preparation; `month` is the bill of
    all questions of a month, in the currency of the price; `selectable` arms can be recommended."""

    arm: str
    quality: Interval
    seconds: float
    month: float
    selectable: bool
    front: bool = False


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which arm to use for `queries` questions a month; `outcome` as in `agents.rule`, "none" where no arm is left."""

    chosen: str | None
    outcome: str
    queries: int
    price_per_hour: float
    bills: tuple[ArmBill, ...]

    def bill(self, arm: str) -> ArmBill | None:
        """The figures of one arm."""
        return next((b for b in self.bills if b.arm == arm), None)


def interval(value: Any) -> Interval:
    """{mean, low, high} as an Interval. ConfigError for anything else."""
    try:
        return Interval(float(value["mean"]), float(value["low"]), float(value["high"]))
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"The decision has {value!r} where mean, low and high belong ({error}).") from None


def recommend(data: Mapping[str, Any], *, queries: int, price_per_hour: float = 0.0) -> Recommendation:
    """The recommendation of a decision at `queries` questions a month and a price of the machine's hour.

    Training and indexing are taken to happen once a month. Raises ConfigError when the figures are not there.
    """
    if queries < 1 or price_per_hour < 0:
        raise ConfigError(f"{queries} questions at {price_per_hour} an hour: at least 1 question, no negative price.")
    try:
        config = _config(data)
        arms = {str(arm["arm"]): arm for arm in data["arms"]}
        costs = {name: _cost(arm).per_query(queries, config.updates) for name, arm in arms.items()}
        quality = {name: interval(arm[config.primary]) for name, arm in arms.items()}
        open_arms = [
            n for n, a in arms.items() if n not in BOUNDS and a.get("selectable", True) and not a.get("dropped")
        ]
        pairs = Pairs(_pairs(data), alpha=config.alpha, minimal_gain=config.minimal_gain)
        means = {name: quality[name].mean for name in open_arms}
        chosen: str | None = None
        outcome = "none"
        if open_arms:
            chosen, outcome = choose(pairs, means, {name: costs[name] for name in open_arms}, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The decision lacks figures ({error}); run `ragtune decide` again.") from None
    front = set(pareto(means, {name: costs[name] for name in open_arms}))
    bills = tuple(
        ArmBill(name, quality[name], cost, cost * queries * price_per_hour / 3600, name in open_arms, name in front)
        for name, cost in costs.items()
    )
    return Recommendation(chosen, outcome, queries, price_per_hour, bills)


def _config(data: Mapping[str, Any]) -> DecideConfig:
    known = {f.name for f in fields(DecideConfig)}
    return replace(DecideConfig(), **{k: v for k, v in dict(data.get("config") or {}).items() if k in known})


def _cost(arm: Mapping[str, Any]) -> ArmCost:
    return ArmCost(
        float(arm["seconds_per_question"]),
        training_seconds=float(arm.get("training_seconds") or 0.0),
        index_seconds=float(arm.get("index_seconds") or 0.0),
    )


def _pairs(data: Mapping[str, Any]) -> list[Pair]:
    known = {f.name for f in fields(Pair)}
    return [
        Pair(**{**{k: v for k, v in pair.items() if k in known}, "difference": interval(pair["difference"])})
        for pair in data.get("pairs") or ()
    ]
