"""The router: for each question the arm that is worth most, from what is known before answering.

The worth of an arm for a question is its expected score minus what its seconds cost:

    utility(question, arm) = E[score | question, arm] − worth · seconds(arm)

`worth` is the score that one second is worth. It follows from the decision's settings: the step from the quickest arm
to the slowest must bring at least the minimal gain. Where the best arm's lead over the usual one is smaller than a
margin (fitted), the usual one answers. `router.json` holds all of it as plain numbers, and what was measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents import router_model
from agents.router_features import FEATURES, UNCERTAINTY, describe
from agents.router_model import Model
from agents.rows import write_text
from rag.errors import ConfigError, UsageError
from rag.types import ALL_ARMS, Passage

FORMAT = 1
FILE = "router.json"
_ABOUT = "what it is about speaks for it"  # the embedding has no words of its own


@dataclass(frozen=True, slots=True)
class Choice:
    """The arm for one question. `expected` are scores in [0, 1] by arm; `instead_of` is the arm it was weighed against
    (the usual one, or the next best); `seconds` is the time of choosing, without retrieval."""

    arm: str
    reason: str
    expected: Mapping[str, float]
    instead_of: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as they stand in `Answer.details["route"]`."""
        rounded = {arm: round(value, 4) for arm, value in self.expected.items()}
        return {
            "arm": self.arm,
            "reason": self.reason,
            "expected": rounded,
            "instead_of": self.instead_of,
            "seconds": round(self.seconds, 5),
        }


@dataclass(frozen=True, slots=True)
class Router:
    """A fitted router. `costs` [arms] are the seconds that it charges for each arm (see `agents.router_training`);
    `made_with` says with which models and settings it was measured; `report` what was measured.
    """

    arms: tuple[str, ...]
    usual: str
    metric: str
    costs: tuple[float, ...]
    worth: float
    margin: float
    model: Model
    features: tuple[str, ...]
    made_with: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def better(self) -> bool:
        """Whether it was measured to be better than the best single arm, beyond chance."""
        return bool(self.report.get("better"))

    @property
    def embeds(self) -> bool:
        """Whether it looks at the question's embedding."""
        return bool(len(self.model.scaling.axes))

    @property
    def asks_generator(self) -> bool:
        """Whether it looks at the generator's own uncertainty, which costs two prefills."""
        return len(self.features) > len(FEATURES)

    def choose(
        self,
        question: str,
        passages: Sequence[Passage],
        *,
        vector: np.ndarray | None = None,
        sure: Sequence[float] = (),
        allowed: Sequence[str] | None = None,
    ) -> Choice:
        """The arm for one question and the passages that were found for it (`agents.router_features.DEPTH` of them).

        `vector` [d] is the question's embedding, needed where `embeds`; `sure` the values of `uncertainty`, needed
        where `asks_generator`; `allowed` are the arms that can answer here (default: all).
        """
        begin = time.perf_counter()
        values = np.array([[*describe(question, passages), *sure]])
        columns = self.model.scaling.apply(values, None if vector is None else np.atleast_2d(vector))
        expected = self.model.from_columns(columns)[0]
        worth = self.utilities(expected[None])[0]
        able = [i for i, arm in enumerate(self.arms) if allowed is None or arm in allowed]
        if not able:
            raise UsageError(f"None of the router's arms ({', '.join(self.arms)}) can answer here.")
        usual = self.arms.index(self.usual) if self.arms.index(self.usual) in able else able[0]
        best = max(able, key=lambda i: worth[i])
        pick = best if worth[best] - worth[usual] > self.margin else usual
        others = [i for i in able if i != pick]
        rival = usual if pick != usual else max(others, key=lambda i: worth[i], default=pick)
        reason = self._reason(columns, pick, rival, expected)
        named = dict(zip(self.arms, map(float, expected), strict=True))
        return Choice(self.arms[pick], reason, named, self.arms[rival], time.perf_counter() - begin)

    def utilities(self, expected: np.ndarray) -> np.ndarray:
        """Expected scores [n, arms] minus what the seconds cost."""
        return expected - self.worth * np.array(self.costs)

    def _reason(self, columns: np.ndarray, pick: int, rival: int, expected: np.ndarray) -> str:
        """One sentence: which features speak most for `pick` against `rival` (each one set to its mean in turn), and
        what is expected of both."""
        other = self.arms[rival]
        if pick == rival:
            return "no other arm can answer here."
        figures = f"expected {self.metric} {expected[pick]:.2f}, by {other} {expected[rival]:.2f}"
        cheaper = self.costs[pick] < self.costs[rival] and expected[pick] <= expected[rival]
        changed = np.repeat(columns, columns.shape[1], axis=0)
        np.fill_diagonal(changed, 0.0)
        without = self.model.from_columns(changed)
        speaks = (expected[pick] - expected[rival]) - (without[:, pick] - without[:, rival])
        phrases = self._phrases(columns[0], speaks)
        why = "; ".join(phrases) if phrases else "nothing about the question speaks against the usual choice"
        return f"{why} ({figures}{', and it is quicker' if cheaper else ''})."

    def _phrases(self, values: np.ndarray, speaks: np.ndarray, most: int = 2) -> list[str]:
        """The features that speak most for the choice, in words; the embedding's components speak together."""
        words = {**FEATURES, **UNCERTAINTY}
        count = len(self.features)
        found = [(float(speaks[i]), words[name][0 if values[i] > 0 else 1]) for i, name in enumerate(self.features)]
        found.append((float(speaks[count:].sum()), _ABOUT if self.embeds else ""))
        found = sorted((item for item in found if item[0] > 0.005 and item[1]), key=lambda item: -item[0])
        return [phrase for _, phrase in found[:most]]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `router.json` into a run folder, in one move."""
        path = Path(folder) / FILE
        data = {
            "format": FORMAT,
            "arms": list(self.arms),
            "usual": self.usual,
            "metric": self.metric,
            "costs": list(self.costs),
            "worth": self.worth,
            "margin": self.margin,
            "features": list(self.features),
            "model": router_model.to_json(self.model),
            "made_with": dict(self.made_with),
            "report": dict(self.report),
        }
        write_text(path, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        return path


def load_router(folder: str | os.PathLike[str]) -> Router | None:
    """The router of a run folder; None where it has none. ConfigError when the file is damaged or of a newer format."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if int(data["format"]) > FORMAT:
            raise ConfigError(
                f"{path} has format {data['format']}; this version reads up to {FORMAT}: upgrade ragtune."
            )
        arms, features = tuple(data["arms"]), tuple(data["features"])
        costs = tuple(float(c) for c in data["costs"])
        if not set(arms) <= set(ALL_ARMS) or data["usual"] not in arms or len(costs) != len(arms):
            raise ValueError(f"arms {arms!r}")
        if features not in (tuple(FEATURES), (*FEATURES, *UNCERTAINTY)):
            raise ValueError("features of another version")
        model = router_model.from_json(data["model"], arms=len(arms), features=len(features))
        return Router(
            arms, str(data["usual"]), str(data["metric"]), costs, float(data["worth"]), float(data["margin"]), model,
            features, dict(data["made_with"]), dict(data["report"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); run `ragtune route` again.") from error
