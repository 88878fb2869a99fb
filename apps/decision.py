"""A decision as it lies on disk, read for the page: its figures, its report, and the adapters it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.views import DecisionView
from rag.types import ALL_ARMS

_MAX_REPORT = 20 * 2**20


def decision_view(path: Path) -> DecisionView:
    """The decision of a run folder (or of its decision.json), with its report.

    Raises UsageError when there is none, ConfigError when it cannot be read.
    """
    from agents.record import read_decision

    file, data = read_decision(path)
    report = file.with_name("report.html")
    fits = report.is_file() and report.stat().st_size <= _MAX_REPORT
    text = report.read_text(encoding="utf-8", errors="replace") if fits else ""
    return DecisionView(data, file.parent.name, text, str(file.parent))


def decided_adapters(view: DecisionView, folder: Path) -> dict[str, str]:
    """Adapter folders by arm as the decision names them (relative ones to `folder`), without those that vanished."""
    found: dict[str, str] = {}
    for arm in view.data.get("arms") or ():
        named: Any = arm.get("adapter") if isinstance(arm, dict) else None
        if isinstance(named, str) and named and arm.get("arm") in ALL_ARMS:
            place = next((p for p in (Path(named), folder / named) if p.is_dir()), None)
            if place is not None:
                found[arm["arm"]] = str(place)
    return found
