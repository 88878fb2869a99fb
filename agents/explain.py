"""A decision in words: one sentence for the reason, and one for each thing that the reader should doubt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agents.compare import Pairs
from rag.statistics import Interval, detectable_difference

if TYPE_CHECKING:
    from agents.rule import ArmResult, DecideConfig, Outcome

METRICS = {"f1": "F1", "em": "exact match", "match": "match"}


def explain(
    chosen: str | None,
    outcome: Outcome,
    arms: Mapping[str, ArmResult],
    pairs: Pairs,
    config: DecideConfig,
    *,
    questions: int,
) -> str:
    """The reason of the choice, with its numbers."""
    metric = METRICS.get(config.primary, config.primary)
    alive = [arm for arm, result in arms.items() if result.selectable and result.dropped is None]
    if chosen is None:
        broken = "; ".join(f"{arm}: {r.dropped}" for arm, r in arms.items() if r.dropped)
        return f"No arm keeps the limits that were set ({broken}). Relax a limit, or improve an arm and measure again."
    mine = arms[chosen]
    if outcome == "only arm":
        return f"{chosen} is the only arm left to choose: {metric} {mine.quality.mean:.2f} on {questions} questions."
    others = [arm for arm in alive if arm != chosen]
    rival = max(others, key=lambda arm: arms[arm].quality.mean)
    price = f"at {seconds(mine.cost)} per question"
    if outcome == "not separable":
        first = pairs(rival, chosen)
        return (
            f"Not separable: on {questions} questions no other arm is better than {chosen} ({metric} "
            f"{mine.quality.mean:.2f}) by more than chance could explain. The nearest is {rival} with "
            f"{points(first.difference, config.alpha)} (adjusted p {p_value(first.p_adjusted)}). "
            f"So take the cheapest: {chosen}, {price}."
        )
    if outcome == "too small":
        first = pairs(rival, chosen)
        return (
            f"{rival} is better than {chosen}, but by {points(first.difference, config.alpha)} {metric}, less than the "
            f"{config.minimal_gain:g} that would be worth its cost. So take the cheapest: {chosen}, {price}."
        )
    worse = [arm for arm in others if arms[arm].quality.mean <= mine.quality.mean]
    cheapest = min(others, key=lambda arm: arms[arm].cost)
    named = [(max(worse, key=lambda arm: arms[arm].quality.mean), "the next best")] if worse else []
    if arms[cheapest].cost < mine.cost and cheapest not in [arm for arm, _ in named]:
        named.append((cheapest, "the cheapest"))
    against = ", and ".join(
        f"{arms[arm].quality.mean:.2f} for {arm}, {role} ({points(pairs(chosen, arm).difference, config.alpha)}, "
        f"adjusted p {p_value(pairs(chosen, arm).p_adjusted)})"
        for arm, role in named
    )
    against = f" against {against}" if named else ""
    reason = (
        f"{chosen} answers best for its cost: on {questions} questions {metric} {mine.quality.mean:.2f}{against}. "
        f"A question costs {seconds(mine.cost)} ({cheapest}: {seconds(arms[cheapest].cost)}) when {config.queries:,} "
        "questions share the cost of training and indexing."
    )
    if arms[rival].quality.mean > mine.quality.mean:
        gap = pairs(rival, chosen)
        reason += f" {rival} costs more, and its lead ({points(gap.difference, config.alpha)}) is not proof enough."
    return reason


def caveats(
    chosen: str | None,
    outcome: Outcome,
    arms: Mapping[str, ArmResult],
    pairs: Pairs,
    config: DecideConfig,
    *,
    questions: int,
    documents: int,
) -> tuple[str, ...]:
    """Warnings that follow from the figures alone: too few questions, one seed, unequal lengths, dropped arms."""
    found = []
    alive = [arm for arm, result in arms.items() if result.selectable and result.dropped is None]
    others = [arm for arm in alive if arm != chosen]
    if chosen and others:
        rival = max(others, key=lambda arm: arms[arm].quality.mean)
        pair = pairs(chosen, rival)
        seen = detectable_difference(pair.discordance, questions, alpha=config.alpha, power=config.power)
        if questions < max(300, pair.needed):
            clear = (
                "The choice rests on a larger difference and stands."
                if outcome == "better"
                else "More questions may change the choice."
            )
            found.append(
                f"Small question set: with {questions} questions, differences between {chosen} and {rival} below about "
                f"{seen:.2f} will mostly go unseen; to see {config.minimal_gain:g} about {max(300, pair.needed):,} are "
                f"needed. {clear}"
            )
    elif questions < 300:
        found.append(f"Small question set: {questions} questions; use at least 300.")
    if documents < questions / 2:
        found.append(
            f"The {questions} questions are about {documents} documents only; the intervals count documents, so more "
            "documents help more than more questions on the same ones."
        )
    single = [arm for arm in alive if arm.startswith("tuned") and arms[arm].seeds == 1]
    if single:
        found.append(
            f"One training seed ({', '.join(single)}): the intervals do not cover the luck of training. "
            "Train with three seeds or more before a close call is trusted."
        )
    lengths = {arm: arms[arm].answer_words for arm in alive}
    if config.primary == "match" and max(lengths.values(), default=0) > 2 * max(min(lengths.values(), default=0), 1e-9):
        said = ", ".join(f"{arm} {words:.0f}" for arm, words in lengths.items())
        found.append(f"Answer lengths differ (words: {said}), and match favours long answers: read F1 beside it.")
    found.extend(f"{arm} was dropped: {r.dropped}." for arm, r in arms.items() if r.dropped)
    return tuple(found)


def points(difference: Interval, alpha: float) -> str:
    """A difference with its interval, signed."""
    return f"{signed(difference.mean)}, {1 - alpha:.0%} interval {signed(difference.low)} to {signed(difference.high)}"


def signed(value: float) -> str:
    """Two decimals with a sign, a true minus, and three decimals where two would be zero."""
    digits = 2 if abs(value) >= 0.0095 or value == 0 else 3
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """A p-value as it is printed: three decimals, and no claim of zero."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Seconds with a unit that keeps two or three figures."""
    if value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
