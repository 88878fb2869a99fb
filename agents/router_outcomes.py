"""What the arms did on each question, read back from run folders of `decide`: what a router learns from.

A run folder has, for each arm, the scores of every question (`rows-<arm>.jsonl`), and the passages that were found for
it (`retrievals/`). The features of `agents.router_features` are computed from these, as they will be when serving.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.record import SavedDecision, load_decision
from agents.router_features import FEATURES, describe
from agents.rows import read_rows, rows_path
from agents.rule import BOUNDS
from rag import metrics
from rag.errors import ConfigError, UsageError
from rag.types import Passage, passage_from_dict

NEED_QUESTIONS, NEED_GROUPS, NEED_SPLIT = 100, 20, 30
"""Least numbers of questions, of groups of documents, and of questions on which the arms score differently."""
_SAME = ("generator_fingerprint", "encoder", "prompt_version", "retrieval_config", "answer_config")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The same questions answered by every arm.

    quality [n, arms] are scores of the primary metric; seconds and fixed [arms] what one question costs, and what is
    spent once (`fixed_all` for all arms together: an adapter or an index that two share counts once); groups [n] number
    the sets of documents that questions share; values [n, features]; vectors [n, d] the questions' embeddings;
    passages are those that retrieval found; signals [n] are numbers that an arm left about a question (NaN where it
    left none), with the arm whose run they cost.
    """

    questions: tuple[str, ...]
    kinds: tuple[str, ...]
    arms: tuple[str, ...]
    metric: str
    quality: np.ndarray
    seconds: np.ndarray
    fixed: np.ndarray
    groups: np.ndarray
    values: np.ndarray
    fixed_all: float = 0.0
    features: tuple[str, ...] = tuple(FEATURES)
    vectors: np.ndarray | None = None
    passages: tuple[tuple[Passage, ...], ...] = ()
    signals: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions)

    def check(self) -> None:
        """UsageError when there is too little to learn from, saying what is needed."""
        n, groups = len(self), len(set(self.groups.tolist()))
        split = int((np.ptp(self.quality, axis=1) > 1e-9).sum())
        if len(self.arms) < 2:
            raise UsageError(
                f"Only {', '.join(self.arms) or 'no arm'} can be chosen, so there is nothing to route; a router needs "
                "the outcomes of two arms or more. Give `ragtune decide` training questions (--train), or adapters."
            )
        if n < NEED_QUESTIONS or groups < NEED_GROUPS or split < NEED_SPLIT:
            raise UsageError(
                f"A router needs at least {NEED_QUESTIONS} measured questions about {NEED_GROUPS} separate documents, "
                f"and {NEED_SPLIT} of them on which the arms score differently; here are {n} questions about {groups} "
                f"documents, and the arms differ on {split}. Measure more questions with `ragtune decide`, or name "
                "several run folders of the same index and adapters."
            )


def load_outcomes(
    runs: Sequence[Path],
    *,
    arms: Sequence[str] | None = None,
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Outcomes:
    """The outcomes of run folders that measured the same arms; a question that occurs twice counts once.

    `arms` are the ones to choose from (default: all that can be served). `embed` gives the questions' embeddings,
    float [n, d]. Raises UsageError when the runs do not fit together or lack an arm, ConfigError for damaged files.
    """
    decisions = [load_decision(run) for run in runs]
    chosen = _common(decisions, arms)
    metric = str(decisions[0].data["config"]["primary"])
    rows: list[Mapping[str, Any]] = []
    quality: list[list[float]] = []
    passages: list[tuple[Passage, ...]] = []
    signals: dict[str, list[float]] = {}
    known: set[str] = set()
    for decision in decisions:
        scores, first = _scores(decision, chosen, metric)
        found = _passages(decision.folder, first)
        left = _signals(decision)
        for i, row in enumerate(first):
            key = metrics.normalise(row["question"]) or row["question"]
            if key in known or any(s[i] is None for s in scores):
                continue
            known.add(key)
            rows.append(row)
            quality.append([float(s[i] or 0.0) for s in scores])
            passages.append(found[i])
            for name in SIGNALS:
                signals.setdefault(name, []).append(left.get(name, {}).get(row["id"], float("nan")))
    if not rows:
        raise UsageError(f'No question of these runs has a score for "{metric}".')
    questions = tuple(str(row["question"]) for row in rows)
    given = {name: (np.array(s), SIGNALS[name][1]) for name, s in signals.items() if np.isfinite(s).mean() > 0.5}
    return Outcomes(
        questions=questions,
        kinds=tuple(str(row.get("kind") or "") for row in rows),
        arms=chosen,
        metric=metric,
        quality=np.array(quality),
        seconds=_mean_cost(decisions, chosen, "seconds_per_question"),
        fixed=_mean_cost(decisions, chosen, "training_seconds") + _mean_cost(decisions, chosen, "index_seconds"),
        groups=group_by_source([row["sources"] for row in rows]),
        fixed_all=_fixed_all(decisions[0], chosen),
        values=np.array([describe(q, p) for q, p in zip(questions, passages, strict=True)]),
        vectors=None if embed is None else np.asarray(embed(questions), np.float64),
        passages=tuple(passages),
        signals=given,
    )


def _common(decisions: Sequence[SavedDecision], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Arms that every run measured and that may be served; the runs must be of the same models and settings."""
    first = decisions[0]
    for other in decisions[1:]:
        for name in _SAME:
            if other.data.get(name) != first.data.get(name):
                raise UsageError(
                    f"{first.folder} and {other.folder} differ in {name.replace('_', ' ')} "
                    f"({first.data.get(name)} and {other.data.get(name)}); a router learns from runs of one set-up."
                )
        if other.index != first.index or other.adapters != first.adapters:
            what = "index" if other.index != first.index else "adapters"
            raise UsageError(f"{first.folder} and {other.folder} measured other {what}; name runs of the same ones.")
    able = [
        tuple(a["arm"] for a in d.data["arms"] if a["arm"] not in BOUNDS and a.get("dropped") is None)
        for d in decisions
    ]
    arms = tuple(arm for arm in able[0] if all(arm in each for each in able))
    missing = sorted(set(wanted or ()) - set(arms))
    if missing:
        raise UsageError(
            f"{', '.join(missing)} was not measured in every run, or broke a limit; there are {', '.join(arms)}."
        )
    return tuple(arm for arm in arms if wanted is None or arm in wanted)


def _scores(
    decision: SavedDecision, arms: Sequence[str], metric: str
) -> tuple[list[list[float | None]], list[dict[str, Any]]]:
    """For each arm its scores (mean over its seeds), and the rows of the first arm."""
    scores: list[list[float | None]] = []
    first: list[dict[str, Any]] = []
    for arm in arms:
        seeds = []
        for seed in range(max(1, len(decision.adapters.get(arm, ())))):
            path = rows_path(decision.folder, arm, seed)
            try:
                rows = read_rows(path)
                first = first or rows
                if not rows or [r["id"] for r in rows] != [r["id"] for r in first]:
                    raise UsageError(
                        f"{path} does not hold the questions of this run; run `ragtune decide` again (finished answers "
                        "are kept)."
                    )
                if any("sources" not in r for r in rows):
                    raise UsageError(
                        f"{path} was written by an earlier version and does not say which documents its questions are "
                        "about; run `ragtune decide` again (finished answers are kept)."
                    )
                seeds.append([r["metrics"].get(metric) for r in rows])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path} is damaged ({error}); run `ragtune decide` again.") from error
        scores.append([None if None in each else float(np.mean(each)) for each in zip(*seeds, strict=True)])
    return scores, first


def _passages(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Passage, ...]]:
    """What retrieval found for each question, from the frozen retrievals. Where a question stands there twice (the
    index was changed in between) the last one counts."""
    path = folder / "retrievals" / "retrievals.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
        frozen = {line["question"]: line["passages"] for line in map(json.loads, filter(None, lines))}
        return [tuple(passage_from_dict(p) for p in frozen[row["question"]]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"The retrievals of this run ({path}) are gone or damaged ({error}); run `ragtune decide` again."
        ) from error


def _mean_cost(decisions: Sequence[SavedDecision], arms: Sequence[str], name: str) -> np.ndarray:
    """A figure of each arm, [arms], mean over the runs."""
    each = [{a["arm"]: float(a.get(name) or 0.0) for a in d.data["arms"]} for d in decisions]
    return np.array([np.mean([costs[arm] for costs in each]) for arm in arms])


def _fixed_all(decision: SavedDecision, arms: Sequence[str]) -> float:
    """Seconds spent once when all these arms stand ready."""
    used = [a for a in decision.data["arms"] if a["arm"] in arms]
    training = {decision.adapters.get(a["arm"], a["arm"]): float(a.get("training_seconds") or 0.0) for a in used}
    return sum(training.values()) + max(float(a.get("index_seconds") or 0.0) for a in used)


def group_by_source(sources: Sequence[Sequence[str]]) -> np.ndarray:
    """Numbers [n]: questions that share a document, directly or by way of others, get the same one; a question about
    no document its own."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    names = [[f"d:{source}" for source in each] or [f"q:{i}"] for i, each in enumerate(sources)]
    for each in names:
        for other in each[1:]:
            parent[root(other)] = root(each[0])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(each[0]), len(numbers)) for each in names], dtype=np.int64)


def _detail(*path: str) -> Callable[[Mapping[str, Any]], float]:
    """Reads a number out of the details of an answer; NaN where it is not there."""

    def read(details: Mapping[str, Any]) -> float:
        value: Any = details
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")

    return read


SIGNALS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], float]]] = {
    "Self-RAG δ": ("self-rag", "base", _detail("r")),
    "FLARE θ": ("flare", "rag", _detail("least")),
}
"""name → (the arm whose answers hold it, the arm that costs about as much, how to read it from their details)."""


def _signals(decision: SavedDecision) -> dict[str, dict[str, float]]:
    """name → question id → value, where the arm was measured."""
    found = {}
    for name, (arm, _, read) in SIGNALS.items():
        rows = read_rows(rows_path(decision.folder, arm))
        found[name] = {row["id"]: read(row["answer"].get("details") or {}) for row in rows}
    return found
