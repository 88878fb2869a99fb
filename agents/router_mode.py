"""The arm `auto` as a mode: search once, choose the arm of this question, let that arm answer from what was found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agents.router import Choice, Router
from agents.router_features import DEPTH, uncertainty
from rag.answer import CLOSED_BOOK, Answerer
from rag.prompt import search_query
from rag.protocols import Progress
from rag.retrieve import Retriever
from rag.types import MODE_ARMS, Answer, Event, Finished, Passage, Step, Turn

AUTO = "auto"
"""The name under which the mode is handed to an `Answerer`."""


class Found(Retriever):
    """A retriever that remembers one search, so that the arm that was chosen does not repeat it."""

    def __init__(self, retriever: Retriever, query: str, passages: Sequence[Passage]) -> None:
        super().__init__(retriever.index, retriever.config, reranker=retriever._reranker)
        self._query, self._passages_found = query, list(passages)

    def search_many(
        self, queries: Sequence[str], k: int | None = None, *, vectors: np.ndarray | None = None
    ) -> list[list[Passage]]:
        """As `Retriever.search_many`; what was found already is not searched again."""
        wanted = k or self.config.k
        if list(queries) == [self._query] and wanted <= len(self._passages_found):
            return [self._passages_found[:wanted]]
        return super().search_many(queries, k, vectors=vectors)


@dataclass(frozen=True, slots=True)
class RoutedMode:
    """A `rag.modes.Mode`. The chosen arm's events pass through; a `Step` of kind "route" says why it was chosen, and
    `Answer.details["route"]` keeps it. `Answer.arm` is the arm that answered.
    """

    router: Router

    def stream(
        self, answerer: Answerer, question: str, *, arm: str = AUTO, history: Sequence[Turn] = ()
    ) -> Iterator[Event]:
        """The events of one run, the choice first."""
        began = time.perf_counter()
        query = search_query(question, history)
        retriever = answerer.need_retriever()
        found, vectors = self._search(retriever, [query])
        choice = self._choose(answerer, [question], found, vectors)[0]
        before = time.perf_counter() - began
        yield Step("route", f"{choice.arm}: {choice.reason}", choice.to_dict(), choice.seconds)
        inner = Answerer(
            answerer.generator,
            Found(retriever, query, found[0]),
            answerer.config,
            adapters=answerer.adapters,
            modes={name: mode for name, mode in answerer.modes.items() if name != AUTO},
        )
        for event in inner.stream(question, arm=choice.arm, history=history):
            yield Finished(_noted(event.answer, choice, before)) if isinstance(event, Finished) else event

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str = AUTO,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Questions are sorted by the arm that is chosen for them, and each arm answers its own in one batch."""
        if not questions:
            return []
        began = time.perf_counter()
        found, vectors = self._search(answerer.need_retriever(), questions, retrievals)
        choices = self._choose(answerer, questions, found, vectors)
        before = (time.perf_counter() - began) / len(questions)
        answers: dict[int, Answer] = {}
        for name in dict.fromkeys(choice.arm for choice in choices):
            at = [i for i, choice in enumerate(choices) if choice.arm == name]
            done = len(answers)
            said = answerer.answer_many(
                [questions[i] for i in at],
                arm=name,
                retrievals=None if name in CLOSED_BOOK else [found[i] for i in at],
                progress=None if progress is None else lambda n, _, done=done: progress(done + n, len(questions)),  # type: ignore[misc]
            )
            answers |= {i: _noted(answer, choices[i], before) for i, answer in zip(at, said, strict=True)}
        return [answers[i] for i in range(len(questions))]

    def _search(
        self, retriever: Retriever, queries: Sequence[str], frozen: Sequence[Sequence[Passage]] | None = None
    ) -> tuple[Sequence[Sequence[Passage]], np.ndarray | None]:
        """Passages of each query, and the queries' embeddings where the router looks at them: embedded once."""
        vectors = retriever.index.embed_queries(queries) if self.router.embeds else None
        if frozen is not None:
            return frozen, vectors
        return retriever.search_many(queries, max(DEPTH, retriever.config.k), vectors=vectors), vectors

    def _choose(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        found: Sequence[Sequence[Passage]],
        vectors: np.ndarray | None,
    ) -> list[Choice]:
        sure: Sequence[Sequence[float]] = [()] * len(questions)
        if self.router.asks_generator:
            sure = uncertainty(answerer.generator, questions, found, answerer.config).tolist()
        able = [arm for arm in self.router.arms if _can_answer(answerer, arm)]
        return [
            self.router.choose(q, p, vector=None if vectors is None else vectors[i], sure=sure[i], allowed=able)
            for i, (q, p) in enumerate(zip(questions, found, strict=True))
        ]


def _can_answer(answerer: Answerer, arm: str) -> bool:
    """Whether an arm has what it needs here: its adapter, or its way of answering."""
    if arm in MODE_ARMS:
        return answerer.mode(arm) is not None
    return not arm.startswith("tuned") or arm in answerer.adapters


def _noted(answer: Answer, choice: Choice, before: float) -> Answer:
    """The answer with the choice in its details, and the seconds of searching and choosing counted."""
    details: Mapping[str, object] = {**answer.details, "route": choice.to_dict()}
    return replace(answer, details=details, seconds=answer.seconds + before)
