"""Answers marginalised over passages: each passage has a prompt of its own, and their answers are weighed.

    rag-sequence   a beam search for each passage; every candidate is scored under all passages (Lewis et al. 2020)
    ra-dit         the same with one greedy candidate for each passage (Lin et al. 2023, arXiv 2310.01352)
    rag-token      one beam search over the weighted average of the next-token distributions (Lewis et al. 2020)
    replug         the same, greedily (Shi et al. 2023, arXiv 2301.12652)

The weight of a passage is softmax(cosine / temperature) over those retrieved. Concatenation, which the arm `rag` does,
stays the default of the product; `rag.marginal_math` has the formulas and `rag.marginal_search` the step loop.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rag.cite import cite
from rag.errors import ConfigError
from rag.marginal_candidates import Candidate, Choice, Found, choose, merge
from rag.marginal_math import passage_weights, responsibility
from rag.marginal_prompt import lead, prompt_tokens, single, template_of
from rag.prompt import ABSTAIN, Parsed, is_abstention, parse_citations, search_query
from rag.protocols import Decoding, Generator, Message, Progress
from rag.types import Answer, Citation, Event, Finished, Passage, Retrieved, Searching, Step, Token, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer
    from rag.generator import LocalGenerator
    from rag.marginal_search import Group, Hypothesis


@dataclass(frozen=True, slots=True)
class MarginalConfig:
    """How answers are marginalised.

    `k`: passages, None for as many as the answerer shows. `temperature`: of the softmax over cosine scores. `beams`:
    hypotheses kept for each passage (rag-sequence) or for the mixture (rag-token); 1 is greedy. `decoding`: "thorough"
    scores every candidate under every passage, "fast" takes the probability as zero where a passage's own beams lack
    it. `abstain`: "last" lets a candidate that says "not in the documents" win only where every candidate does,
    because one passage cannot speak for the others; "vote" weighs it like any other, as the formulas have it.
    """

    k: int | None = None
    temperature: float = 0.1
    beams: int = 1
    decoding: Literal["thorough", "fast"] = "thorough"
    abstain: Literal["last", "vote"] = "last"

    def __post_init__(self) -> None:
        for name in ("k", "beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; it must be above 0.")
        for name, allowed in (("decoding", ("thorough", "fast")), ("abstain", ("last", "vote"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its passages: one prompt and one log weight for each (one without passage where none is)."""

    question: str
    query: str
    passages: tuple[Passage, ...]
    prompts: tuple[list[Message], ...]
    weights: np.ndarray


class Marginal(ABC):
    """What the four modes share; `rag.modes.Mode`. Made without arguments it has the defaults of its arm."""

    defaults = MarginalConfig()

    def __init__(self, config: MarginalConfig | None = None) -> None:
        self.config = config or self.defaults
        self._scores: set[str] = set()

    # --- the two ways to ask -----------------------------------------------------------------------------------------

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """The events of one run: a Step for each candidate, then the answer.

        Raises:
            ConfigError, EndpointError: the generator gives no log-probabilities; it says which.
        """
        begin = time.perf_counter()
        self.check(answerer.generator, arm)
        retriever = answerer.need_retriever()
        query = search_query(question, history)
        yield Searching(query, len(retriever.index.chunks))
        passages = retriever.search(query, self._k(answerer))
        yield Retrieved(tuple(passages), 0, time.perf_counter() - begin)
        asked = self._ask(answerer, question, query, passages, arm, history)
        with answerer.generator.adapter(answerer.adapters.get(arm)):
            choice: Choice | None = None
            pieces = ""
            for event in self.work(answerer, [asked]):
                if isinstance(event, tuple):
                    choice = event[1]
                else:  # nothing to show is an event, too: whoever listens may stop here
                    pieces += event or ""
                    yield Token(event or "")
        assert choice is not None, "a search that ends without an answer"
        yield from _steps(asked, choice)
        if choice.text != pieces:
            yield Token(choice.text[len(pieces) :] if choice.text.startswith(pieces) else choice.text)
        yield Finished(self._answer(answerer, asked, choice, arm, time.perf_counter() - begin))

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """One answer for each question; passages of all questions share batches."""
        begin = time.perf_counter()
        self.check(answerer.generator, arm)
        k = self._k(answerer)
        found = retrievals if retrievals is not None else answerer.need_retriever().search_many(questions, k)
        asked = [self._ask(answerer, q, q, list(p)[:k], arm, ()) for q, p in zip(questions, found, strict=True)]
        choices: dict[int, Choice] = {}
        with answerer.generator.adapter(answerer.adapters.get(arm)):
            for event in self.work(answerer, asked):
                if isinstance(event, tuple):
                    choices[event[0]] = event[1]
                    if progress is not None:
                        progress(len(choices), len(asked))
        seconds = (time.perf_counter() - begin) / max(1, len(asked))
        return [self._answer(answerer, a, choices[i], arm, seconds) for i, a in enumerate(asked)]

    # --- what a mode does in its own way -----------------------------------------------------------------------------

    @abstractmethod
    def check(self, generator: Generator, arm: str) -> None:
        """Raises where the generator cannot do what this mode needs."""

    @abstractmethod
    def work(self, answerer: Answerer, asked: Sequence[Asked]) -> Iterator[tuple[int, Choice] | str | None]:
        """(number of the question, its choice) for each, in any order; between them pieces of text that are settled
        (of the only question), and None where a caller may stop."""

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _k(self, answerer: Answerer) -> int:
        return self.config.k or answerer.config.k

    def _ask(
        self,
        answerer: Answerer,
        question: str,
        query: str,
        passages: Sequence[Passage],
        arm: str,
        history: Sequence[Turn],
    ) -> Asked:
        prompts = tuple(
            single(
                question,
                passage,
                answerer.generator,
                template=template_of(answerer, arm),
                history=history,
                room=answerer.config.max_new_tokens,
            )
            for passage in (list[Passage | None](passages) or [None])
        )
        return Asked(question, query, tuple(passages), prompts, passage_weights(passages, self.config.temperature))

    def _answer(self, answerer: Answerer, asked: Asked, choice: Choice, arm: str, seconds: float) -> Answer:
        source = asked.passages[choice.source] if asked.passages else None
        shown = [replace(source, rank=1)] if source is not None else []
        parsed = parse_citations(choice.text.strip(), shown)
        abstained = is_abstention(parsed.text)
        text, citations = parsed.text.strip() or ABSTAIN, tuple[Citation, ...]()
        if not abstained and source is not None:
            text, citations = cite(_renumbered(parsed, source.rank), [source], asked.question)
        generator, adapter = answerer.generator, answerer.adapters.get(arm)
        return Answer(
            question=asked.question,
            text=text,
            arm=arm,
            abstained=abstained,
            citations=citations,
            passages=asked.passages,
            unknown_markers=parsed.unknown,
            query=asked.query,
            tokens_in=sum(prompt_tokens(p, generator) for p in asked.prompts),
            tokens_out=sum(generator.count_tokens(c.text) + 1 for c in choice.candidates),
            seconds=seconds,
            model=generator.name,
            adapter=str(adapter) if adapter else None,
            details=_details(asked, choice, self.config),
        )


class TokenMixture(Marginal):
    """One output for all passages: the average of their next-token distributions chooses each token."""

    def check(self, generator: Generator, arm: str) -> None:
        """ConfigError for generators that show no next-token probabilities."""
        _local(generator, arm)

    def work(self, answerer: Answerer, asked: Sequence[Asked]) -> Iterator[tuple[int, Choice] | str | None]:
        from rag.marginal_search import search

        generator = _local(answerer.generator, "")
        groups = [_group(answerer, generator, a.prompts, a.weights, a.passages) for a in asked]
        shown = ""
        for index, partial, found in search(
            generator, groups, beams=self.config.beams, limit=answerer.config.max_new_tokens, stop=_stop(answerer)
        ):
            if found:
                yield index, self._choice(asked[index], found)
            elif len(asked) == 1 and partial.startswith(shown):
                yield partial[len(shown) :]
                shown = partial
            else:
                yield None

    def _choice(self, asked: Asked, found: Sequence[Hypothesis]) -> Choice:
        shares = responsibility(asked.weights, found[0].by_prompt)
        source = int(shares.argmax())
        candidates = tuple(Candidate(h.text.strip(), (), h.by_prompt) for h in found)
        return Choice(found[0].text, source, candidates, tuple(h.logprob for h in found), tuple(shares.tolist()))


class SequenceMixture(Marginal):
    """Candidates of each passage by itself; the one with the highest weighted probability over all passages wins."""

    def check(self, generator: Generator, arm: str) -> None:
        """EndpointError for endpoints without log-probabilities: found out by scoring one word, once."""
        from rag.generator import LocalGenerator

        if isinstance(generator, LocalGenerator) or generator.fingerprint in self._scores:
            return
        generator.score([[{"role": "user", "content": "Say yes."}]], ["yes"])
        if self.config.beams > 1:
            raise ConfigError(
                f"'{generator.name}' cannot search with {self.config.beams} beams for the arm {arm}; "
                "use a local generator, or the arm ra-dit, which needs only one answer for each passage."
            )
        self._scores.add(generator.fingerprint)

    def work(self, answerer: Answerer, asked: Sequence[Asked]) -> Iterator[tuple[int, Choice] | str | None]:
        from rag.generator import LocalGenerator

        found: list[list[list[Found]]] = [[[] for _ in a.prompts] for a in asked]
        if isinstance(answerer.generator, LocalGenerator):
            for i, z, own in self._search(answerer, answerer.generator, asked):
                found[i][z] = own
                yield None
        else:
            self._generate(answerer, asked, found)
        fast = self.config.decoding == "fast"
        merged = [merge(own, a.weights, fast=fast) for a, own in zip(asked, found, strict=True)]
        yield None
        if not fast:
            _score_missing(answerer.generator, asked, merged)
        for i, (a, candidates) in enumerate(zip(asked, merged, strict=True)):
            yield i, choose(candidates, a.weights, abstain=self.config.abstain)

    def _search(
        self, answerer: Answerer, generator: LocalGenerator, asked: Sequence[Asked]
    ) -> Iterator[tuple[int, int, list[Found]]]:
        """(question, passage, what it gave), at the end; before, the same with nothing, after every step."""
        from rag.marginal_search import search

        places = [(i, z) for i, a in enumerate(asked) for z in range(len(a.prompts))]
        groups = [
            _group(answerer, generator, a.prompts[z : z + 1], np.zeros(1), a.passages[z : z + 1])
            for a, z in ((asked[i], z) for i, z in places)
        ]
        limit, stop = answerer.config.max_new_tokens, _stop(answerer)
        for index, _, done in search(generator, groups, beams=self.config.beams, limit=limit, stop=stop):
            i, z = places[index]
            before = lead(asked[i].prompts[z])
            yield i, z, [Found(h.text, z, h.logprob, _is_canonical(generator, h, before)) for h in done]

    def _generate(self, answerer: Answerer, asked: Sequence[Asked], found: list[list[list[Found]]]) -> None:
        """Candidates of generators that are not on this machine, one for each passage."""
        places = [(i, z) for i, a in enumerate(asked) for z in range(len(a.prompts))]
        decoding = Decoding(answerer.config.max_new_tokens, _stop(answerer))
        made = answerer.generator.generate([asked[i].prompts[z] for i, z in places], decoding)
        for (i, z), generation in zip(places, made, strict=True):
            known = generation.logprob if generation.logprob is not None else -np.inf
            found[i][z] = [Found(generation.text, z, known)]


class RagToken(TokenMixture):
    """The arm `rag-token`."""

    defaults = MarginalConfig(beams=2)


class Replug(TokenMixture):
    """The arm `replug`."""

    defaults = MarginalConfig()


class RagSequence(SequenceMixture):
    """The arm `rag-sequence`."""

    defaults = MarginalConfig(beams=2)


class RaDit(SequenceMixture):
    """The arm `ra-dit`."""

    defaults = MarginalConfig()


MODES: dict[str, type[Marginal]] = {
    "rag-sequence": RagSequence,
    "rag-token": RagToken,
    "replug": Replug,
    "ra-dit": RaDit,
}


def marginal_modes(**changes: Any) -> dict[str, Marginal]:
    """The four modes with other settings than their defaults, for `Answerer(modes=...)`."""
    return {arm: made(replace(made.defaults, **changes)) for arm, made in MODES.items()}


# --------------------------------------------------------------------------------------------------------------- parts


def _local(generator: Generator, arm: str) -> LocalGenerator:
    from rag.generator import LocalGenerator

    if not isinstance(generator, LocalGenerator):
        raise ConfigError(
            f"'{generator.name}' shows no probabilities of next tokens, which the arm {arm} averages at every step. "
            "Use a generator on this machine, or the arm ra-dit, which needs only log-probabilities of given answers."
        )
    return generator


def _group(
    answerer: Answerer,
    generator: LocalGenerator,
    prompts: Sequence[list[Message]],
    weights: np.ndarray,
    passages: Sequence[Passage],
) -> Group:
    from rag.marginal_search import Group

    copying = None
    if answerer.config.decoding == "copy" and passages:
        texts = tuple(p.chunk.text for p in passages)
        decoding = Decoding(answerer.config.max_new_tokens, copy_from=texts, copy_options=(ABSTAIN,))
        copying = generator.copying(prompts[0], decoding, decoding.max_new_tokens)
    return Group([generator.prompt_ids(p) for p in prompts], weights, copying)


def _stop(answerer: Answerer) -> tuple[str, ...]:
    return () if answerer.config.style == "cited" else ("\n",)


def _is_canonical(generator: LocalGenerator, found: Hypothesis, before: str) -> bool:
    """Whether the beam's log-probability is what scoring the text anew would give: same tokens, ended by the model."""
    return found.closed and [*found.tokens] == generator.completion_ids(before + found.text.strip())[:-1]


def _score_missing(generator: Generator, asked: Sequence[Asked], merged: Sequence[Sequence[Candidate]]) -> None:
    """Fills in what each candidate has under each passage, in one call of the scorer; a lone one needs none."""
    places = [
        (i, candidate, int(z))
        for i, candidates in enumerate(merged)
        if len(candidates) > 1
        for candidate in candidates
        for z in np.flatnonzero(np.isnan(candidate.under))
    ]
    if not places:
        return
    prompts = [asked[i].prompts[z] for i, _, z in places]
    texts = [lead(p) + candidate.text for p, (_, candidate, _) in zip(prompts, places, strict=True)]
    for (_, candidate, z), values in zip(places, generator.score(prompts, texts), strict=True):
        candidate.under[z] = float(np.sum(values, dtype=np.float64))


def _renumbered(parsed: Parsed, rank: int) -> Parsed:
    """Every marker names the passage by its rank instead of by 1, the number it had alone in its prompt."""
    text, at, marks = "", 0, []
    for start, end, _ in parsed.marks:
        text += parsed.text[at:start]
        marks.append((len(text), len(text) + len(f"[{rank}]"), rank))
        text += f"[{rank}]"
        at = end
    return Parsed(text + parsed.text[at:], tuple(marks), parsed.unknown)


def _steps(asked: Asked, choice: Choice) -> Iterator[Step]:
    """A line for each candidate: which passages gave it, and its log-probability."""
    for candidate, logprob in zip(choice.candidates, choice.logprobs, strict=True):
        ranks = [asked.passages[z].rank for z in candidate.sources] if asked.passages else []
        origin = f" (from {', '.join(f'[{r}]' for r in ranks)})" if ranks else ""
        weighed = "" if logprob is None else f", log-probability {logprob:.2f}"
        data = {"answer": candidate.text, "ranks": ranks, "logprob": _json(logprob)}
        yield Step("candidate", f"{candidate.text or ABSTAIN}{origin}{weighed}", data)


def _details(asked: Asked, choice: Choice, config: MarginalConfig) -> dict[str, Any]:
    """Plain JSON values: weights and shares of the passages in rank order, and all candidates."""
    return {
        "temperature": config.temperature,
        "weights": [round(float(w), 6) for w in np.exp(asked.weights)],
        "shares": None if choice.shares is None else [round(s, 6) for s in choice.shares],
        "source": asked.passages[choice.source].rank if asked.passages else None,
        "candidates": [step.data for step in _steps(asked, choice)],
    }


def _json(logprob: float | None) -> float | None:
    return None if logprob is None or not np.isfinite(logprob) else round(logprob, 4)
