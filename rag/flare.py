"""The arm `flare`: draft the next sentence; where a token of it is unlikely, search with the draft and write it anew.

FLARE (Jiang et al. 2023, arXiv 2305.06983), "direct" queries: the draft without the tokens that the model doubts. The
first search is for the question; passages of a later search take the place of the earlier ones. A sentence that was
written anew is kept as it is. Where answers are a few words (all styles but "cited") the draft alone says too little,
so the question stands before it.

The test is p ≤ θ for some token of the draft, so θ = 0 never searches again. (In the authors' code 0 is taken as "no
test", which searches for every sentence.) A query without a token of p > β is no query: the draft is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rag.chunk import sentences
from rag.decode import TextStream, common_prefix
from rag.errors import ConfigError, UsageError
from rag.prompt import Rendered, search_query, strip_markers
from rag.protocols import Generation, Progress
from rag.stepping import Stepper
from rag.types import Answer, Event, Finished, Passage, Retrieved, Searching, Step, Token, Turn

if TYPE_CHECKING:
    import torch

    from rag.answer import Answerer
    from rag.generator import LocalGenerator
    from rag.retrieve import Retriever


_SPARE = 256  # tokens by which the next prompt may be longer before the cache is made anew


@dataclass(frozen=True, slots=True)
class FlareConfig:
    """theta: a draft with a token of at most this probability is searched for. beta: tokens of at most this probability
    are left out of the query. look_ahead: tokens of a draft; query_tokens: longest part of the query that comes from
    the draft; searches: how often one answer may search again. The first two and the lengths are those of the paper's
    2WikiMultihopQA; its θ was chosen for each data set on questions of its own.
    """

    theta: float = 0.8
    beta: float = 0.4
    look_ahead: int = 64
    query_tokens: int = 64
    searches: int = 4

    def __post_init__(self) -> None:
        for name in ("theta", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is a probability, from 0 to 1.")
        for name in ("look_ahead", "query_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.searches < 0:
            raise ConfigError(f"searches is {self.searches}; it cannot be negative.")


@dataclass(frozen=True, slots=True)
class Draft:
    """One sentence as it came: its tokens with their probabilities (the end of the answer is no token of it), its text,
    and whether the answer ends with it."""

    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    text: str
    ended: bool

    @property
    def least(self) -> float:
        """The lowest probability of a token; 1 for no token."""
        return min(self.probabilities, default=1.0)


@dataclass
class _Run:
    """One answer on its way."""

    question: str
    query: str
    shown: Rendered
    kept: list[int] = field(default_factory=list)
    drafts: list[dict[str, Any]] = field(default_factory=list)
    searches: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Writer:
    """Greedy drafts of single sentences on one row of a `Stepper`; what the prompts share is not run again."""

    def __init__(self, generator: LocalGenerator, adapter: str | None, stop: Sequence[str]) -> None:
        self._generator, self._adapter, self._stop = generator, adapter, tuple(stop)
        self._stepper: Stepper | None = None

    def draft(self, context: Sequence[int], said: Sequence[int], limit: int) -> Draft:
        """The next sentence after the prompt `context` and the tokens `said`, at most `limit` tokens."""
        stepper, logits = self._at([*context, *said], limit)
        stream = TextStream(self._generator.tokenizer)
        for token in said:
            stream.push(token)
        start = len(stream.text)
        tokens: list[int] = []
        chances: list[float] = []
        while len(tokens) < limit:
            token, chance = _best(logits)
            if token in self._generator.tokens.ends:
                return Draft(tuple(tokens), tuple(chances), stream.text[start:], True)
            stream.push(token)
            text = stream.text[start:]
            at = min((i for i in map(text.find, self._stop) if i >= 0), default=-1)
            if at >= 0:
                return Draft(tuple(tokens), tuple(chances), text[:at], True)
            if tokens and len(sentences(text)) > 1:  # this token begins another sentence
                whole = TextStream(self._generator.tokenizer)
                for earlier in (*said, *tokens):
                    whole.push(earlier)
                return Draft(tuple(tokens), tuple(chances), whole.text[start:], False)
            tokens.append(token)
            chances.append(chance)
            if len(tokens) < limit:
                logits = stepper.step({0: token})
        stream.flush()
        return Draft(tuple(tokens), tuple(chances), stream.text[start:], False)

    def _at(self, ids: Sequence[int], limit: int) -> tuple[Stepper, torch.Tensor]:
        """Logits after exactly these tokens, and the stepper that stands there with room for `limit` more."""
        if self._stepper is None or len(ids) + limit > self._stepper.capacity:
            with self._generator.adapter(self._adapter):
                self._stepper = Stepper(self._generator, rows=1, capacity=len(ids) + limit + _SPARE)
            return self._stepper, self._stepper.start({0: list(ids)})
        shared = common_prefix([self._stepper.tokens[0], list(ids)])
        if shared < 1:
            return self._stepper, self._stepper.start({0: list(ids)})
        self._stepper.cut(0, shared)
        return self._stepper, self._stepper.extend({0: list(ids[shared:])})


def _best(logits: torch.Tensor) -> tuple[int, float]:
    """The likeliest token of logits [1, vocabulary], and its probability."""
    row = logits[0]
    token = int(row.argmax())
    return token, math.exp(float(row[token]) - float(row.logsumexp(dim=-1)))


class Flare:
    """See `rag.modes.Mode`. Local generators only: endpoints do not tell the probability of each token."""

    def __init__(self, config: FlareConfig = FlareConfig()) -> None:
        self.config = config

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """Every draft as a step, with what was searched for because of it."""
        began = time.perf_counter()
        retriever = answerer.need_retriever()
        query = search_query(question, history)
        yield Searching(query, len(retriever.index.chunks))
        found = retriever.search(query, answerer.config.k)
        rendered = answerer.render(question, found, arm=arm, history=history)
        yield Retrieved(rendered.shown, rendered.cut, time.perf_counter() - began)
        run = _Run(question, query, rendered)
        yield from self._write(answerer, retriever, run, arm, history)
        yield Finished(self._answer(answerer, run, arm, time.perf_counter() - began))

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One answer after the other; frozen retrievals take the place of the first search."""
        retriever = answerer.need_retriever()
        k = answerer.config.k
        first = retrievals if retrievals is not None else (retriever.search_many(questions, k) if questions else [])
        answers = []
        for question, passages in zip(questions, first, strict=True):
            began = time.perf_counter()
            run = _Run(question, question, answerer.render(question, list(passages)[:k], arm=arm))
            for _ in self._write(answerer, retriever, run, arm, ()):
                pass
            answers.append(self._answer(answerer, run, arm, time.perf_counter() - began))
            if progress is not None:
                progress(len(answers), len(questions))
        return answers

    def _write(
        self, answerer: Answerer, retriever: Retriever, run: _Run, arm: str, history: Sequence[Turn]
    ) -> Iterator[Event]:
        """The sentences of one answer, kept in `run`."""
        generator = local(answerer, arm)
        config, most = self.config, answerer.config.max_new_tokens
        context = generator.prompt_ids(run.shown.messages)
        stop = () if answerer.config.style == "cited" else ("\n",)
        writer = Writer(generator, answerer.adapters.get(arm), stop)
        while len(run.kept) < most:
            began = time.perf_counter()
            limit = min(config.look_ahead, most - len(run.kept))
            draft = writer.draft(context, run.kept, limit)
            run.tokens_in, run.tokens_out = run.tokens_in + len(context), run.tokens_out + len(draft.tokens)
            query = self._query(answerer, run, draft) if draft.least <= config.theta else ""
            row = {"text": draft.text.strip(), "least": round(draft.least, 4), "query": query}
            run.drafts.append(row)
            if query:
                found = retriever.search(query, answerer.config.k)
                run.shown = answerer.render(run.question, found, arm=arm, history=history)
                run.searches += 1
                context = generator.prompt_ids(run.shown.messages)
                draft = writer.draft(context, run.kept, limit)
                run.tokens_in, run.tokens_out = run.tokens_in + len(context), run.tokens_out + len(draft.tokens)
                said = f"unsure of “{row['text']}” (p = {row['least']:.2f}): searched for “{query}”"
                yield Step("search", said, row, time.perf_counter() - began)
                yield Retrieved(run.shown.shown, run.shown.cut, 0.0)
            else:
                said = f"sure of “{row['text']}”" if draft.least > config.theta else f"kept “{row['text']}”"
                yield Step("draft", f"{said} (p = {row['least']:.2f})", row, time.perf_counter() - began)
            run.kept += draft.tokens
            yield Token(draft.text)
            if draft.ended or not draft.tokens:
                break

    def _query(self, answerer: Answerer, run: _Run, draft: Draft) -> str:
        """The tokens of the draft that the model does not doubt, after the question where answers are short; "" where
        nothing is left, or no search is allowed any more."""
        if run.searches >= self.config.searches:
            return ""
        generator: Any = answerer.generator
        sure = [t for t, p in zip(draft.tokens, draft.probabilities, strict=True) if p > self.config.beta]
        words = generator.tokenizer.decode(sure[: self.config.query_tokens], skip_special_tokens=True)
        text = " ".join(strip_markers(words).split())
        if not any(ch.isalnum() for ch in text):
            return ""
        return text if answerer.config.style == "cited" else f"{run.query} {text}"

    def _answer(self, answerer: Answerer, run: _Run, arm: str, seconds: float) -> Answer:
        generator = local(answerer, arm)
        stream = TextStream(generator.tokenizer)
        for token in run.kept:
            stream.push(token)
        stream.flush()
        text = stream.text.split("\n")[0] if answerer.config.style != "cited" else stream.text
        made = Generation(text, run.tokens_in, run.tokens_out)
        answer = answerer.compose(run.question, arm, run.shown, made, run.query, seconds)
        first = run.drafts[0]["least"] if run.drafts else None
        details = {"least": first, "searches": run.searches, "drafts": run.drafts, "theta": self.config.theta}
        return replace(answer, details=details)


def local(answerer: Answerer, arm: str) -> LocalGenerator:
    """The generator, if it tells the probability of every token. UsageError for an endpoint."""
    from rag.generator import LocalGenerator

    if not isinstance(answerer.generator, LocalGenerator):
        raise UsageError(
            f'The arm "{arm}" looks at the probability of every token, which {answerer.generator.name} does not tell. '
            "Choose another arm, or a model on this machine."
        )
    return answerer.generator
