"""Self-RAG without reflection tokens: the four judgements are how likely the model says yes rather than no.

Works with every generator that gives log-probabilities of a given text (`Generator.score`); an endpoint that gives none
is refused with its own reason. An answer is one segment: a model that was not trained for it cuts none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rag.prompt import is_abstention, render, strip_markers
from rag.protocols import Decoding, Generator, Message
from rag.reflection import (
    FULL,
    IRRELEVANT,
    IS_USE,
    NO_RETRIEVAL,
    NO_SUPPORT,
    RELEVANT,
    RETRIEVAL,
    escape,
    retrieval_ratio,
    select,
    wants_retrieval,
)
from rag.self_rag_parts import Beam, Candidate, Run, SelfRagConfig, judged, passage_text
from rag.types import Step

if TYPE_CHECKING:
    from rag.answer import AnswerConfig

YES, NO = "Yes", "No"
_SYSTEM = "Judge strictly. Answer with Yes or No alone."
_ASKED = {
    "retrieve": "Question: {question}\n\nIs a document needed to answer this question correctly?",
    "relevant": "Passage: {passage}\n\nQuestion: {question}\n\nDoes the passage hold what answers the question?",
    "supported": "Passage: {passage}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
    "Is this answer to the question stated in the passage?",
    "useful": "Question: {question}\nAnswer: {answer}\n\nIs this a complete and useful answer to the question?",
}


def judgement_prompt(kind: str, *, question: str, passage: str = "", answer: str = "") -> list[Message]:
    """The messages of one judgement; `passage` is escaped already."""
    asked = _ASKED[kind].format(question=escape(question), passage=passage, answer=escape(answer))
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def yes_probabilities(generator: Generator, prompts: Sequence[Sequence[Message]]) -> list[float]:
    """p(yes) / (p(yes) + p(no)) after each prompt, the end of the turn not counted.

    Raises EndpointError where the generator gives no log-probabilities.
    """
    if not prompts:
        return []
    twice = [prompt for prompt in prompts for _ in range(2)]
    values = generator.score(twice, [YES, NO] * len(prompts))
    sums = [float(row[: max(1, len(row) - 1)].sum()) for row in values]
    return [1 / (1 + math.exp(min(700.0, no - yes))) for yes, no in zip(sums[::2], sums[1::2], strict=True)]


class Prompted:
    """Answers several questions at once by prompting; fills in the runs as `rag.self_rag_tree.Tree` does."""

    def __init__(self, generator: Generator, config: SelfRagConfig, answer: AnswerConfig) -> None:
        self.generator, self.config, self.answer = generator, config, answer

    def run(
        self, runs: Sequence[Run], questions: Sequence[str], closed: Sequence[list[Message]]
    ) -> Iterator[tuple[int, Step]]:
        """`closed` are the prompts without passages; yields (number of the run, what was decided)."""
        asked = [judgement_prompt("retrieve", question=question) for question in questions]
        ratios = yes_probabilities(self.generator, asked)
        candidates: list[Candidate] = []
        prompts: list[list[Message]] = []
        for n, (run, ratio) in enumerate(zip(runs, ratios, strict=True)):
            p = {RETRIEVAL: ratio, NO_RETRIEVAL: 1 - ratio}
            run.ratio, run.retrieved = retrieval_ratio(p), wants_retrieval(p, self.config.delta)
            run.fed += self._tokens(asked[n])
            root = Beam(n)
            found = list(run.find(""))[: self.config.k] if run.retrieved else []
            told = f"retrieve: r = {ratio:.2f}, {len(found)} passages" if run.retrieved else f"without: r = {ratio:.2f}"
            data = {"r": round(ratio, 6), "delta": self.config.delta, "retrieve": run.retrieved, "level": 0}
            yield n, Step("retrieve", told, {**data, "passages": len(found)})
            for passage in found:
                candidates.append(Candidate(root, RETRIEVAL, passage))
                prompts.append(self._open(questions[n], candidates[-1]))
            if not run.retrieved:
                candidates.append(Candidate(root, NO_RETRIEVAL, None))
                prompts.append(closed[n])
        if candidates:
            self._say(candidates, prompts, runs)
            self._judge(candidates, runs, questions)
        for n, run in enumerate(runs):
            yield from self._choose(n, run, [c for c in candidates if c.beam.run == n])

    def _open(self, question: str, candidate: Candidate) -> list[Message]:
        """The prompt of the arm `rag`, with one passage."""
        assert candidate.passage is not None
        return render(
            question,
            [candidate.passage],
            count_tokens=self.generator.count_tokens,
            budget=self.answer.context_tokens,
            style=self.answer.style,
        ).messages

    def _say(self, candidates: Sequence[Candidate], prompts: list[list[Message]], runs: Sequence[Run]) -> None:
        stop = () if self.answer.style == "cited" else ("\n",)
        said = self.generator.generate(prompts, Decoding(self.answer.max_new_tokens, stop))
        unknown = [i for i, generation in enumerate(said) if generation.logprob is None and generation.text.strip()]
        scored = self.generator.score([prompts[i] for i in unknown], [said[i].text for i in unknown]) if unknown else []
        means = {i: float(values.mean()) for i, values in zip(unknown, scored, strict=True)}
        for i, (candidate, generation) in enumerate(zip(candidates, said, strict=True)):
            candidate.text = " ".join(strip_markers(generation.text).split())
            tokens = max(1, generation.tokens_out)
            mean = means.get(i, (generation.logprob or 0.0) / tokens)
            candidate.logprobs = [mean] if candidate.text else []
            candidate.ids = [0] * generation.tokens_out  # what it cost; the tokens themselves may be unknown
            runs[candidate.beam.run].fed += generation.tokens_in

    def _judge(self, candidates: Sequence[Candidate], runs: Sequence[Run], questions: Sequence[str]) -> None:
        asked: list[tuple[Candidate, str, list[Message]]] = []
        for c in candidates:
            question = questions[c.beam.run]
            if c.passage is not None:
                passage = passage_text(c.passage.chunk)
                asked.append((c, "relevant", judgement_prompt("relevant", question=question, passage=passage)))
                if not is_abstention(c.text):
                    prompt = judgement_prompt("supported", question=question, passage=passage, answer=c.text)
                    asked.append((c, "supported", prompt))
            asked.append((c, "useful", judgement_prompt("useful", question=question, answer=c.text)))
        found = yes_probabilities(self.generator, [prompt for _, _, prompt in asked])
        for (c, kind, prompt), yes in zip(asked, found, strict=True):
            runs[c.beam.run].fed += self._tokens(prompt)
            if kind == "relevant":
                c.relevant, c.irrelevant = {RELEVANT: yes, IRRELEVANT: 1 - yes}, yes < 0.5
            elif kind == "supported":
                c.supported = {FULL: yes, NO_SUPPORT: 1 - yes}
                c.support = FULL if yes >= 0.5 else NO_SUPPORT
            else:
                c.useful = {IS_USE[-1]: yes, IS_USE[0]: 1 - yes}

    def _choose(self, n: int, run: Run, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Any]]:
        grown = []
        for c in candidates:
            c.own = c.score = c.judgement(True).score(self.config.weights)
            c.ended = True
            grown.append((Beam(n, (c,), c.score, ended=True), c.score, c.support))
        width = max(1, len(grown)) if self.config.options else self.config.beam
        run.tried += candidates
        run.beams = select(grown, width, hard=self.config.hard)[0]
        yield from ((n, judged(c, run.beams, True)) for c in candidates)

    def _tokens(self, messages: Sequence[Message]) -> int:
        return sum(self.generator.count_tokens(message["content"]) for message in messages)
