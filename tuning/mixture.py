"""Rows of several sets in one training run: sets by their size with a cap, others by a share of all rows.

As RA-DIT mixes its data (Lin et al. 2023, arXiv 2310.01352, appendix): at most 7,500 rows of a task, 10 % of all rows
unsupervised text, 5 % general instructions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import ConfigError, QuestionsError
from rag.prompt import neutralise
from rag.protocols import TEXT
from rag.types import Chunk
from tuning.rows import Row

CONTINUED = 16
"""Most words of a text's continuation: each trained token counts the same, and answers have only a few."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of all rows (`unsupervised` text, `instructions`), and the most rows of any one set (`cap`)."""

    unsupervised: float = 0.10
    instructions: float = 0.05
    cap: int = 7500

    def __post_init__(self) -> None:
        for name in ("unsupervised", "instructions"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: allowed is 0 up to, but not including, 1.")
        if self.unsupervised + self.instructions >= 1:
            raise ConfigError(
                f"unsupervised and instructions are {self.unsupervised} and {self.instructions}: "
                "together they must leave room for the questions (less than 1)."
            )
        if self.cap < 1:
            raise ConfigError(f"cap is {self.cap}; it must be at least 1.")


def mix(
    tasks: Mapping[str, Sequence[Row]],
    *,
    unsupervised: Sequence[Row] = (),
    instructions: Sequence[Row] = (),
    mixture: Mixture = Mixture(),
    seed: int = 0,
) -> list[Row]:
    """Rows of all sets, in seeded order. A set that has too few rows for its share gives all of them, once."""
    rows = [row for name, given in tasks.items() for row in _draw(given, mixture.cap, f"{seed}:{name}")]
    rest = 1 - mixture.unsupervised - mixture.instructions
    total = len(rows) / rest
    for name, share, given in (
        ("unsupervised", mixture.unsupervised, unsupervised),
        ("instructions", mixture.instructions, instructions),
    ):
        rows += _draw(given, min(mixture.cap, round(share * total)), f"{seed}:{name}")
    random.Random(f"{seed}:order").shuffle(rows)
    return rows


def _draw(rows: Sequence[Row], most: int, seed: str) -> list[Row]:
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), most))]


def text_rows(chunks: Iterable[Chunk]) -> list[Row]:
    """Rows from the documents themselves: the first half of a chunk, continued. Chunks of few words give none."""
    rows = []
    for chunk in chunks:
        words = chunk.text.split()
        if len(words) < 2 * CONTINUED:
            continue
        half = len(words) // 2
        prompt = ({"role": TEXT, "content": neutralise(" ".join(words[:half]))},)
        said = " " + neutralise(" ".join(words[half : half + CONTINUED]))
        rows.append(Row(f"text:{chunk.id}", "general", prompt, said, (), (chunk.id,), (chunk.source,)))
    return rows


def read_instructions(path: Path) -> list[Row]:
    """Rows from JSON lines with an instruction and an answer, under the names that such sets use.

    `instruction` (with `input`, `context`) or `prompt` or `question`; `output`, `response`, `completion` or `answer`.
    Raises QuestionsError naming the line that lacks one.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionsError(f"The instructions {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        asked, said = _instruction(line)
        if not asked or not said:
            raise QuestionsError(
                f"{path}, line {number}: an instruction and its answer are wanted, as in "
                '{"instruction": "Name a colour.", "output": "blue"}.'
            )
        prompt = ({"role": "user", "content": neutralise(asked)},)
        rows.append(Row(f"instruction:{number}", "general", prompt, neutralise(said)))
    return rows


def _instruction(line: str) -> tuple[str, str]:
    try:
        data: Any = json.loads(line)
    except ValueError:
        return "", ""
    if not isinstance(data, dict):
        return "", ""
    asked = _first(data, ("instruction", "prompt", "question"))
    more = _first(data, ("input", "context"))
    return "\n\n".join(p for p in (asked, more if asked else "") if p), _first(
        data, ("output", "response", "completion", "answer")
    )


def _first(data: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((data[n].strip() for n in names if isinstance(data.get(n), str) and data[n].strip()), "")
