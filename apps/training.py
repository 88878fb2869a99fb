"""From questions to an adapter, as `ragtune tune` and `ragtune decide` share it.

This is where serving and training meet: rows are made from what the serving retriever finds, frozen on disk, and from
the serving settings, so that a model is trained on the prompts it will be given.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Console
from rag.errors import UsageError
from rag.types import Question

if TYPE_CHECKING:
    from rag.answer import AnswerConfig
    from rag.protocols import Generator
    from rag.retrieve import Retriever
    from tuning.rows import Row, RowsReport
    from tuning.train import TrainConfig, TrainReport

DEPTH = 20
"""Passages frozen for each training question: those shown, and enough others to be distractors."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training run is given on the command line; None takes what the recipe trains well with."""

    base: str
    recipe: str
    method: str
    epochs: float | None
    learning_rate: float | None
    minutes: float | None
    seed: int
    restart: bool = False
    critic: str | None = None
    instructions: Path | None = None

    def config(self) -> TrainConfig:
        """The settings of the recipe with what was given."""
        from tuning.recipes import recipe

        given = {"num_train_epochs": self.epochs, "learning_rate": self.learning_rate, "max_minutes": self.minutes}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return replace(recipe(self.recipe).TRAIN, method=self.method, seed=self.seed, **changes)


def make_rows(
    plan: Plan,
    questions: Sequence[Question],
    retriever: Retriever,
    generator: Generator,
    answer: AnswerConfig,
    frozen: Path,
    console: Console,
) -> tuple[list[Row], RowsReport]:
    """Training rows of a recipe; what retrieval found is kept in `frozen`. TrainingError when none can be made."""
    from rag.retrieve import freeze
    from tuning.recipes import recipe

    made = recipe(plan.recipe)
    retrievals: Sequence[Any] = [()] * len(questions)
    if made.NEEDS_PASSAGES:
        console.progress("searching for the training questions", 0, len(questions))
        queries = made.queries(questions) if hasattr(made, "queries") else [q.question for q in questions]
        retrievals = freeze(retriever, queries, frozen, max(DEPTH, answer.k))
        console.progress("searching for the training questions", len(questions), len(questions))
    config = replace(
        made.ROWS,
        k=answer.k,
        context_tokens=answer.context_tokens,
        style=answer.style,
        citations=answer.style == "cited",
        seed=plan.seed,
    )
    more: dict[str, Any] = {}
    if getattr(made, "NEEDS_MODEL", False):
        console.progress("labelling", 0, 0, "what the model knows without passages")
        more = {"generator": generator, "critic": plan.critic, "folder": frozen}
    if plan.instructions is not None:
        from tuning.mixture import read_instructions

        if not hasattr(made, "MIXTURE"):
            raise UsageError(f"--instructions goes with --recipe ra-dit; {plan.recipe} mixes in nothing.")
        more["instructions"] = read_instructions(plan.instructions)
    rows: tuple[list[Row], RowsReport] = made.rows(
        questions, retrievals, config=config, count_tokens=generator.count_tokens, chunks=retriever.index.chunks, **more
    )
    return rows


def train_adapter(
    plan: Plan, rows: Sequence[Row], out: Path, console: Console, *, stage: str = "training", **record: Any
) -> TrainReport:
    """Train on the rows; `record` is kept with the adapter. A finished run with the same inputs is found again."""
    from tuning.train import train

    out.parent.mkdir(parents=True, exist_ok=True)
    console.progress(stage, 0, 0, f"loading {plan.base}")
    return train(
        rows,
        base=plan.base,
        out=out,
        config=plan.config(),
        recipe=plan.recipe,
        progress=lambda _, done, total, detail: console.progress(stage, done, total, detail),
        resume=not plan.restart,
        record=record,
    )


def frozen_folder(out: Path) -> Path:
    """Where the retrievals of an unfinished `ragtune tune` are kept, so that a resumed run sees the same contexts."""
    return out.with_name(f".{out.name}.retrievals")


def forget_frozen(out: Path) -> None:
    """After a finished run: the adapter's record has the hash of its data, the texts need not lie around."""
    shutil.rmtree(frozen_folder(out), ignore_errors=True)


def estimate(plan: Plan, rows: Sequence[Row], generator: Generator) -> tuple[int, float]:
    """Tokens of the run, and about how many seconds they take, from one forward pass over a few rows.

    A step costs about three forward passes (the backward pass is two). Within a factor of two: for a person who decides
    whether to wait.
    """
    few = list(rows[:: max(1, len(rows) // 4)][:4])
    generator.score([few[0].prompt], [few[0].completion])  # the first call pays for what later ones do not
    begin = time.perf_counter()
    generator.score([row.prompt for row in few], [row.completion for row in few])
    seconds = time.perf_counter() - begin

    def length(row: Row) -> int:
        return sum(map(generator.count_tokens, (row.completion, *(m["content"] for m in row.prompt))))

    seen = sum(map(length, few))
    total = int(sum(map(length, rows)) * plan.config().num_train_epochs)
    took = 3 * seconds * total / max(1, seen)
    return total, min(took, 60 * plan.minutes) if plan.minutes else took
