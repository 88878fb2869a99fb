"""The recommendation worked out again for other numbers: by hand, and equal to what the rule itself said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.drill import disagreements
from apps.recommend import recommend
from rag.errors import ConfigError


def arm(name: str, mean: float, seconds: float, training: float = 0.0, **more: Any) -> dict[str, Any]:
    quality = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}
    return {"arm": name, "f1": quality, "seconds_per_question": seconds, "training_seconds": training, **more}


def pair(a: str, b: str, difference: float, p: float, half: float = 0.02) -> dict[str, Any]:
    spread = {"mean": difference, "low": difference - half, "high": difference + half}
    return {
        "a": a, "b": b, "difference": spread, "p": p, "p_adjusted": p, "a_better": 3, "b_better": 1, "discordance": 0.1,
        "needed": 10, "test": "permutation",
    }  # fmt: skip


# base: 1 s a question; tuned: 0.5 s, after 3,600 s of training; equally good. From 7,200 questions on tuned is cheaper.
EQUAL = {
    "chosen": "base", "config": {"primary": "f1", "queries": 1000},
    "arms": [arm("base", 0.4, 1.0), arm("tuned", 0.4, 0.5, 3600.0)],
    "pairs": [pair("base", "tuned", 0.0, 1.0, half=0.005)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("queries", "chosen"), [(100, "base"), (7_000, "base"), (7_400, "tuned"), (1_000_000, "tuned")]
)
def test_more_questions_carry_the_training(queries: int, chosen: str) -> None:
    found = recommend(EQUAL, queries=queries)
    assert found.chosen == chosen and found.outcome == "not separable"


def test_the_bill_is_seconds_times_the_price() -> None:
    found = recommend(EQUAL, queries=7200, price_per_hour=2.0)
    tuned = found.bill("tuned")
    assert tuned is not None and tuned.seconds == pytest.approx(0.5 + 3600 / 7200)
    assert tuned.month == pytest.approx(7200 * 1.0 * 2.0 / 3600)


def test_a_price_changes_the_bill_and_not_the_choice() -> None:
    chosen = {recommend(EQUAL, queries=5000, price_per_hour=price).chosen for price in (0.0, 0.1, 20.0)}
    assert chosen == {"base"}


def test_a_dearer_arm_must_be_better_beyond_chance() -> None:
    arms = [arm("base", 0.2, 1.0), arm("rag", 0.5, 3.0), arm("oracle", 0.9, 0.1, selectable=False)]
    sure = {"arms": arms, "pairs": [pair("base", "rag", -0.3, 0.001)]}
    assert recommend(sure, queries=100).chosen == "rag"
    unsure = {"arms": arms, "pairs": [pair("base", "rag", -0.3, 0.2)]}
    assert recommend(unsure, queries=100).chosen == "base"


def test_bounds_and_dropped_arms_are_never_recommended() -> None:
    arms = [arm("base", 0.2, 1.0), arm("rag", 0.9, 0.1, dropped="too slow"), arm("oracle", 0.9, 0.1)]
    found = recommend({"arms": arms, "pairs": []}, queries=10)
    assert found.chosen == "base" and [b.arm for b in found.bills if b.selectable] == ["base"]


@pytest.mark.parametrize(
    "data", [{}, {"arms": [{"arm": "base"}]}, {"arms": [arm("base", 0.1, 1), arm("rag", 0.2, 2)], "pairs": []}]
)
def test_figures_that_are_missing_are_named(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lacks figures|belong"):
        recommend(data, queries=10)


@pytest.mark.parametrize(("queries", "price"), [(0, 0.0), (10, -1.0)])
def test_impossible_numbers_are_refused(queries: int, price: float) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        recommend(EQUAL, queries=queries, price_per_hour=price)


def rows(folder: Path, name: str, scores: dict[str, float | None]) -> None:
    lines = [
        json.dumps({"id": key, "question": f"{key}?", "answers": ["x"], "kind": "fact", "metrics": {"f1": score},
                    "answer": {"text": f"{name} says {key}", "abstained": False}})
        for key, score in scores.items()
    ]  # fmt: skip
    (folder / f"rows-{name}.jsonl").write_text("\n".join([*lines, "{broken", ""]))


def test_disagreements_are_sorted_by_their_spread(tmp_path: Path) -> None:
    rows(tmp_path, "base", {"a": 0.5, "b": 0.0, "c": 1.0, "d": None})
    rows(tmp_path, "rag", {"a": 0.75, "b": 1.0, "c": 1.0, "d": 1.0})
    found = disagreements(tmp_path, "f1", ["base", "rag", "tuned"])
    assert [(d.question, d.spread) for d in found] == [("b?", 1.0), ("a?", 0.25)]
    assert {s.arm: s.text for s in found[0].said} == {"base": "base says b", "rag": "rag says b"}


def test_without_rows_nobody_disagrees(tmp_path: Path) -> None:
    assert disagreements(tmp_path, "f1", ["base", "rag"]) == []
    rows(tmp_path, "base", {"a": 0.5})
    assert disagreements(tmp_path, "f1", ["base", "rag"]) == []
