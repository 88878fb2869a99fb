"""The arm `agent`: the loop over the user's documents as a mode of the answerer, one question or many."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import grammar
from agents.drive import Voter, drive, drive_many
from agents.grammar import Move, Shot
from agents.loop import AgentConfig, Ballot, Outcome, Run, Traits, Vote
from agents.speakers import speaker
from agents.tools import Corpus, Reader, Tool, Toolkit
from agents.traces import make_trace, read_traces
from rag.cite import citation
from rag.metrics import normalise
from rag.prompt import ABSTAIN, is_abstention
from rag.protocols import Decoding, Message, Progress
from rag.types import Answer, Citation, Event, Finished, Passage, Question, Searching, Token, Turn

if TYPE_CHECKING:
    from rag.answer import Answerer

ROWS = 16
"""Runs side by side in a batch on a local model."""


class Bank:
    """Traces to show as examples: the kept ones of a file, chosen by likeness of their questions."""

    def __init__(self, traces: Sequence[dict[str, Any]]) -> None:
        self._traces = [t for t in traces if t["kept"] and t["steps"]]
        self._vectors: Any = None

    @classmethod
    def open(cls, path: Path) -> Bank:
        return cls(read_traces(path))

    def __len__(self) -> int:
        return len(self._traces)

    def nearest(self, question: str, count: int, corpus: Corpus) -> list[Shot]:
        """The traces of the `count` most similar other questions, the most similar last."""
        if not self._traces or count < 1:
            return []
        if self._vectors is None:
            self._vectors = corpus.index.embed_queries([t["question"] for t in self._traces])
        scores = self._vectors @ corpus.index.embed_queries([question])[0]
        asked = normalise(question)
        best = [i for i in (-scores).argsort().tolist() if normalise(self._traces[i]["question"]) != asked][:count]
        return [_shot(self._traces[i]) for i in reversed(best)]


def _shot(trace: dict[str, Any]) -> Shot:
    moves = [
        Move(grammar.say(s["thought"], s["tool"], s["argument"]), s["observation"])
        for s in trace["steps"]
        if not s["problem"]
    ]
    if not moves or trace["steps"][-1]["tool"] != grammar.FINISH:
        moves.append(Move(grammar.say("I answer now.", grammar.FINISH, trace["answer"])))
    return Shot(trace["question"], tuple(moves))


def side_by_side(config: AgentConfig, rows: int) -> dict[str, Any]:
    """What changes in the config of a run that shares the machine with others: its time is a share of what passes."""
    return {"seconds": config.seconds * rows}


class ReactMode:
    """See `rag.modes.Mode`. Keeps what all runs share (word statistics, tables); the state of a run is its own."""

    def __init__(
        self, config: AgentConfig = AgentConfig(), *, tools: Sequence[Tool] = (), bank: Bank | None = None
    ) -> None:
        self.config, self.tools, self.bank = config, tuple(tools), bank
        self._corpora: dict[int, Corpus] = {}

    def stream(self, answerer: Answerer, question: str, *, arm: str, history: Sequence[Turn] = ()) -> Iterator[Event]:
        """Each thought, action and observation as it happens; closing the iterator stops between two steps."""
        began = time.perf_counter()
        corpus = self.corpus(answerer)
        yield Searching(question, len(corpus.index.chunks))
        with answerer.generator.adapter(answerer.adapters.get(arm)):
            talker = speaker(answerer.generator, context_tokens=self.window(answerer))
            run = self.run(answerer, question, talker.traits, history=history)
            steps = drive(run, talker, make_voter(answerer))
            try:
                while True:
                    try:
                        yield next(steps)
                    except StopIteration as ended:
                        outcome: Outcome = ended.value
                        break
            finally:
                steps.close()
        answer = self._answer(answerer, arm, run, outcome, time.perf_counter() - began)
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
        """One answer for each question, several runs side by side. Frozen retrievals are not used: an agent writes its
        own queries. `seconds` of an answer is the batch's time divided by its questions."""
        began = time.perf_counter()
        if not questions:
            return []
        with answerer.generator.adapter(answerer.adapters.get(arm)):
            rows = min(ROWS, len(questions))
            talker = speaker(answerer.generator, rows=rows, context_tokens=self.window(answerer))
            runs = [
                self.run(
                    answerer, q, talker.traits, seed=self.config.seed + 1000 * i, **side_by_side(self.config, rows)
                )
                for i, q in enumerate(questions)
            ]
            outcomes = drive_many(runs, talker, make_voter(answerer), progress=progress)
        seconds = (time.perf_counter() - began) / len(questions)
        return [self._answer(answerer, arm, r, o, seconds) for r, o in zip(runs, outcomes, strict=True)]

    def corpus(self, answerer: Answerer) -> Corpus:
        """What the runs over this answerer's index share."""
        retriever = answerer.need_retriever()
        if id(retriever) not in self._corpora:
            self._corpora[id(retriever)] = Corpus(retriever)
        return self._corpora[id(retriever)]

    def window(self, answerer: Answerer) -> int:
        """Tokens of the longest conversation with this generator."""
        return min(self.config.context_tokens, answerer.generator.context_window)

    def run(
        self,
        answerer: Answerer,
        question: str,
        traits: Traits,
        *,
        history: Sequence[Turn] = (),
        **changes: Any,
    ) -> Run:
        """A new run of one question; `changes` are fields of its config (seed, temperature)."""
        corpus = self.corpus(answerer)
        config = replace(self.config, context_tokens=max(256, self.window(answerer)), **changes)
        shots = self.bank.nearest(question, config.shots, corpus) if self.bank is not None else []
        return Run(question, self.toolkit(corpus, make_reader(answerer)), config, traits, history=history, shots=shots)

    def toolkit(self, corpus: Corpus, reader: Reader | None = None) -> Toolkit:
        """The tools of a new run."""
        config = self.config
        names = None if config.tools is None else (*config.tools, *(tool.name for tool in self.tools))
        return Toolkit(
            corpus, extra=self.tools, names=names, retries=config.retries, seconds=config.tool_seconds, reader=reader
        )

    def _answer(self, answerer: Answerer, arm: str, run: Run, outcome: Outcome, seconds: float) -> Answer:
        adapter = answerer.adapters.get(arm)
        question = Question("", run.question)
        trace = make_trace(
            outcome, question, system=run.system, runtime="react", model=answerer.generator.name,
            adapter=str(adapter) if adapter else None, seed=run.config.seed,
        )  # fmt: skip
        return build_answer(arm, run.toolkit, outcome, trace, seconds)


def build_answer(arm: str, toolkit: Toolkit, outcome: Outcome, trace: dict[str, Any], seconds: float) -> Answer:
    """The answer of a run: what was found becomes its passages, and what it rests on its citations."""
    said = outcome.answer.strip()
    abstained = is_abstention(said)
    passages = tuple(replace(p, rank=i) for i, p in enumerate(toolkit.seen.values(), 1))
    citations = () if abstained else cite_seen(said, outcome, toolkit, passages)
    marks = "".join(f" [{n}]" for n in dict.fromkeys(c.number for c in citations))
    return Answer(
        question=trace["question"],
        text=(said + marks) if said else ABSTAIN,
        arm=arm,
        abstained=abstained,
        citations=citations,
        passages=passages,
        query=next((s.argument for s in outcome.steps if s.tool == "search"), ""),
        tokens_in=outcome.tokens_in,
        tokens_out=outcome.tokens_out,
        seconds=seconds,
        model=trace["model"],
        adapter=trace["adapter"],
        details={"agent": {**outcome.counts(), "ended": outcome.ended, "fallback": outcome.fallback}, "trace": trace},
    )


def cite_seen(answer: str, outcome: Outcome, toolkit: Toolkit, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """Where the answer stands among the sentences that were shown; for a computed one, where its figures stand."""
    claims = [answer] if _stands(answer, toolkit) else []
    if not claims:
        sums = [step.argument for step in outcome.steps if step.tool == "calculate" and not step.problem]
        claims = re.findall(r"\d+(?:\.\d+)?", sums[-1]) if sums else []
    by_chunk = {p.chunk.id: p for p in passages}
    found: dict[str, Citation] = {}
    for claim in claims:
        for chunk, sentence in reversed(toolkit.shown):
            if holds(sentence, claim) and chunk in by_chunk:
                found.setdefault(chunk, citation(by_chunk[chunk].rank, sentence, by_chunk[chunk]))
                break
    return tuple(found.values())


def _stands(text: str, toolkit: Toolkit) -> bool:
    return any(holds(sentence, text) for _, sentence in toolkit.shown)


def holds(sentence: str, text: str) -> bool:
    """Whether the words of `text` stand in the sentence, whole; digits with or without thousands separators."""
    plain, wanted = (re.sub(r"(?<=\d),(?=\d{3})", "", t).lower() for t in (sentence, text))
    left = r"(?<![0-9a-z_.])" if wanted[:1].isascii() else ""  # scripts without spaces have no borders to look at
    right = r"(?![0-9a-z_])" if wanted[-1:].isascii() else ""
    return bool(wanted) and re.search(rf"{left}{re.escape(wanted)}(?!\.\d){right}", plain) is not None


def plain_arm(answerer: Answerer) -> str:
    """The arm that answers without an agent: tuned+rag where there are its weights, which were trained to answer so."""
    return "tuned+rag" if "tuned+rag" in answerer.adapters else "rag"


def make_reader(answerer: Answerer) -> Reader:
    """What answers the simple questions that an agent asks."""
    return lambda questions: answerer.answer_many(list(questions), arm=plain_arm(answerer))


def make_voter(answerer: Answerer) -> Voter:
    """Self-consistency without tools: answers sampled over the passages of one search, and the most frequent of them
    (Wang et al. 2022)."""

    def vote(asked: Vote) -> Ballot:
        assert answerer.retriever is not None
        arm = plain_arm(answerer)
        passages = answerer.retriever.search(asked.question, answerer.config.k)
        messages: list[Message] = answerer.render(asked.question, passages, arm=arm).messages
        decodings = [
            Decoding(answerer.config.max_new_tokens, ("\n",), asked.temperature, asked.seed + i)
            for i in range(asked.samples)
        ]
        with answerer.generator.adapter(answerer.adapters.get(arm)):
            made = answerer.generator.generate([messages] * asked.samples, decodings)
        texts = [g.text.strip() for g in made]
        counts = Counter(ABSTAIN if is_abstention(t) else normalise(t) for t in texts)
        winner, votes = counts.most_common(1)[0]
        text = next((t for t in texts if normalise(t) == winner), "")
        return Ballot(text, votes / asked.samples, sum(g.tokens_in for g in made), sum(g.tokens_out for g in made))

    return vote
