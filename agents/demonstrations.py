"""Traces without a teacher: what a right run looks like, built from questions whose evidence is known.

The tools are really used, so the observations are those that an agent will meet; only the thoughts and the choice of
actions come from here. A demonstration that does not see its answer among the observations is given up, so every one
that is kept could be done by reading. The exception is `ask`, whose answers are a model's: here it says what is known
to be right, and the agent learns to ask and to pass on. Questions whose evidence stands in two documents are searched.

Questions about one document are answered as they are. `compose` makes questions that take two documents, or arithmetic,
from pairs of them; their gold follows from the gold of their parts.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from agents import grammar
from agents.loop import Outcome, TraceStep
from agents.react import holds
from agents.tools import ASK, Reader, Toolkit, stem
from agents.tools_calculate import show_number
from agents.traces import make_trace, moves_of
from rag.prompt import ABSTAIN
from rag.types import Answer, Question, content_hash

SUM, DIFFERENCE, TIMES, BOTH, LARGER = "sum", "difference", "times", "both", "larger"
KINDS = {SUM: "calculation", DIFFERENCE: "calculation", TIMES: "calculation", BOTH: "two-hop", LARGER: "two-hop"}
MODEL = "demonstration"

_FIGURE = re.compile(
    r"(?:(?P<before>about|at most|at least|more than|less than|up to|over|nearly) )?"
    r"(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?P<unit>(?: (?!and\b|of\b|or\b|in\b)[^\W\d]+)?)"
)
_WORDS = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its unit, as an answer gives it: "1,950 crowns" → 1950.0, "crowns"."""

    value: float
    unit: str
    written: str


def figure(answer: str) -> Figure | None:
    """The figure that an answer is, and nothing else; None for dates, times, ranges and words."""
    found = _FIGURE.fullmatch(answer.strip())
    if found is None or found["before"]:
        return None
    return Figure(float(found["number"].replace(",", "")), found["unit"].strip(), found["number"].replace(",", ""))


@dataclass(frozen=True, slots=True)
class Task:
    """A question to demonstrate: its kind, and the questions it was made of (none for a plain one)."""

    question: Question
    kind: str = ""
    form: str = ""
    parts: tuple[Question, ...] = ()
    factor: int = 1


def plain_tasks(questions: Sequence[Question], kinds: Mapping[str, str]) -> list[Task]:
    """Questions as they are."""
    return [Task(q, kinds.get(q.id, "")) for q in questions]


def compose(questions: Sequence[Question], count: int, *, seed: int = 0) -> list[Task]:
    """`count` questions made of pairs (or of one and a factor), the forms taking turns; fewer where pairs run out.

    Sums, differences and comparisons take figures of the same unit; the two parts stand in different documents where
    they can. The same seed and questions give the same tasks.
    """
    rng = random.Random(f"compose:{seed}")
    usable = [
        q for q in questions if q.answers and not q.unanswerable and len(q.evidence) == 1 and q.question.isascii()
    ]
    usable = [q for q in usable if q.question.rstrip().endswith("?") and 15 <= len(q.question) <= 140]
    by_unit: dict[str, list[tuple[Question, Figure]]] = {}
    for question in usable:
        if (found := _figure_of(question)) is not None and found.value > 0:
            by_unit.setdefault(found.unit, []).append((question, found))
    pairs = [pair for group in by_unit.values() for pair in _pairs(group, rng) if group[0][1].unit]
    rng.shuffle(pairs)
    singles = [item for group in by_unit.values() for item in group]
    rng.shuffle(singles)
    texts = [(q, None) for q in usable if len(q.answers[0].split()) <= 5]
    both = _pairs(texts, rng)
    rng.shuffle(both)
    made: list[Task] = []
    seen: set[str] = set()
    sources: dict[str, Any] = {SUM: pairs, DIFFERENCE: pairs, LARGER: pairs, TIMES: singles, BOTH: both}
    places: Counter[str] = Counter()
    order = (DIFFERENCE, BOTH, SUM, TIMES, LARGER)
    idle = 0
    while len(made) < count and idle < len(order):
        form = order[(len(made) + idle) % len(order)]
        place = "pairs" if form in (SUM, DIFFERENCE, LARGER) else form
        if places[place] >= len(sources[form]):
            idle += 1
            continue
        item = sources[form][places[place]]
        places[place] += 1
        task = _times(item, rng) if form == TIMES else _joined(form, item)
        if task is not None and task.question.question not in seen:
            seen.add(task.question.question)
            made.append(task)
            idle = 0
    return made


def _figure_of(question: Question) -> Figure | None:
    """The figure of the first answer; one with a unit where another form of the answer has it."""
    found = [f for f in map(figure, question.answers) if f is not None]
    return next((f for f in found if f.unit), found[0] if found else None) if figure(question.answers[0]) else None


def _pairs(items: Sequence[tuple[Question, Any]], rng: random.Random) -> list[tuple[Any, Any]]:
    """Neighbours of several shuffled orders, of two documents; each pair once."""
    found: dict[frozenset[str], tuple[Any, Any]] = {}
    for _ in range(4):
        order = list(items)
        rng.shuffle(order)
        for first, second in pairwise(order):
            apart = first[0].evidence[0].source != second[0].evidence[0].source
            if apart and first[0].id != second[0].id:
                found.setdefault(frozenset((first[0].id, second[0].id)), (first, second))
    return list(found.values())


_ASKS = {SUM: "What is the sum?", DIFFERENCE: "What is the difference?", LARGER: "Which figure is larger?"}


def _joined(form: str, pair: tuple[Any, Any]) -> Task | None:
    (first, a), (second, b) = pair
    if form == BOTH:
        text = f"{first.question.rstrip()} {second.question.rstrip()} Give both answers."
        answers = [f"{first.answers[0]} and {second.answers[0]}"]
    else:
        if a.value == b.value:
            return None
        text = f"{first.question.rstrip()} {second.question.rstrip()} {_ASKS[form]}"
        value = (
            a.value + b.value
            if form == SUM
            else abs(a.value - b.value)
            if form == DIFFERENCE
            else max(a.value, b.value)
        )
        answers = _written(value, a.unit)
    key = f"{form}-{content_hash(first.id, second.id)[:8]}"
    question = Question(key, text, tuple(answers), (*first.evidence, *second.evidence))
    return Task(question, KINDS[form], form, (first, second))


def _times(item: tuple[Question, Figure], rng: random.Random) -> Task:
    part, found = item
    factor = rng.randint(2, 9)
    text = f"{part.question.rstrip()} What is {factor} times that?"
    key = f"{TIMES}-{content_hash(part.id, str(factor))[:8]}"
    question = Question(key, text, tuple(_written(found.value * factor, found.unit)), part.evidence)
    return Task(question, KINDS[TIMES], TIMES, (part,), factor)


def _written(value: float, unit: str) -> list[str]:
    number = show_number(round(value, 6))
    return [f"{number} {unit}".strip(), *([number] if unit else [])]


# ----------------------------------------------------------------- demonstrations


class _Missing(Exception):
    """The answer is not among the observations."""


class Demonstrator:
    """Does the tasks with real tools. `toolkit` makes the tools of a new run, given the reader that `ask` asks."""

    def __init__(
        self, toolkit: Callable[[Reader], Toolkit], *, observation_tokens: int, count_tokens: Callable[[str], int]
    ) -> None:
        self._toolkit = toolkit
        self._most, self._count = observation_tokens, count_tokens
        self._known: dict[str, str] = {}
        self._tools = toolkit(self._read)
        self._steps: list[TraceStep] = []

    def _read(self, questions: Sequence[str]) -> list[Answer]:
        return [Answer(question, self._known[question], "gold") for question in questions]

    def trace(self, task: Task) -> dict[str, Any] | None:
        """The trace of a right run; None where the answer was not found by its searches."""
        self._tools, self._steps = self._toolkit(self._read), []
        try:
            answer = self._composed(task) if task.parts else self._plain(task.question)
        except _Missing:
            return None
        outcome = Outcome(answer=answer, ended="finish", steps=self._steps, moves=moves_of(self._steps))
        system = grammar.system_text([(t.name, t.hint) for t in self._tools.tools.values()])
        trace = make_trace(outcome, task.question, system=system, runtime="demonstration", model=MODEL, kind=task.kind)
        return {**trace, "reward": 1.0, "kept": True}

    # ---------------------------------------------------------------- whole tasks

    def _plain(self, question: Question) -> str:
        if question.unanswerable:
            if ASK in self._tools.tools:
                self._ask("I ask it.", question, ABSTAIN)
            else:
                self._act("I search for it.", "search", question.question)
            return self._finish("The documents do not say.", ABSTAIN)
        if not question.answers:
            raise _Missing
        if len(question.evidence) > 1:
            return self._several(question)
        found = self._find(question, "I {} it.")
        return self._finish(f"It says {found}.", found)

    def _several(self, question: Question) -> str:
        """A question on two documents: search with it; where a quote is missing, once more with its document's name."""
        seen = self._act("I search for it.", "search", question.question)
        for evidence in question.evidence:
            if not self._quoted(evidence.quote, seen):
                seen += " " + self._act(
                    f"I also need {stem(evidence.source)}.", "search", f"{stem(evidence.source)} {question.question}"
                )
            if not self._quoted(evidence.quote, seen):
                raise _Missing
        return self._finish(f"I compare: {question.answers[0]}.", question.answers[0])

    def _composed(self, task: Task) -> str:
        found: list[str] = []
        for i, part in enumerate(task.parts):
            before = f"The first is {found[0]}. I {{}} the second." if i else "I {} the first."
            found.append(self._find(part, before if len(task.parts) > 1 else "I {} the figure."))
        if task.form == BOTH:
            return self._finish(f"The second is {found[1]}.", f"{found[0]} and {found[1]}")
        figures = [f for f in (_figure_of(part) for part in task.parts) if f is not None]
        last = f"The second is {found[-1]}." if len(found) > 1 else f"That is {found[0]}."
        first, second = figures[0].written, str(task.factor) if task.form == TIMES else figures[1].written
        if task.form == DIFFERENCE and figures[0].value < figures[1].value:
            first, second = second, first
        forms = {SUM: "{} + {}", DIFFERENCE: "{} - {}", TIMES: "{} * {}", LARGER: "max({}, {})"}
        result = self._act(f"{last} I calculate.", "calculate", forms[task.form].format(first, second))
        return self._finish(f"The result is {result}.", f"{result} {figures[0].unit}".strip())

    # ---------------------------------------------------------------- single moves

    def _find(self, question: Question, thought: str) -> str:
        """One answer: asked for, where `ask` is there; else searched, and looked up in the open document where the
        search did not show it. `thought` has a place for the verb."""
        if ASK in self._tools.tools:
            return self._ask(thought.replace("{}", "ask"), question, question.answers[0])
        seen = self._act(thought.replace("{}", "search for"), "search", question.question)
        if (answer := _answer_in(seen, question)) is not None:
            return answer
        for word in self._words(question)[:3]:
            probe = self._tools.call("lookup", word).text
            if (answer := _answer_in(probe, question)) is not None:
                self._tools._keyword = ""  # what was tried here, the trace begins anew
                self._act("It is not there. I look it up.", "lookup", word)
                return answer
        raise _Missing

    def _ask(self, thought: str, question: Question, answer: str) -> str:
        asked = " ".join(question.question.split())
        self._known[asked] = answer
        self._act(thought, ASK, asked)
        return answer

    def _words(self, question: Question) -> list[str]:
        """Words of the question that stand in the quote, the rarest of the corpus first."""
        quote = " ".join(e.quote for e in question.evidence).lower()
        words = [w for w in dict.fromkeys(_WORDS.findall(question.question.lower())) if w in quote]
        return sorted(words, key=lambda w: (quote.count(w), -len(w)))

    def _act(self, thought: str, tool: str, argument: str) -> str:
        argument = " ".join(argument.split())
        result = self._tools.call(tool, argument)
        if result.failed:
            raise _Missing
        names = list(self._tools.tools)
        text = grammar.clip(grammar.quote(result.text, names), self._most, self._count)
        self._steps.append(TraceStep(thought, tool, argument, text))
        return text

    def _finish(self, thought: str, answer: str) -> str:
        self._steps.append(TraceStep(" ".join(thought.split()), grammar.FINISH, answer))
        return answer

    @staticmethod
    def _quoted(quote: str, seen: str) -> bool:
        words = set(re.findall(r"\w+", quote.lower()))
        have = set(re.findall(r"\w+", seen.lower()))
        return len(words & have) >= 0.8 * len(words)


def _answer_in(text: str, question: Question) -> str | None:
    """The first form of the answer that stands in the text."""
    return next((a for a in question.answers if holds(text, a)), None)


def demonstrate(
    tasks: Iterable[Task], demonstrator: Demonstrator, *, progress: Callable[[int, int], None] | None = None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Traces of the tasks that could be done, and by kind how many were tried and done."""
    todo = list(tasks)
    traces: list[dict[str, Any]] = []
    counts: dict[str, dict[str, int]] = {}
    for i, task in enumerate(todo, 1):
        row = counts.setdefault(task.kind or "question", {"tried": 0, "kept": 0})
        row["tried"] += 1
        trace = demonstrator.trace(task)
        if trace is not None:
            row["kept"] += 1
            traces.append(trace)
        if progress is not None:
            progress(i, len(todo))
    return traces, counts
