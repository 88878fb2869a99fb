"""Question-answer-evidence rows from documents alone: possible answers, questions for them, a round trip, what is kept.

    span of a chunk → a question (by rules of word order, or written by the generator)
      → it stands alone → it is new → it reads like language → the retriever finds the chunk
      → the answerer, given the passage, returns the span

Questions by rules have the right answer by construction; written ones sound like a person, if the model is large
enough. Each batch has both: mostly the former with a small generator, mostly the latter with a large one. The run can
be stopped and resumed: FILE.partial holds what was kept.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rag.errors import QuestionsError, UsageError
from rag.protocols import Generator
from rag.types import Question
from tuning.making import Maker, QuestionsConfig
from tuning.partial import Partial

if TYPE_CHECKING:
    from rag.retrieve import Retriever

__all__ = ["QuestionsConfig", "QuestionsReport", "make_questions", "split_by_document"]

Progress: TypeAlias = Callable[[str, int, int, str], None]
FILTERS = ("stands_alone", "new", "fluent", "found", "returned")


@dataclass(frozen=True, slots=True)
class QuestionsReport:
    """`filters`: share of the questions tried at a filter that passed it. `asked`: questions that were made up."""

    file: Path
    asked: int
    kept: int
    unanswerable: int
    filters: dict[str, float]
    origins: dict[str, int]
    seconds: float
    complete: bool


def make_questions(
    retriever: Retriever,
    generator: Generator,
    *,
    out: Path | str,
    n: int = 400,
    config: QuestionsConfig = QuestionsConfig(),
    progress: Progress | None = None,
    resume: bool = True,
    max_minutes: float | None = None,
) -> QuestionsReport:
    """Write up to `n` rows to `out`; fewer when the documents or the time give no more (`complete` is False then).

    Raises:
        QuestionsError: the index holds no text of which a question could be made.
        UsageError: `n` is not positive, or FILE.partial is of another index, model or config.
    """
    if n < 1:
        raise UsageError(f"-n is {n}: ask for at least 1 question.")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    maker = Maker(retriever, generator, config)
    partial = Partial(out.with_name(out.name + ".partial"), maker.identity(), resume)
    state = partial.state
    wanted = n - round(n * config.unanswerable_share)
    began, before = time.perf_counter(), state.seconds
    batches = maker.batches(state)
    while len(state.kept) < wanted:
        if progress:
            progress("questions", len(state.kept), wanted, f"{state.tried['asked']} asked")
        if max_minutes is not None and state.seconds >= 60 * max_minutes:
            break
        batch = next(batches, None)
        if batch is None:
            break
        maker.run(batch, state, wanted)
        state.batches += 1
        state.seconds = before + time.perf_counter() - began
        partial.append(state)
    rows = state.kept[:wanted]
    if not rows:
        raise QuestionsError(
            f"None of {state.tried['asked']} questions passed the filters, so {out} was not written. Index more "
            "documents in plain sentences, or name a larger model with --generator."
        )
    odds = config.unanswerable_share / (1 - config.unanswerable_share)
    unanswerable = maker.unanswerable(rows, min(n - wanted, max(1, round(odds * len(rows)))) if n > wanted else 0)
    _finish(out, [*rows, *unanswerable], partial.path)
    return QuestionsReport(
        out, state.tried["asked"], len(rows), len(unanswerable),
        {name: state.passed[name] / state.tried[name] if state.tried[name] else 0.0 for name in FILTERS},
        dict(Counter(state.origins[: len(rows)])), state.seconds, len(rows) == wanted,
    )  # fmt: skip


def split_by_document(
    questions: Sequence[Question], *, test: float = 0.3, seed: int = 0
) -> tuple[list[Question], list[Question]]:
    """(train, test) without a document on both sides; about `test` of the questions are in the second part."""
    sources = sorted({e.source for q in questions for e in q.evidence})
    random.Random(seed).shuffle(sources)
    parent = {s: s for s in sources}

    def root(s: str) -> str:
        while parent[s] != s:
            s = parent[s]
        return s

    for q in questions:
        for e in q.evidence[1:]:
            parent[root(e.source)] = root(q.evidence[0].source)
    groups: dict[str, list[Question]] = {s: [] for s in sources}
    loose = [q for q in questions if not q.evidence]
    for q in questions:
        if q.evidence:
            groups[root(q.evidence[0].source)].append(q)
    chosen: set[str] = set()
    count = 0
    for s in sources:
        if groups[s] and count + len(groups[s]) / 2 <= test * (len(questions) - len(loose)):
            chosen |= {q.id for q in groups[s]}
            count += len(groups[s])
    chosen |= {q.id for q in loose[: round(test * len(loose))]}
    return [q for q in questions if q.id not in chosen], [q for q in questions if q.id in chosen]


def _finish(out: Path, rows: Sequence[Question], partial: Path) -> None:
    from rag.questions import write_questions

    aside = out.with_name(f".{out.name}.tmp")
    write_questions(aside, rows)
    os.replace(aside, out)
    partial.unlink(missing_ok=True)
