"""The arm `iterative`: retrieve, think one sentence, search with that sentence, and again (after IRCoT, Trivedi et al.
2023).

A question that takes two documents often names only the first; the second is named by what stands in the first. So the
running thought is the next query. Each round adds the passages that are new; a thought that repeats itself, or rounds
that bring nothing new, end the search, and the answer is made from the best of all rounds as the arm `rag` makes it.
Where adapters are registered, the thought comes from the base model and the answer from the arm's adapter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rag.errors import ConfigError
from rag.prompt import neutralise, search_query
from rag.protocols import Decoding, Message, Progress
from rag.types import Answer, Event, Finished, Passage, Retrieved, Searching, Step, Token, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer
    from rag.retrieve import Retriever

THOUGHT = "Thought:"
_SYSTEM = "Read the passages. Write one sentence with a fact from them that helps to answer the question."


@dataclass(frozen=True, slots=True)
class IterativeConfig:
    """rounds: searches of a question, the first with the question itself. per_round: passages taken from each.
    thought_tokens: longest thought. keep: passages shown to the answer, None for the answerer's own k + rounds − 1."""

    rounds: int = 3
    per_round: int = 2
    thought_tokens: int = 40
    keep: int | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "per_round", "thought_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass
class _Search:
    """One question on its way: what was found, in the order of rounds, and what was thought."""

    question: str
    query: str
    found: list[Passage] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    done: bool = field(default=False)
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, passages: Sequence[Passage], most: int) -> int:
        """Take the first `most` passages that are new; how many there were."""
        known = {p.chunk.id for p in self.found}
        fresh = [p for p in passages if p.chunk.id not in known][:most]
        self.found += [replace(p, rank=len(self.found) + i) for i, p in enumerate(fresh, 1)]
        return len(fresh)


class Iterative:
    """See `rag.modes.Mode`."""

    def __init__(self, config: IterativeConfig = IterativeConfig()) -> None:
        self.config = config

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """Every thought as a step; then the answer as it is written."""
        began = time.perf_counter()
        retriever = answerer.need_retriever()
        search = _Search(question, search_query(question, history))
        yield Searching(search.query, len(retriever.index.chunks))
        search.add(retriever.search(search.query, self.config.per_round), self.config.per_round)
        for _ in range(self.config.rounds - 1):
            begun = time.perf_counter()
            thoughts = self._think(answerer, [search])
            if not search.done:
                self._search_on(retriever, [search])
                yield Step("thought", thoughts[0], {"passages": len(search.found)}, time.perf_counter() - begun)
            if search.done:
                break
        yield Retrieved(tuple(search.found), 0, time.perf_counter() - began)
        answer = self._finish(answerer, [search], arm, history)[0]
        yield Token(answer.text)
        yield Finished(replace(answer, seconds=time.perf_counter() - began))

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One answer for each question, all rounds in batches; frozen retrievals are the first round."""
        began = time.perf_counter()
        retriever = answerer.need_retriever()
        most = self.config.per_round
        if not questions:
            return []
        first = retrievals if retrievals is not None else retriever.search_many(questions, most)
        searches = [_Search(q, q) for q in questions]
        for search, passages in zip(searches, first, strict=True):
            search.add(passages, most)
        for _ in range(self.config.rounds - 1):
            active = [s for s in searches if not s.done]
            if not active:
                break
            self._think(answerer, active)
            self._search_on(retriever, [s for s in active if not s.done])
            if progress is not None:
                progress(sum(s.done for s in searches), len(searches))
        answers = self._finish(answerer, searches, arm, ())
        if progress is not None:
            progress(len(searches), len(searches))
        seconds = (time.perf_counter() - began) / len(questions)
        return [replace(a, seconds=seconds) for a in answers]

    def _think(self, answerer: Answerer, searches: Sequence[_Search]) -> list[str]:
        """One thought for each; a search whose thought says nothing new is done."""
        decoding = Decoding(self.config.thought_tokens, ("\n",))
        prompts = [thought_prompt(s.question, s.found, s.thoughts) for s in searches]
        with answerer.generator.adapter(None):
            made = answerer.generator.generate(prompts, decoding)
        thoughts = []
        for search, said in zip(searches, made, strict=True):
            thought = " ".join(said.text.removeprefix(THOUGHT).split())
            search.tokens_in += said.tokens_in
            search.tokens_out += said.tokens_out
            search.done = not re.search(r"\w", thought) or thought in search.thoughts
            if not search.done:
                search.thoughts.append(thought)
            thoughts.append(thought)
        return thoughts

    def _search_on(self, retriever: Retriever, searches: Sequence[_Search]) -> None:
        """Search with the last thoughts; a search that brings nothing new is done."""
        if not searches:
            return
        most = self.config.per_round
        found = retriever.search_many([s.thoughts[-1] for s in searches], most + max(len(s.found) for s in searches))
        for search, passages in zip(searches, found, strict=True):
            search.done = search.add(passages, most) == 0

    def _finish(
        self, answerer: Answerer, searches: Sequence[_Search], arm: str, history: Sequence[Turn]
    ) -> list[Answer]:
        from rag.answer import Answerer

        adapter = answerer.adapters.get(arm)
        inner = "tuned+rag" if adapter else "rag"  # how the last prompt is written and answered
        keep = self.config.keep or answerer.config.k + self.config.rounds - 1
        plain = Answerer(
            answerer.generator,
            answerer.retriever,
            replace(answerer.config, k=keep),
            adapters={inner: adapter} if adapter else {},
        )
        # a follow-up is asked as it was searched: joined with what it is about
        asked = [s.query if history else s.question for s in searches]
        made = plain.answer_many(asked, arm=inner, retrievals=[_chosen(s.found, keep) for s in searches])
        return [
            replace(
                answer,
                question=search.question,
                arm=arm,
                query=search.query,
                tokens_in=answer.tokens_in + search.tokens_in,
                tokens_out=answer.tokens_out + search.tokens_out,
                details={
                    "thoughts": list(search.thoughts),
                    "rounds": len(search.thoughts) + 1,
                    "found": len(search.found),
                },
            )
            for answer, search in zip(made, searches, strict=True)
        ]


def _chosen(found: Sequence[Passage], keep: int) -> list[Passage]:
    """The first passages of all rounds, in the order in which they were found, ranked anew."""
    return [replace(p, rank=i) for i, p in enumerate(found[:keep], 1)]


def thought_prompt(question: str, passages: Sequence[Passage], thoughts: Sequence[str]) -> list[Message]:
    """The messages that ask for the next thought; the assistant's turn has begun."""
    blocks = [neutralise(p.chunk.text) for p in passages]
    said = [f"Known: {neutralise(thought)}" for thought in thoughts]
    user = "\n\n".join([*blocks, *said, f"Question: {neutralise(question)}"])
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": user},
        {"role": "assistant", "content": THOUGHT},
    ]
