"""Which half earns the gain: retriever and generator, each untouched or tuned, on the same questions.

The two-by-two of RA-DIT (Lin et al. 2023, arXiv 2310.01352, section 4): measured where a tuned query side asks the
index. The run itself has the cell with both halves; the others are answered here, with retrievals of their own where
the untouched retriever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from agents.measure import Settings, measure
from agents.rule import common
from rag.evaluate import Evaluation
from rag.index import Index
from rag.protocols import Reranker
from rag.query_encoder import TunedQueries
from rag.retrieve import Retriever, freeze
from rag.statistics import Interval, contrast
from rag.types import MODE_ARMS

READERS = ("ra-dit", "tuned+rag")
"""Arms with weights of their own that read passages; the first one that was measured is taken apart."""


@dataclass(frozen=True, slots=True)
class Halves:
    """Means of the primary metric in the four cells, and what each half brings, over the same questions.

    `retriever` and `generator` are the gains of one half alone over neither, `both` that of the two together, and
    `interaction` = both − retriever − generator: above 0, each half makes the other worth more.
    """

    arm: str
    query_encoder: str
    cells: Mapping[str, float]
    retriever: Interval
    generator: Interval
    both: Interval
    interaction: Interval


def measure_halves(
    setup: Settings, runs: Mapping[str, Sequence[Evaluation]], *, depth: int, reranker: Reranker | None = None
) -> Halves | None:
    """Measures the cells that are missing; None where the query side is untouched or no tuned arm reads passages."""
    tuned = setup.index.encoder
    arm = next((arm for arm in READERS if arm in runs and setup.adapters.get(arm)), None)
    if not isinstance(tuned, TunedQueries) or arm is None:
        return None
    untouched = Retriever(Index.open(setup.index.folder, tuned.documents), setup.retriever.config, reranker=reranker)
    folder = setup.out / "halves"
    frozen = freeze(untouched, setup.asked, folder / "retrievals", depth)
    before = replace(setup, retriever=untouched, frozen=frozen)
    bare = arm if arm in MODE_ARMS else "rag"  # the same way of reading, without the adapter

    def cell(name: str, settings: Settings, reader: str) -> list[Evaluation]:
        def report(stage: str, done: int, total: int, detail: str) -> None:
            setup.report(stage, done, total, f"{detail}, halves: {name}")

        (folder / name).mkdir(parents=True, exist_ok=True)
        return list(measure(replace(settings, out=folder / name, report=report), reader))

    return conclude(
        {
            "neither": cell("neither", replace(before, adapters={}), bare),
            "retriever": list(runs["rag"]) if bare == "rag" else cell("retriever", replace(setup, adapters={}), bare),
            "generator": cell("generator", before, arm),
            "both": list(runs[arm]),
        },
        setup,
        arm,
        tuned.folder,
    )


def conclude(cells: Mapping[str, list[Evaluation]], setup: Settings, arm: str, query_encoder: str) -> Halves:
    """The gains from the four cells' evaluations (one for each seed)."""
    config = setup.config
    keep, clusters = common(cells, config)
    scores = {name: np.stack([e.scores(config.primary)[keep] for e in seeds]) for name, seeds in cells.items()}
    difference = partial(contrast, clusters=clusters, resamples=config.resamples, alpha=config.alpha, seed=config.seed)
    neither, retriever, generator, both = (scores[name] for name in ("neither", "retriever", "generator", "both"))
    return Halves(
        arm,
        query_encoder,
        {name: float(values.mean()) for name, values in scores.items()},
        difference([(1.0, retriever), (-1.0, neither)]),
        difference([(1.0, generator), (-1.0, neither)]),
        difference([(1.0, both), (-1.0, neither)]),
        difference([(1.0, both), (-1.0, retriever), (-1.0, generator), (1.0, neither)]),
    )
