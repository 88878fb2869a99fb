"""Ways to answer other than "prompt with passages, then generate": each is one object, known by the name of its arm.

A mode is given the `Answerer`, whose generator, retriever, settings and adapters it uses. Modes of this package are
found here; others (the agent) are handed to the `Answerer` by whoever makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from rag.protocols import Progress
from rag.types import Answer, Event, Passage, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer

BUILTIN: dict[str, str] = {
    "self-rag": "rag.self_rag:SelfRag",
    "rag-sequence": "rag.marginal:RagSequence",
    "rag-token": "rag.marginal:RagToken",
    "replug": "rag.marginal:Replug",
    "ra-dit": "rag.marginal:RaDit",
    "iterative": "rag.iterative:Iterative",
    "flare": "rag.flare:Flare",
}
"""arm -> "module:class" of modes in this package; the class is made without arguments, when its arm is first used."""


class Mode(Protocol):
    """How an arm answers. The question was checked; `arm` may have an adapter in `answerer.adapters`."""

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """The events of one run, `Finished` last; closing the iterator stops the work."""
        ...

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One answer for each question; `retrievals` are frozen passages (deeper than k), else it searches itself."""
        ...


def builtin(arm: str) -> Mode | None:
    """The mode of this package for an arm, or None."""
    if arm not in BUILTIN:
        return None
    module, _, name = BUILTIN[arm].partition(":")
    made: Mode = getattr(import_module(module), name)()
    return made
