"""`decision.json`: what was decided, on what figures, with which settings and machine; and reading it back."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.checks import Forgetting
from agents.compare import ArmCost
from agents.rows import write_text
from rag.errors import ConfigError, UsageError
from rag.evaluate import Evaluation, Item, summarise
from rag.prompt import PROMPT_VERSION
from rag.types import ALL_ARMS, to_dict

if TYPE_CHECKING:
    from agents.arms import Settings
    from agents.halves import Halves
    from agents.rule import Decision

FORMAT = 1
FILE = "decision.json"
_LIBRARIES = ("ragtune", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "numpy")


@dataclass(frozen=True, slots=True)
class SavedDecision:
    """A decision as it is served: the chosen arm and what it needs; `data` is the whole file.

    `adapters` are absolute folders by arm (several for several seeds; the first is the one to serve).
    """

    folder: Path
    chosen: str | None
    reason: str
    adapters: Mapping[str, tuple[Path, ...]]
    index: Path
    data: Mapping[str, Any]


def load_decision(path: str | os.PathLike[str]) -> SavedDecision:
    """Reads a run folder, or its decision.json, with all that serving and learning from it need.

    Raises UsageError when there is none, ConfigError when it is damaged or of a newer format.
    """
    file, data = read_decision(path)
    folder = file.parent
    try:
        adapters = {
            arm["arm"]: tuple((folder / each).resolve() for each in arm.get("adapters", ()))
            for arm in data["arms"]
            if arm["arm"] in ALL_ARMS and arm.get("adapters")
        }
        return SavedDecision(folder, data["chosen"], data["reason"], adapters, (folder / data["index"]).resolve(), data)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error!r}); run `ragtune decide` again.") from error


def read_decision(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The file of a decision (of its run folder) and what it holds; only the format and the chosen arm are checked.

    Raises as `load_decision`.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UsageError(f"There is no decision at {path} (no {FILE}). Make one with `ragtune decide`.")
    try:
        data = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
        if int(data.get("format", FORMAT)) > FORMAT:
            raise ConfigError(
                f"{file} has format {data['format']}; this version reads up to {FORMAT}: upgrade ragtune."
            )
        if data["chosen"] not in (None, *ALL_ARMS):
            raise ValueError(f"chosen arm {data['chosen']!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is damaged ({error!r}); run `ragtune decide` again.") from error
    return file, data


def write_decision(
    setup: Settings,
    decision: Decision,
    *,
    runs: Mapping[str, Sequence[Evaluation]],
    costs: Mapping[str, ArmCost],
    forgetting: Sequence[Forgetting],
    retrieved: Evaluation,
    seconds: float,
    halves: Halves | None = None,
) -> None:
    """Writes decision.json and report.html, each in one move."""
    from agents.report import write_report

    config = setup.config
    merged = {arm: _merged(seeds, config.resamples, config.alpha, config.seed) for arm, seeds in runs.items()}
    results = {result.arm: result for result in decision.arms}
    arms = []
    for arm, evaluation in merged.items():
        folders = [os.path.relpath(folder, setup.out) for folder in setup.adapters.get(arm, ())]
        result = to_dict(results[arm])
        figures = {name: to_dict(interval) for name, interval in evaluation.summary.items()}
        figures |= {"abstention": figures.get("abstained"), "seconds_p50": result.pop("p50")}
        figures |= {"seconds_p95": result.pop("p95"), config.primary: result.pop("quality")}
        own: dict[str, Any] = {"adapter": folders[0] if folders else None, "adapters": folders}
        cost = costs[arm]
        own |= {"training_seconds": cost.training_seconds, "index_seconds": cost.index_seconds}
        arms.append({**result, **own, "n": len(evaluation.items), **figures})
    whole = to_dict(decision)
    whole["arms"] = arms
    whole["not_separable"] = decision.outcome == "not separable"
    manifest = setup.index.manifest
    data = {
        "format": FORMAT,
        "chosen": decision.chosen,
        "reason": decision.reason,
        **whole,
        "kinds": _by_kind(merged, config.primary, resamples=config.resamples, alpha=config.alpha, seed=config.seed),
        "forgetting": [to_dict(f) for f in forgetting],
        "halves": to_dict(halves) if halves else None,
        "retrieved": retrieved.to_dict(),
        "config": asdict(config),
        "retrieval_config": asdict(setup.retriever.config),
        "answer_config": asdict(setup.answer),
        "prompt_version": PROMPT_VERSION,
        "generator": setup.generator.name,
        "generator_fingerprint": setup.generator.fingerprint,
        "encoder": manifest.encoder,
        "index": os.path.relpath(setup.index.folder, setup.out),
        "index_generation": setup.index.generation,
        "versions": _versions(),
        "machine": _machine(setup.generator),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }
    write_text(setup.out / FILE, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    write_report(setup.out)


def _merged(seeds: Sequence[Evaluation], resamples: int, alpha: float, seed: int) -> Evaluation:
    """One evaluation of several seeds: every score of a question is its mean over them."""
    if len(seeds) == 1:
        return seeds[0]
    items = []
    for same in zip(*(e.items for e in seeds), strict=True):
        row: dict[str, float | None] = {}
        for name in same[0].metrics:
            values = [value for item in same if (value := item.metrics.get(name)) is not None]
            row[name] = float(np.mean(values)) if values else None
        items.append(Item(same[0].id, same[0].cluster, row, same[0].kind))
    return Evaluation(tuple(items), summarise(items, resamples=resamples, alpha=alpha, seed=seed))


def _by_kind(merged: Mapping[str, Evaluation], metric: str, **options: Any) -> dict[str, Any]:
    """For each kind of question its number and the primary metric of every arm."""
    kinds: dict[str, Any] = {}
    for arm, evaluation in merged.items():
        for kind, part in evaluation.by_kind(**options).items():
            row = kinds.setdefault(kind, {"n": len(part.items), "arms": {}})
            row["arms"][arm] = to_dict(part.summary.get(metric))
    return kinds


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine(generator: Any) -> dict[str, Any]:
    """What a reader of the timings needs to know; an endpoint's generator has no device here."""
    machine: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count(), "processor": _processor()}
    machine |= {
        name: str(value) for name in ("device", "dtype") if (value := getattr(generator, name, None)) is not None
    }
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
