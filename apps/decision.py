"""A decision as it lies on disk, read for the page: its figures, its report, and the adapters it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apps.views import DecisionView
from rag.errors import ConfigError, UsageError
from rag.types import ALL_ARMS

FORMAT = 1
_MAX_REPORT = 20 * 2**20


def load_decision(path: Path) -> DecisionView:
    """The decision of a run folder (or of its decision.json).

    Raises UsageError when there is none, ConfigError when it cannot be read.
    """
    file = path / "decision.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} holds no decision.json; `ragtune decide ... --out {path}` writes one.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not JSON ({error}); run `ragtune decide` again.") from error
    if not isinstance(data, dict) or data.get("chosen") not in (None, *ALL_ARMS):
        allowed = ", ".join(ALL_ARMS)
        raise ConfigError(f"{file} does not name a chosen arm out of {allowed}; run `ragtune decide` again.")
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise ConfigError(f"{file} has format {data['format']}; this version reads up to {FORMAT}: upgrade ragtune.")
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
