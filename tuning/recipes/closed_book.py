"""Answers from memory: rows without passages, for the `tuned` arm. More epochs, because facts are to be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rag.types import Chunk, Passage, Question
from tuning.rows import Row, RowsConfig, RowsReport, closed_book_rows
from tuning.train import TrainConfig

ROWS = RowsConfig()
TRAIN = TrainConfig(learning_rate=5e-4, num_train_epochs=4, tokens_per_step=1024, upper_layers=0.5)
NEEDS_PASSAGES = False


def rows(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    config: RowsConfig,
    count_tokens: Callable[[str], int],
    chunks: Iterable[Chunk],
) -> tuple[list[Row], RowsReport]:
    """Rows of this recipe; retrievals and chunks are not used."""
    return closed_book_rows(questions, count_tokens=count_tokens)
