"""Which arm is worth it? The decision rule, as a pure function of scores and costs.

1. Arms that break a hard limit are dropped (upper bound of p95 latency, lower bound of citation support).
2. The cheapest arm that is left is the reference. A dearer arm replaces it only when the Holm-adjusted test is
   significant, the lower end of the interval is above 0, and the difference is at least the minimal gain.
3. Of the arms not worse than that by more than the margin (lower bound above −margin) the cheapest is chosen.
4. Where knowledge changes, the arms are compared on the questions of one kind only (those asked after the change).
5. Where nothing separates the arms, that is the outcome, and the cheapest is taken: never a forced winner.

One primary metric, set beforehand. `agents.arms.run` measures; this module only concludes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from agents.compare import ArmCost, BreakEven, Pair, Pairs, break_even, compare, pareto
from agents.explain import caveats, explain
from rag.errors import ConfigError, UsageError
from rag.evaluate import Evaluation
from rag.statistics import Interval, contrast, quantile
from rag.types import ARMS

BOUNDS = ("oracle",)
"""Arms that are reported but cannot be chosen: nobody has the right passages in advance."""

SMALL = 300
"""Fewer questions than this are always warned about."""

Outcome: TypeAlias = Literal["better", "not separable", "too small", "only arm", "none"]


@dataclass(frozen=True, slots=True)
class DecideConfig:
    """What is decided on; set before the measurement and saved with it.

    primary: metric of the tests. minimal_gain: smallest difference worth a dearer arm. margin: how much worse a cheaper
    arm may be (at most minimal_gain). queries: questions until the next training or indexing, which share their cost;
    updates: index updates in that time. price_per_hour: of the machine, any currency. max_p95_seconds and min_support:
    hard limits on latency and on the share of supported sentences. fresh_kind: compare on this kind of questions only.
    """

    primary: str = "f1"
    minimal_gain: float = 0.02
    margin: float = 0.01
    alpha: float = 0.05
    power: float = 0.8
    queries: int = 10_000
    updates: int = 0
    price_per_hour: float | None = None
    max_p95_seconds: float | None = None
    min_support: float | None = None
    fresh_kind: str | None = None
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= self.minimal_gain or self.minimal_gain <= 0:
            raise ConfigError(
                f"margin is {self.margin} and minimal_gain {self.minimal_gain}; "
                "minimal_gain must be above 0 and margin between 0 and minimal_gain."
            )
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        for name in ("queries", "resamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("updates", "price_per_hour", "max_p95_seconds", "min_support"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it cannot be negative.")


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm: primary metric, cost of a question in seconds (and money), latency, why it was dropped (if it was)."""

    arm: str
    quality: Interval
    seconds_per_question: float
    cost: float
    price: float | None
    p50: Interval
    p95: Interval
    support: Interval | None
    answer_words: float
    seeds: int
    pareto: bool
    selectable: bool
    dropped: str | None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What would have been chosen if the arms had to answer `queries` questions."""

    queries: int
    chosen: str | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice, and all that it rests on. `chosen` is None only where every arm breaks a hard limit.

    `interaction` is (tuned+rag − rag) − (tuned − base); `headroom` is the oracle bound minus the arm with its weights
    (tuned+rag, or rag where nothing was tuned): what perfect retrieval would bring.
    """

    chosen: str | None
    outcome: Outcome
    reason: str
    questions: int
    documents: int
    arms: tuple[ArmResult, ...]
    pairs: tuple[Pair, ...]
    interaction: Interval | None
    headroom: Interval | None
    break_even: tuple[BreakEven, ...]
    sensitivity: tuple[Sensitivity, ...]
    warnings: tuple[str, ...]


def decide(
    items_by_arm: Mapping[str, Evaluation | Sequence[Evaluation]],
    costs: Mapping[str, ArmCost],
    config: DecideConfig = DecideConfig(),
) -> Decision:
    """Applies the rule of this module's docstring to arms that answered the same questions.

    Several evaluations of an arm are its seeds: question scores are averaged over them and the intervals draw them,
    too. Raises UsageError when the arms did not answer the same questions in the same order, or none.
    """
    runs = {arm: [e] if isinstance(e, Evaluation) else list(e) for arm, e in items_by_arm.items()}
    keep, clusters = common(runs, config)
    scores = {arm: np.stack([e.scores(config.primary)[keep] for e in seeds]) for arm, seeds in runs.items()}
    interval = partial(contrast, clusters=clusters, resamples=config.resamples, alpha=config.alpha, seed=config.seed)
    results = {arm: _result(arm, runs[arm], scores[arm], costs[arm], config, interval) for arm in runs}
    alive = [arm for arm, result in results.items() if result.selectable and result.dropped is None]
    pairs = compare(
        {arm: scores[arm] for arm in alive},
        clusters=clusters,
        minimal_gain=config.minimal_gain,
        alpha=config.alpha,
        power=config.power,
        resamples=config.resamples,
        seed=config.seed,
    )
    table = Pairs(pairs, alpha=config.alpha, minimal_gain=config.minimal_gain)
    quality = {arm: results[arm].quality.mean for arm in alive}
    cost = {arm: results[arm].cost for arm in alive}
    front = pareto(quality, cost)
    chosen, outcome = choose(table, quality, cost, config)
    arms = tuple(_with_pareto(result, result.arm in front) for result in results.values())
    interaction = headroom = None
    if all(arm in scores for arm in ARMS):
        base, rag, tuned, both = (scores[arm] for arm in ARMS)
        interaction = interval([(1.0, both), (-1.0, rag), (-1.0, tuned), (1.0, base)])
    reader = next((arm for arm in ("tuned+rag", "rag") if arm in scores), None)  # with the weights of the oracle
    if reader and "oracle" in scores:
        headroom = interval([(1.0, scores["oracle"]), (-1.0, scores[reader])])
    documents = len(set(clusters))
    return Decision(
        chosen,
        outcome,
        explain(chosen, outcome, results, table, config, questions=len(keep)),
        len(keep),
        documents,
        arms,
        pairs,
        interaction,
        headroom,
        break_even({arm: costs[arm] for arm in alive}, config.updates),
        _sensitivity(table, quality, costs, config),
        caveats(chosen, outcome, results, table, config, questions=len(keep), documents=documents),
    )


def choose(
    pairs: Pairs, quality: Mapping[str, float], cost: Mapping[str, float], config: DecideConfig
) -> tuple[str | None, Outcome]:
    """Steps 2, 3 and 5 of the rule over arms that keep the limits."""
    order = sorted(cost, key=lambda arm: cost[arm])
    if not order:
        return None, "none"
    if len(order) == 1:
        return order[0], "only arm"
    best = order[0]
    for dearer in order[1:]:
        if pairs.beats(dearer, best):
            best = dearer
    good = [a for a in order if a == best or (cost[a] < cost[best] and _not_worse(pairs, a, best, config))]
    chosen = good[0]
    if chosen != order[0]:
        return chosen, "better"
    others = order[1:]
    if all(pairs.significant(chosen, other) for other in others):
        return chosen, "better"
    rival = max(others, key=lambda arm: quality[arm])
    return chosen, "too small" if pairs.significant(rival, chosen) else "not separable"


def _not_worse(pairs: Pairs, a: str, b: str, config: DecideConfig) -> bool:
    return pairs(a, b).difference.low > -config.margin


def common(runs: Mapping[str, list[Evaluation]], config: DecideConfig) -> tuple[list[int], list[str]]:
    """Positions of the questions to decide on, and their documents.

    Raises UsageError when the arms did not answer the same questions in the same order, or none that counts.
    """
    if not runs or not all(runs.values()):
        raise UsageError("There is nothing to decide: every arm needs at least one evaluation.")
    first = next(iter(runs.values()))[0]
    ids = [item.id for item in first.items]
    for arm, seeds in runs.items():
        for evaluation in seeds:
            if [item.id for item in evaluation.items] != ids:
                raise UsageError(
                    f"The arm {arm} answered other questions than the rest; paired tests need the same ones."
                )
    kept = [i for i, item in enumerate(first.items) if config.fresh_kind is None or item.kind == config.fresh_kind]
    judged = [i for i in kept if first.items[i].metrics.get(config.primary) is not None]
    if not judged:
        kind = f' of kind "{config.fresh_kind}"' if config.fresh_kind else ""
        raise UsageError(f'No question{kind} has a score for "{config.primary}"; give questions with answers.')
    return judged, [first.items[i].cluster for i in judged]


def _result(
    arm: str,
    seeds: Sequence[Evaluation],
    scores: np.ndarray,
    cost: ArmCost,
    config: DecideConfig,
    interval: Callable[[list[tuple[float, np.ndarray]]], Interval],
) -> ArmResult:
    per_query = cost.per_query(config.queries, config.updates)
    latency = cost.latency or tuple(float(s) for e in seeds for s in e.scores("seconds"))
    p50, p95 = quantile(latency, 0.5, alpha=config.alpha), quantile(latency, 0.95, alpha=config.alpha)
    support = seeds[0].summary.get("citation_recall")
    dropped = None
    if arm in BOUNDS:
        pass  # never chosen, so no limit to break
    elif config.max_p95_seconds is not None and p95.high > config.max_p95_seconds:
        dropped = f"p95 latency may be {p95.high:.2f} s, above the limit of {config.max_p95_seconds:g} s"
    elif config.min_support is not None and (support is None or support.low < config.min_support):
        low = "no citations at all" if support is None else f"support may be {support.low:.2f}"
        dropped = f"{low}, below the limit of {config.min_support:g}"
    return ArmResult(
        arm=arm,
        quality=interval([(1.0, scores)]),
        seconds_per_question=cost.seconds_per_question,
        cost=per_query,
        price=None if config.price_per_hour is None else per_query * config.price_per_hour / 3600,
        p50=p50,
        p95=p95,
        support=support,
        answer_words=float(np.mean([e.scores("answer_words").mean() for e in seeds])),
        seeds=len(seeds),
        pareto=False,
        selectable=arm not in BOUNDS,
        dropped=dropped,
    )


def _with_pareto(result: ArmResult, on_front: bool) -> ArmResult:
    return replace(result, pareto=on_front)


def _sensitivity(
    pairs: Pairs, quality: Mapping[str, float], costs: Mapping[str, ArmCost], config: DecideConfig
) -> tuple[Sensitivity, ...]:
    """The choice for other numbers of questions. (A price of the hour scales every cost alike and cannot change it.)"""
    found = []
    for queries in sorted({10**n for n in range(2, 8)} | {config.queries}):
        cost = {arm: costs[arm].per_query(queries, config.updates) for arm in quality}
        found.append(Sensitivity(queries, *choose(pairs, quality, cost, config)))
    return tuple(found)
