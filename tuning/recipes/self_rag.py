"""Answers with reflection tokens (Self-RAG): rows about one passage each, whose critique is learnt with the answer.

Labels come from the questions file; a trained critic is asked where that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rag.protocols import Generator
from rag.reflection import TOKENS
from rag.self_rag import frame
from rag.self_rag_parts import reminder
from rag.types import Chunk, Passage, Question
from tuning import augment
from tuning.augment import AugmentConfig, Augmented, closed_book
from tuning.critic import Judge, Labels
from tuning.rows import Row, RowsConfig, RowsReport
from tuning.train import TrainConfig

ROWS = RowsConfig()
TRAIN = TrainConfig(learning_rate=1e-3, num_train_epochs=2, tokens_per_step=2048, added_tokens=TOKENS)
"""All layers: the new rows of the embeddings are trained, so that the backward pass reaches the lowest layer anyway."""
NEEDS_PASSAGES = True
NEEDS_MODEL = True
"""`rows` takes the generator (for what it knows by itself, and as critic), and the folder for what is kept."""


def queries(questions: Sequence[Question]) -> list[str]:
    """What is searched, flat: for each question itself, and it with each segment of its answer."""
    return [query for question in questions for query in augment.queries(question)]


def rows(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    config: RowsConfig,
    count_tokens: Callable[[str], int],
    chunks: Iterable[Chunk],
    generator: Generator,
    critic: str | None = None,
    folder: Path | None = None,
) -> tuple[list[Row], RowsReport]:
    """Rows of this recipe; `retrievals` are those of `queries(questions)`."""
    found, at = [], 0
    for question in questions:
        size = len(augment.queries(question))
        found.append(retrievals[at : at + size])
        at += size
    sources = {"critic": Judge(generator, critic)} if critic else {}
    made, report = augment.augment(
        questions,
        found,
        config=AugmentConfig(seed=config.seed),
        labels=Labels(sources, folder),
        chunks=chunks,
        answers=closed_book(questions, generator, folder),
    )
    absent = sum(q.unanswerable for q in questions)
    kinds = report.kinds
    return [row(example, generator) for example in made], RowsReport(
        len(questions), report.rows, kinds.get("answer", 0) + kinds.get("without", 0), kinds.get("abstain", 0),
        kinds.get("answer", 0), 0, 0, absent, report.without,
    )  # fmt: skip


def row(example: Augmented, generator: Generator) -> Row:
    """One example as a row: the prompt that serving uses, and the stream as completion."""
    passages = tuple(range(1, len(example.chunks) + 1))
    return Row(
        example.question.id,
        "abstain" if example.abstains else "answer",
        tuple(frame(example.question.question, generator)),
        example.stream.render(reminder(example.question.question)),
        () if example.abstains else passages,
        tuple(chunk.id for chunk in example.chunks),
        tuple(dict.fromkeys(chunk.source for chunk in example.chunks)),
    )
