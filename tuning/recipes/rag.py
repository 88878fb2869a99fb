"""Answers from retrieved contexts (RAFT): rows hold what the serving retriever really finds, in serving order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rag.types import Chunk, Passage, Question
from tuning.rows import Row, RowsConfig, RowsReport, build_rows
from tuning.train import TrainConfig

ROWS = RowsConfig()
TRAIN = TrainConfig(learning_rate=1e-3, num_train_epochs=3, upper_layers=0.5, tokens_per_step=2048)
"""Adapters on the upper half of the layers: a step costs two thirds, and half from the second epoch on. Small steps:
where minutes are short, the number of updates counts."""
NEEDS_PASSAGES = True


def rows(
    questions: Sequence[Question],
    retrievals: Sequence[Sequence[Passage]],
    *,
    config: RowsConfig,
    count_tokens: Callable[[str], int],
    chunks: Iterable[Chunk],
) -> tuple[list[Row], RowsReport]:
    """Rows of this recipe; see `tuning.rows.build_rows`."""
    return build_rows(questions, retrievals, config=config, count_tokens=count_tokens, chunks=chunks)
