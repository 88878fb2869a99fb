"""The questions of a decision where its arms disagree, read from the rows that `ragtune decide` keeps for every arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILE = 200 * 2**20  # bytes of one arm's rows; more would hold up the page


@dataclass(frozen=True, slots=True)
class Said:
    """What one arm answered, and its score in the metric of the decision."""

    arm: str
    text: str
    score: float
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A question, what was wanted, and what each arm said; `spread` is the best score less the worst."""

    question: str
    wanted: tuple[str, ...]
    said: tuple[Said, ...]
    spread: float
    kind: str = ""


def disagreements(folder: Path, metric: str, arms: Sequence[str], *, most: int = 30) -> list[Disagreement]:
    """The questions on which `arms` score most differently, the widest spread first; [] where rows are gone."""
    rows = {arm: _rows(folder / f"rows-{arm}.jsonl") for arm in arms}
    rows = {arm: found for arm, found in rows.items() if found}
    if len(rows) < 2:
        return []
    first = next(iter(rows.values()))
    found = []
    for key, row in first.items():
        said = tuple(
            Said(arm, str(r["answer"]["text"]), float(score), bool(r["answer"].get("abstained")))
            for arm, by_id in rows.items()
            if (r := by_id.get(key)) is not None and (score := r["metrics"].get(metric)) is not None
        )
        spread = max((s.score for s in said), default=0.0) - min((s.score for s in said), default=0.0)
        if len(said) > 1 and spread > 0:
            wanted = tuple(str(a) for a in row.get("answers") or ())
            found.append(Disagreement(str(row["question"]), wanted, said, spread, str(row.get("kind") or "")))
    return sorted(found, key=lambda d: -d.spread)[:most]


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by question id; a line that cannot be read is passed over, a missing or huge file is empty."""
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line) if line else None
            if row and isinstance(row["answer"], dict) and isinstance(row["metrics"], dict):
                found[str(row["id"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found
