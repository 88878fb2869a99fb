"""The arm `self-rag`: retrieves where it must, tries each passage by itself, judges what it said, and keeps the best.

With reflection tokens (an adapter that brings them, or a model that has them) answers are decoded as a tree
(`rag.self_rag_tree`); without, the same four judgements are read from the model's yes and no (`rag.self_rag_prompted`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag.cite import citation
from rag.errors import ConfigError
from rag.generator import LocalGenerator
from rag.prompt import ABSTAIN, is_abstention, render, search_query
from rag.protocols import Message, Progress
from rag.reflection import aggregate, escape, named_option
from rag.reflection_tokens import TokenIds
from rag.self_rag_parts import Beam, Candidate, Run, SelfRagConfig
from rag.types import Answer, Citation, Event, Finished, Passage, Retrieved, Searching, Step, Token, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer

TOGETHER_BYTES = 512 << 20
"""Most memory for keys and values of questions that are answered together."""


def frame(question: str, generator: Any, history: Sequence[Turn] = ()) -> list[Message]:
    """The messages before the model's own stream, in training and in serving: the question, without passages."""
    turns = [Turn(escape(turn.question), escape(turn.answer)) for turn in history]
    return render(
        escape(question), (), count_tokens=generator.count_tokens, history=turns, style="short", closed_book=True
    ).messages


class SelfRag:
    """Implements `rag.modes.Mode`."""

    def __init__(self, config: SelfRagConfig = SelfRagConfig()) -> None:
        self.config = config

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """One answer; every decision is a `Step` (retrieve, judge, segment).

        Raises EndpointError where neither tokens nor log-probabilities are to be had.
        """
        asking = Asking(answerer, [question], self.config, arm=arm, history=history)
        yield from asking.run()
        answer = asking.answers()[0]
        yield from told_segments(answer)
        if answer.text:
            yield Token(answer.text)
        yield Finished(answer)

    def answer_many(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        *,
        arm: str,
        retrievals: Sequence[Sequence[Passage]] | None = None,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Several at a time, as many as fit into memory."""
        size = together(answerer, self.config, arm)
        answers: list[Answer] = []
        for begin in range(0, len(questions), size):
            found = retrievals[begin : begin + size] if retrievals is not None else None
            asking = Asking(answerer, questions[begin : begin + size], self.config, arm=arm, frozen=found)
            for _ in asking.run():
                pass
            answers += asking.answers()
            if progress is not None:
                progress(len(answers), len(questions))
        return answers


def token_ids(answerer: Answerer, arm: str) -> TokenIds | None:
    """The reflection tokens of the model that answers for this arm; None where it has none."""
    generator = answerer.generator
    if not isinstance(generator, LocalGenerator):
        return None
    brought = generator.added_tokens(answerer.adapters.get(arm))
    return TokenIds.of({**generator.tokenizer.get_added_vocab(), **brought})


def together(answerer: Answerer, config: SelfRagConfig, arm: str) -> int:
    """How many questions are answered at once: with tokens as memory allows, up to 6; prompted, 16."""
    if token_ids(answerer, arm) is None:
        return 16
    from rag.engine import kv_bytes_per_token

    model = answerer.generator.model  # type: ignore[attr-defined]
    tokens = 256 + config.passage_tokens + (config.segment_tokens or answerer.config.max_new_tokens)
    each = kv_bytes_per_token(model.config, model.dtype.itemsize) * tokens * config.k
    return max(1, min(6, TOGETHER_BYTES // max(1, each)))


class Asking:
    """Some questions on their way to their answers."""

    def __init__(
        self,
        answerer: Answerer,
        questions: Sequence[str],
        config: SelfRagConfig,
        *,
        arm: str,
        history: Sequence[Turn] = (),
        frozen: Sequence[Sequence[Passage]] | None = None,
    ) -> None:
        self.answerer, self.questions, self.config, self.arm = answerer, list(questions), config, arm
        self.history = history
        self.begin = time.perf_counter()
        self.frozen = frozen
        self.events: list[Event] = []
        self.found: list[dict[str, Passage]] = [{} for _ in self.questions]
        self.queries = [search_query(question, history) for question in self.questions]
        self.runs: list[Run] = []
        self.ids = token_ids(answerer, arm)

    def run(self) -> Iterator[Event]:
        """Decide, search, decode and judge; the events in between."""
        generator = self.answerer.generator
        with generator.adapter(self.answerer.adapters.get(self.arm)):
            for _, step in self._work(generator):
                yield from self._waiting()
                yield step
            yield from self._waiting()

    def _work(self, generator: Any) -> Iterator[tuple[int, Step]]:
        prompts = [frame(question, generator, self.history) for question in self.questions]
        finders = [lambda said, n=n: self.find(n, said) for n in range(len(self.questions))]
        if self.ids is None:
            from rag.self_rag_prompted import Prompted

            self.runs = [Run([], find) for find in finders]
            yield from Prompted(generator, self.config, self.answerer.config).run(self.runs, self.questions, prompts)
            return
        from rag.self_rag_tree import Tree

        self.runs = [
            Run(generator.prompt_ids(p), find, q) for p, find, q in zip(prompts, finders, self.questions, strict=True)
        ]
        tree = Tree(generator, self.ids, self.config, segment_tokens=self.answerer.config.max_new_tokens)
        yield from tree.run(self.runs)

    def _waiting(self) -> Iterator[Event]:
        """Events of a search that happened since the last look."""
        events, self.events = self.events, []
        yield from events

    def find(self, n: int, said: str) -> list[Passage]:
        """The passages for a question after a segment ("" before the first), numbered across the whole answer."""
        begin = time.perf_counter()
        query = f"{self.queries[n]} {said}".strip()
        if self.frozen is not None and (not said or self.answerer.retriever is None):
            passages = list(self.frozen[n][: self.config.k])
        else:
            retriever = self.answerer.need_retriever()
            self.events.append(Searching(query, len(retriever.index.chunks)))
            passages = retriever.search(query, self.config.k)
        known = self.found[n]
        for passage in passages:
            known.setdefault(passage.chunk.id, replace(passage, rank=len(known) + 1))
        self.events.append(Retrieved(tuple(known.values()), 0, time.perf_counter() - begin))
        return [known[passage.chunk.id] for passage in passages]

    def answers(self) -> list[Answer]:
        """What came of the questions; `seconds` of several is their mean."""
        seconds = (time.perf_counter() - self.begin) / max(1, len(self.questions))
        return [self._answer(n, seconds) for n in range(len(self.questions))]

    def _answer(self, n: int, seconds: float) -> Answer:
        run, passages = self.runs[n], tuple(self.found[n].values())
        best = self._best(run)
        said = best.said if best is not None else ()
        text, citations = _written(said)
        abstained = is_abstention(text)
        if abstained:
            text, citations = ABSTAIN, ()
        return Answer(
            question=self.questions[n],
            text=text,
            arm=self.arm,
            abstained=abstained,
            citations=citations,
            passages=passages,
            query=self.queries[n] if passages else "",
            tokens_in=run.fed,
            tokens_out=sum(len(candidate.ids) for candidate in run.tried),
            seconds=seconds,
            model=self.answerer.generator.name,
            adapter=self.answerer.adapters.get(self.arm),
            details=details(run, best, self.config, "prompted" if self.ids is None else "tokens"),
        )

    def _best(self, run: Run) -> Beam | None:
        """The best output; of a closed set, one that says the option with the largest summed score."""
        beams = [beam for beam in run.beams if beam.said]
        if not beams:
            return None
        if self.config.options:
            try:
                option, _ = aggregate([(b.said[-1].text, b.score) for b in beams], self.config.options)
            except ConfigError:
                return None  # nothing that was said is an allowed answer: better none than another
            same = [b for b in beams if named_option(b.said[-1].text, self.config.options) == option]
            beams = [max(same, key=lambda b: b.score)]
            beams[0].said[-1].text = option
        return max(beams, key=lambda beam: beam.score)


def told_segments(answer: Answer) -> Iterator[Step]:
    """A step for each segment of the answer, with its chips."""
    for segment in answer.details.get("segments", ()):
        chips = ", ".join(f"{name} {value:.2f}" for name, value in segment["chips"].items() if value is not None)
        yield Step("segment", f"{segment['text'] or '(nothing)'} ({chips})", segment)


def _written(said: Sequence[Candidate]) -> tuple[str, tuple[Citation, ...]]:
    """The segments as one text, each with the number of its passage behind it, and the citations.

    A segment that abstains beside others that answer is left out; one from an irrelevant passage cites nothing.
    """
    saying = [c for c in said if c.text and not is_abstention(c.text)]
    pieces: list[str] = []
    citations: list[Citation] = []
    last: Passage | None = None
    for candidate in said:
        last = candidate.passage or (last if candidate.retrieve.startswith("[Continue") else None)
        if candidate not in saying:
            continue
        if last is not None and not candidate.irrelevant:
            pieces.append(f"{candidate.text} [{last.rank}]")
            citations.append(citation(last.rank, candidate.text, last))
        else:
            pieces.append(candidate.text)
    return " ".join(pieces), tuple(citations)


def details(run: Run, best: Beam | None, config: SelfRagConfig, mode: str) -> dict[str, Any]:
    """What `Answer.details` holds: the decisions of a run as plain JSON values.

    `segments` are those of the answer with their chips (each in [0, 1], None: not said); `candidates` all that were
    tried; `sequences` how many sequences were decoded for this answer; `r` the probability of retrieving at its
    beginning.
    """
    said = best.said if best is not None else ()
    return {
        "mode": mode,
        "r": None if run.ratio is None else round(run.ratio, 6),
        "delta": config.delta,
        "retrieved": run.retrieved,
        "sequences": len(run.tried),
        "score": None if best is None else round(best.score, 4),
        "segments": [_told(c, c is said[-1]) for c in said],
        "candidates": [{**_told(c, True), "kept": c in said} for c in run.tried],
    }


def _told(candidate: Candidate, last: bool) -> dict[str, Any]:
    judgement = candidate.judgement(last)
    return {
        "text": candidate.text,
        "passage": candidate.passage.rank if candidate.passage else None,
        "retrieve": candidate.retrieve,
        "support": candidate.support,
        "score": round(candidate.own, 4),
        "sequence": round(judgement.sequence, 4),
        "chips": judgement.chips(),
    }


def rates(answers: Sequence[Answer]) -> Mapping[str, float]:
    """Means over answers of this arm: how often it retrieved, and how many sequences an answer took."""
    told = [answer.details for answer in answers if "sequences" in answer.details]
    if not told:
        return {}
    return {
        "retrieval_rate": sum(bool(d["retrieved"]) for d in told) / len(told),
        "sequences_per_answer": sum(int(d["sequences"]) for d in told) / len(told),
    }
