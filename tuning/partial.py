"""What a run of `ragtune questions` has kept so far, and the file that holds it so that the run can go on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rag.errors import UsageError
from rag.types import Evidence, Question

Origin = Literal["rule", "written"]


@dataclass
class State:
    """What a partial file holds, and what its counts add up to."""

    kept: list[Question] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    seconds: float = 0.0


class Partial:
    """FILE.partial: a line that says what it belongs to, then one line for each batch."""

    def __init__(self, path: Path, identity: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.state = State()
        self._written = 0
        good = self._read(identity) if resume and path.is_file() else 0
        with path.open("r+b" if good else "wb") as file:
            file.truncate(good)  # a half-written last line is of a batch that will be run again
            if not good:
                file.write((json.dumps({"partial": 1, **identity}) + "\n").encode())

    def _read(self, identity: Mapping[str, Any]) -> int:
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if not lines:
            return 0
        head = json.loads(lines[0])
        changed = [name for name, value in identity.items() if head.get(name) != value]
        if changed:
            raise UsageError(
                f"{self.path} was begun with another {', '.join(changed)}. Delete it to begin again, or give the same."
            )
        for line in lines[1:]:
            data = json.loads(line)
            self.state.kept += [_from_json(row) for row in data["kept"]]
            self.state.origins += data["origins"]
            self.state.tried, self.state.passed = Counter(data["tried"]), Counter(data["passed"])
            self.state.batches, self.state.seconds = data["batches"], data["seconds"]
        self._written = len(self.state.kept)
        return sum(len(line) + 1 for line in lines)

    def append(self, state: State) -> None:
        """Add a batch; on disk when this returns."""
        line = {
            "kept": [asdict(q) for q in state.kept[self._written :]],
            "origins": state.origins[self._written :],
            "tried": state.tried, "passed": state.passed, "batches": state.batches, "seconds": round(state.seconds, 3),
        }  # fmt: skip
        self._written = len(state.kept)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _from_json(row: Mapping[str, Any]) -> Question:
    evidence = tuple(Evidence(e["source"], e["quote"]) for e in row["evidence"])
    return Question(row["id"], row["question"], tuple(row["answers"]), evidence, row["unanswerable"])
