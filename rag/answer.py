"""retrieve → prompt → generate, as a stream of events that ends in an `Answer`.

An arm is a name for (passages or not, adapter or not): `base` and `tuned` answer without passages, every other arm
with; `tuned…` arms answer through the adapter that is registered for them. The same code answers one question in a chat
and hundreds in an evaluation, so what is measured is what is served.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rag.cite import cite
from rag.errors import ConfigError, UsageError
from rag.modes import BUILTIN, Mode, builtin
from rag.prompt import ABSTAIN, Rendered, Style, is_abstention, parse_citations, render, search_query
from rag.protocols import Decoding, Generation, Generator, Progress
from rag.retrieve import Retriever
from rag.types import ARMS, Answer, Event, Finished, Passage, Retrieved, Searching, Token, Turn

MAX_QUESTION = 4000
"""Longest question, in characters: longer ones are documents, and belong in the index."""

CLOSED_BOOK = frozenset({"base", "tuned"})


@dataclass(frozen=True, slots=True)
class AnswerConfig:
    """How answers are made; saved with every evaluation and decision.

    k: passages shown to the model. context_tokens: most tokens of passages in a prompt. max_new_tokens: longest answer.
    style: see `rag.prompt.Style`; where it is "examples", arms with an adapter use "short", as they were trained.
    decoding: "copy" restricts answers over passages to their own words, "free" does not.
    """

    k: int = 2
    context_tokens: int = 1024
    max_new_tokens: int = 48
    style: Style = "examples"
    decoding: Literal["copy", "free"] = "free"

    def __post_init__(self) -> None:
        for name in ("k", "context_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, kind in (("style", Style), ("decoding", Literal["copy", "free"])):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(kind))}.")


def check_question(question: str) -> str:
    """The question without surrounding space. UsageError when it is empty or longer than MAX_QUESTION characters."""
    text = question.strip()
    if not text:
        raise UsageError("The question is empty. Type a question about the documents.")
    if len(text) > MAX_QUESTION:
        raise UsageError(
            f"The question has {len(text):,} characters; at most {MAX_QUESTION:,} are allowed. "
            "Put long text into a document, index it, and ask a short question about it."
        )
    return text


class Answerer:
    """Answers questions by one generator, with or without a retriever and adapters.

    `adapters` maps an arm to the folder of its adapter; `modes` adds arms that answer in a way of their own (see
    `rag.modes`). Thread-safe as far as the generator is.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever | None = None,
        config: AnswerConfig = AnswerConfig(),
        *,
        adapters: Mapping[str, str] | None = None,
        modes: Mapping[str, Mode] | None = None,
    ) -> None:
        self.generator = generator
        self.retriever = retriever
        self.config = config
        self.adapters = dict(adapters or {})
        self.modes = dict(modes or {})

    def stream(self, question: str, *, arm: str = "rag", history: Sequence[Turn] = ()) -> Iterator[Event]:
        """The events of one run; closing the iterator stops the model. UsageError for a bad question or arm."""
        question = check_question(question)
        self.check_arm(arm)
        mode = self.mode(arm)
        if mode is not None:
            yield from mode.stream(self, question, arm=arm, history=history)
            return
        begin = time.perf_counter()
        passages: list[Passage] = []
        query = ""
        if arm not in CLOSED_BOOK:
            retriever = self.need_retriever()
            query = search_query(question, history)
            yield Searching(query, len(retriever.index.chunks))
            passages = retriever.search(query, self.config.k)
        rendered = self.render(question, passages, arm=arm, history=history)
        if arm not in CLOSED_BOOK:
            yield Retrieved(rendered.shown, rendered.cut, time.perf_counter() - begin)
        pieces: list[str] = []
        with self.generator.adapter(self.adapters.get(arm)):
            stream = self.generator.stream(rendered.messages, self._decoding(rendered, arm))
            try:
                for piece in stream:
                    pieces.append(piece)
                    yield Token(piece)
            finally:
                close = getattr(stream, "close", None)
                if close is not None:
                    close()
        text = "".join(pieces)
        generation = Generation(text, self._prompt_tokens(rendered), self.generator.count_tokens(text))
        yield Finished(self.compose(question, arm, rendered, generation, query, time.perf_counter() - begin))

    def answer(self, question: str, *, arm: str = "rag", history: Sequence[Turn] = ()) -> Answer:
        """The answer alone, for callers that show no progress."""
        for event in self.stream(question, arm=arm, history=history):
            if isinstance(event, Finished):
                return event.answer
        raise AssertionError("a run that ends without an answer")

    def answer_many(
        self,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One answer for each question, generated in batches.

        `retrievals` are frozen passages, one list for each question: with them every arm sees identical retrievals, and
        the arm need not be a known one. `seconds` of an answer is the batch's time divided by its questions.
        """
        asked = [check_question(q) for q in questions]
        if retrievals is None:
            self.check_arm(arm)
        elif len(retrievals) != len(asked):
            raise UsageError(f"{len(retrievals)} retrievals were given for {len(asked)} questions; one each is needed.")
        mode = self.mode(arm)
        if mode is not None:
            return mode.answer_many(self, asked, arm=arm, retrievals=retrievals, progress=progress)
        begin = time.perf_counter()
        if arm in CLOSED_BOOK:
            found: Sequence[Sequence[Passage]] = [()] * len(asked)
        elif retrievals is not None:
            found = [list(p)[: self.config.k] for p in retrievals]
        else:
            found = self.need_retriever().search_many(asked, self.config.k)
        rendered = [self.render(q, p, arm=arm) for q, p in zip(asked, found, strict=True)]
        with self.generator.adapter(self.adapters.get(arm)):
            generations = self.generator.generate(
                [r.messages for r in rendered], [self._decoding(r, arm) for r in rendered], progress=progress
            )
        seconds = (time.perf_counter() - begin) / max(1, len(asked))
        return [
            self.compose(q, arm, r, g, "" if arm in CLOSED_BOOK else q, seconds)
            for q, r, g in zip(asked, rendered, generations, strict=True)
        ]

    def render(self, question: str, passages: Sequence[Passage], *, arm: str, history: Sequence[Turn] = ()) -> Rendered:
        """The prompt of one question in this configuration."""
        return render(
            question,
            passages,
            count_tokens=self.generator.count_tokens,
            budget=self.config.context_tokens,
            history=history,
            style=self.style(arm),
            closed_book=arm in CLOSED_BOOK,
        )

    def style(self, arm: str) -> Style:
        """The prompt style of an arm: a model that was tuned on the task needs no worked examples."""
        return "short" if self.config.style == "examples" and arm in self.adapters else self.config.style

    def mode(self, arm: str) -> Mode | None:
        """The mode that answers for this arm; None for arms that prompt and generate."""
        if arm not in self.modes and (made := builtin(arm)) is not None:
            self.modes[arm] = made
        return self.modes.get(arm)

    def check_arm(self, arm: str) -> None:
        """UsageError, naming what is available, for an arm that is unknown or has no adapter here."""
        known = dict.fromkeys([*ARMS, *BUILTIN, *self.modes, *self.adapters])
        if arm not in known:
            raise UsageError(f'There is no arm "{arm}". Choose one of: {", ".join(known)}.')
        if arm.startswith("tuned") and arm not in self.adapters:
            raise UsageError(
                f'The arm "{arm}" needs a tuned adapter, and none is registered. Run `ragtune decide` '
                "(it trains and registers adapters), or give one with --adapter."
            )

    def need_retriever(self) -> Retriever:
        """What finds passages. UsageError where no index was given."""
        if self.retriever is None:
            raise UsageError(
                "This arm answers from documents, and no index was given. Index a folder with `ragtune index`."
            )
        return self.retriever

    def _decoding(self, rendered: Rendered, arm: str) -> Decoding:
        config = self.config
        stop = () if config.style == "cited" else ("\n",)
        if config.decoding == "copy" and arm not in CLOSED_BOOK and rendered.shown:
            return Decoding(
                config.max_new_tokens,
                stop,
                copy_from=tuple(p.chunk.text for p in rendered.shown),
                copy_options=(ABSTAIN,),
            )
        return Decoding(config.max_new_tokens, stop)

    def _prompt_tokens(self, rendered: Rendered) -> int:
        return sum(self.generator.count_tokens(m["content"]) for m in rendered.messages)

    def compose(
        self, question: str, arm: str, rendered: Rendered, generation: Generation, query: str, seconds: float
    ) -> Answer:
        """The answer to be shown for what the model wrote: citations checked against the passages that were shown."""
        parsed = parse_citations(generation.text.strip(), rendered.shown)
        abstained = is_abstention(parsed.text)
        text, citations = (parsed.text.strip() or ABSTAIN, ()) if abstained else cite(parsed, rendered.shown, question)
        adapter = self.adapters.get(arm)
        return Answer(
            question=question,
            text=text,
            arm=arm,
            abstained=abstained,
            citations=citations,
            passages=rendered.shown,
            cut=rendered.cut,
            unknown_markers=parsed.unknown,
            query=query,
            tokens_in=generation.tokens_in,
            tokens_out=generation.tokens_out,
            seconds=seconds,
            model=self.generator.name,
            adapter=str(adapter) if adapter else None,
        )
