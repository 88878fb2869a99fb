"""The agent's loop as a conversation between a run and whoever drives it: a run asks the model and the tools, and is
told what they said. It holds all state of one question, so many runs go side by side, in a chat or in a batch.

    Ask        continue this conversation         answered by Said
    Call       use this tool                      answered by ToolResult
    Vote       the majority of sampled answers    answered by Ballot
    Step       something to show                  answered by nothing

What happens when a model misbehaves (ReAct says little about it, so these rules are ours):

| failure | rule |
|---|---|
| no action | asked for the action alone, once; then it is an invalid action |
| several actions | the first counts; what follows, an invented observation above all, is cut off |
| unknown tool, wrong brackets, empty argument | the observation says so and lists the actions; the step counts |
| the same action and argument again | the observation says so; after `repeats` of them it must answer |
| a tool raises, hangs or returns too much | bounded retries, then "unavailable"; long texts are clipped |
| the context is full | the oldest observations go first, never the question or the instruction |
| steps, tokens or seconds are used up | `end`: "empty", "consistency" or "forced"; the trace says which |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from agents import grammar
from agents.grammar import Move, Parsed, Shot
from agents.tools import Toolkit, ToolResult
from rag.errors import ConfigError
from rag.prompt import ABSTAIN
from rag.protocols import Message
from rag.types import Step, Turn

End = Literal["empty", "consistency", "forced"]

DROPPED = "(dropped)"
ANSWER_NOW = "No more actions. Answer now."


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Budgets and habits of an agent.

    steps: actions of a question (ReAct: 7). tokens: most generated in a run. seconds: most a run takes.
    thought_tokens, argument_tokens, observation_tokens: longest of each. context_tokens: longest conversation.
    end: what is said when a budget is used up: nothing, the vote of sampled answers, or an answer that is forced.
    consistency_first: sampled answers vote first, and the agent runs where they have no majority.
    samples, vote_temperature: of a vote (the paper: 21 samples at 0.7).
    constrain: a local model may only write legal actions. shots: worked traces shown, chosen by likeness.
    retries, tool_seconds: of a tool. repeats: equal actions in a row after which it must answer.
    temperature, seed: sampling of thoughts and actions; greedy at 0.
    tools: names of those allowed; None for all.
    """

    steps: int = 7
    tokens: int = 600
    seconds: float = 60.0
    thought_tokens: int = 48
    argument_tokens: int = 64
    observation_tokens: int = 160
    context_tokens: int = 1536
    end: End = "forced"
    consistency_first: bool = False
    samples: int = 7
    vote_temperature: float = 0.7
    constrain: bool = True
    shots: int = 0
    retries: int = 1
    tool_seconds: float = 10.0
    repeats: int = 2
    temperature: float = 0.0
    seed: int = 0
    tools: tuple[str, ...] | None = ("ask", "search", "read", "lookup", "calculate", "table")

    def __post_init__(self) -> None:
        whole = ("steps", "tokens", "thought_tokens", "argument_tokens", "observation_tokens", "samples", "repeats")
        for name in whole:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("shots", "retries", "temperature"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("seconds", "tool_seconds", "vote_temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.end not in get_args(End):
            raise ConfigError(f"end is {self.end!r}; give one of {', '.join(get_args(End))}.")
        if self.context_tokens < 256:
            raise ConfigError(f"context_tokens is {self.context_tokens}; a conversation needs at least 256.")


@dataclass(frozen=True, slots=True)
class Ask:
    """A turn of the model. `begun` is how it begins (models that cannot continue a beginning are given none).

    `options`: it must go on with one of these. `bracket`: it ends where the bracket that `begun` opened is closed.
    """

    messages: Sequence[Message]
    begun: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    bracket: bool = False
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said behind `begun`; `tokens_in` are those it had to read for it."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A tool to be used."""

    tool: str
    argument: str


@dataclass(frozen=True, slots=True)
class Vote:
    """Answers to be sampled, without tools, from what one search finds."""

    question: str
    samples: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Ballot:
    """The answer with most votes, and its share of the samples."""

    answer: str
    share: float
    tokens_in: int = 0
    tokens_out: int = 0


Signal: TypeAlias = "Ask | Call | Vote | Step"
Reply: TypeAlias = "Said | ToolResult | Ballot | None"


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step as it is stored. `problem` is what was wrong with the model's words ("" when nothing was)."""

    thought: str
    tool: str
    argument: str
    observation: str = ""
    problem: str = ""
    seconds: float = 0.0
    orders: bool = False


@dataclass
class Outcome:
    """How a run went. `ended`: finish, steps, tokens, seconds, repeats, context, or vote; `fallback`: the end policy
    that spoke, "" where the agent finished by itself. Counters are those of ReAct's log."""

    answer: str = ""
    ended: str = ""
    fallback: str = ""
    steps: list[TraceStep] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    bad_calls: int = 0
    invalid_actions: int = 0
    repeated_actions: int = 0
    tool_failures: int = 0
    dropped: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    votes: float | None = None
    seconds: float = 0.0

    def counts(self) -> dict[str, Any]:
        """Plain values for the trace."""
        names = (
            "bad_calls",
            "invalid_actions",
            "repeated_actions",
            "tool_failures",
            "dropped",
            "tokens_in",
            "tokens_out",
        )
        return {"steps": len(self.steps), **{name: getattr(self, name) for name in names}, "votes": self.votes}


@dataclass(frozen=True, slots=True)
class Traits:
    """What the model behind a run can do: continue a beginning, keep to options; and how its tokens are counted."""

    count_tokens: Callable[[str], int]
    continues: bool = False
    chooses: bool = False


class Run:
    """One question. `go()` is the conversation with the driver; it returns the `Outcome`."""

    def __init__(
        self,
        question: str,
        toolkit: Toolkit,
        config: AgentConfig,
        traits: Traits,
        *,
        history: Sequence[Turn] = (),
        shots: Sequence[Shot] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.question, self.toolkit, self.config, self.traits = question, toolkit, config, traits
        self.history, self.shots, self.clock = history, list(shots), clock
        self.names = list(toolkit.tools)
        self.system = grammar.system_text([(tool.name, tool.hint) for tool in toolkit.tools.values()])
        self.outcome = Outcome()
        self._began = clock()
        self._repeats = 0

    def go(self) -> Generator[Signal, Any, Outcome]:
        """The whole run; see the module's docstring for what is yielded and what is to be sent back."""
        config = self.config
        if config.consistency_first:
            ballot: Ballot = yield from self._vote()
            if ballot.share >= 0.5 and ballot.answer:
                yield Step(
                    "vote", f"{ballot.share:.0%} of {config.samples} sampled answers agree", {"share": ballot.share}
                )
                return self._end("vote", ballot.answer)
        reason = ""
        while not reason:
            finished = yield from self._step()
            if finished is not None:
                return self._end("finish", finished)
            reason = self._used_up()
        return (yield from self._fall_back(reason))

    # --------------------------------------------------------------------- a step

    def _step(self) -> Generator[Signal, Any, str | None]:
        """Thought, action, observation; the answer where the action was a finish."""
        began = self.clock()
        said, parsed = yield from self._decide()
        out = self.outcome
        yield Step("thought", parsed.thought or "(no thought)", {}, self.clock() - began)
        legal = not parsed.problem
        action = f"{parsed.tool}[{parsed.argument}]" if legal else f"invalid: {parsed.problem}"
        yield Step("action", action, {"tool": parsed.tool, "argument": parsed.argument, "problem": parsed.problem})
        if legal and parsed.tool == grammar.FINISH:
            self._record(parsed, said, "", began)
            return parsed.argument
        acted = self.clock()
        text, orders = yield from self._observe(parsed)
        observation = grammar.clip(text, self.config.observation_tokens, self.traits.count_tokens)
        yield Step("observation", observation, {"orders": orders} if orders else {}, self.clock() - acted)
        self._record(parsed, said, observation or "(nothing)", began, orders)
        out.invalid_actions += not legal
        return None

    def _record(self, parsed: Parsed, said: str, observation: str, began: float, orders: bool = False) -> None:
        seconds = round(self.clock() - began, 4)
        step = TraceStep(parsed.thought, parsed.tool, parsed.argument, observation, parsed.problem, seconds, orders)
        self.outcome.steps.append(step)
        self.outcome.moves.append(Move(said, observation))

    def _decide(self) -> Generator[Signal, Any, tuple[str, Parsed]]:
        """What the model wants to do: its words as they stay in the conversation, and their meaning."""
        if self.traits.chooses and self.config.constrain:
            return (yield from self._decide_legally())
        limit = self.config.thought_tokens + self.config.argument_tokens
        text = yield from self._ask(grammar.THOUGHT, limit, ("\nObservation", "\nQuestion:"))
        parsed = grammar.parse(text, self.names)
        if parsed.problem == grammar.NO_ACTION:
            self.outcome.bad_calls += 1
            again = yield from self._ask_action(parsed.thought)
            second = grammar.parse(f"{grammar.THOUGHT} {parsed.thought}\n{again}", self.names)
            parsed = parsed if second.problem else second
        if parsed.problem:
            return self._trimmed(text), parsed
        return grammar.say(parsed.thought, parsed.tool, parsed.argument), parsed

    def _ask_action(self, thought: str) -> Generator[Signal, Any, str]:
        """The action alone, for a model that gave none."""
        begun = f"{grammar.THOUGHT} {thought}\n{grammar.ACTION}"
        extra: list[Message] = []
        if not self.traits.continues:
            extra = [
                {"role": "assistant", "content": f"{grammar.THOUGHT} {thought}"},
                {"role": "user", "content": f"There was no action. Write one line: {grammar.ACTION} {self._legal()}"},
            ]
        text = yield from self._ask(begun, self.config.argument_tokens, ("\n",), extra=extra)
        return text if text.lstrip().lower().startswith("action") else f"{grammar.ACTION} {text}"

    def _decide_legally(self) -> Generator[Signal, Any, tuple[str, Parsed]]:
        """A free thought, then one of the tools, then its argument up to the closing bracket."""
        text = yield from self._ask(grammar.THOUGHT, self.config.thought_tokens, ("\n",))
        thought = grammar.parse(text, self.names).thought
        begun = f"{grammar.THOUGHT} {thought}\n{grammar.ACTION}"
        options = tuple(f" {name}[" for name in (*self.names, grammar.FINISH))
        chosen = yield from self._ask(begun, 8, options=options)
        name = chosen.strip().rstrip("[")
        argument = yield from self._ask(begun + chosen, self.config.argument_tokens, ("\n",), bracket=True)
        argument = " ".join(argument.split()).removesuffix("]").strip()
        problem = "" if argument else grammar.EMPTY
        return grammar.say(thought, name, argument), Parsed(thought, name, argument, problem)

    def _trimmed(self, text: str) -> str:
        """Words that were no action, as they stay in the conversation: the first lines, without the grammar's words."""
        kept = grammar.parse(text, self.names).thought
        return f"{grammar.THOUGHT} {grammar.quote(grammar.clip(kept, 48, self.traits.count_tokens), self.names)}"

    # --------------------------------------------------------------- observations

    def _observe(self, parsed: Parsed) -> Generator[Signal, Any, tuple[str, bool]]:
        """What comes back for an action, quoted where it is a tool's, and whether it speaks to the model."""
        if parsed.problem:
            return f"Invalid action ({parsed.problem}). Write one of: {self._legal()}.", False
        last = self.outcome.steps[-1] if self.outcome.steps else None
        if last is not None and not last.problem and (last.tool, last.argument) == (parsed.tool, parsed.argument):
            self.outcome.repeated_actions += 1
            self._repeats += 1
            if parsed.tool not in ("lookup", "read"):  # for these, the same again means the next part
                return "This action was repeated. Do something else, or finish.", False
        else:
            self._repeats = 0
        result: ToolResult = yield Call(parsed.tool, parsed.argument)
        self.outcome.tool_failures += bool(result.failed)
        self.outcome.tokens_in += result.tokens_in
        self.outcome.tokens_out += result.tokens_out
        return grammar.quote(result.text, self.names), grammar.looks_like_orders(result.text)

    def _legal(self) -> str:
        calls = [f"{tool.name}[{tool.hint}]" for tool in self.toolkit.tools.values()]
        return ", ".join([*calls, f"{grammar.FINISH}[answer]"])

    # -------------------------------------------------------------------- budgets

    def _used_up(self) -> str:
        """The budget that is used up, or "" when the run may go on."""
        if self._repeats >= self.config.repeats:
            return "repeats"
        if len(self.outcome.steps) >= self.config.steps:
            return "steps"
        if self.outcome.tokens_out >= self.config.tokens:
            return "tokens"
        return "seconds" if self.clock() - self._began >= self.config.seconds else ""

    def _fall_back(self, reason: str) -> Generator[Signal, Any, Outcome]:
        """What is said when the agent did not finish. Repeating itself always ends in a forced answer."""
        policy: End = "forced" if reason == "repeats" and self.config.end != "empty" else self.config.end
        self.outcome.fallback = policy
        if policy == "empty":
            return self._end(reason, "")
        if policy == "consistency":
            ballot: Ballot = yield from self._vote()
            yield Step(
                "vote", f"{ballot.answer or ABSTAIN} ({ballot.share:.0%} of the samples)", {"share": ballot.share}
            )
            return self._end(reason, ballot.answer)
        answer = yield from self._forced()
        yield Step(
            "action", f"{grammar.FINISH}[{answer}]", {"tool": grammar.FINISH, "argument": answer, "forced": True}
        )
        return self._end(reason, answer)

    def _forced(self) -> Generator[Signal, Any, str]:
        """An answer from what was seen so far."""
        begun = f"{grammar.THOUGHT} I answer now.\n{grammar.ACTION} {grammar.FINISH}["
        note = ANSWER_NOW
        if not self.traits.continues:
            note += f" Write only: {grammar.ACTION} {grammar.FINISH}[answer]"
        text = yield from self._ask(begun, self.config.argument_tokens, ("\n",), note=note, bracket=True)
        if self.traits.continues:
            return " ".join(text.split()).partition("]")[0].strip()
        parsed = grammar.parse(text, self.names)
        if parsed.tool == grammar.FINISH:
            return parsed.argument
        return "" if parsed.tool else parsed.thought.removeprefix(grammar.ACTION).strip()

    def _vote(self) -> Generator[Signal, Any, Ballot]:
        config = self.config
        ballot: Ballot = yield Vote(self.question, config.samples, config.vote_temperature, config.seed)
        self.outcome.votes = ballot.share
        self.outcome.tokens_in += ballot.tokens_in
        self.outcome.tokens_out += ballot.tokens_out
        return ballot

    def _end(self, reason: str, answer: str) -> Outcome:
        self.outcome.ended, self.outcome.answer = reason, answer
        self.outcome.seconds = self.clock() - self._began
        return self.outcome

    # ------------------------------------------------------------------ the model

    def _ask(
        self,
        begun: str,
        limit: int,
        stop: tuple[str, ...] = (),
        *,
        options: tuple[str, ...] = (),
        bracket: bool = False,
        extra: Sequence[Message] = (),
        note: str = "",
    ) -> Generator[Signal, Any, str]:
        """`extra` messages follow the conversation; a `note` is added to its last one, as turns must alternate."""
        config = self.config
        messages = [*self._messages(limit), *extra]
        if note:
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content'].rstrip()}\n{note}\n"}
        seed = config.seed + len(self.outcome.steps)
        said: Said = yield Ask(messages, begun, limit, stop, options, bracket, config.temperature, seed)
        self.outcome.tokens_in += said.tokens_in
        self.outcome.tokens_out += said.tokens_out
        return said.text

    def _messages(self, room: int) -> list[Message]:
        """The conversation, with the oldest observations dropped until it fits; then the worked traces go."""
        while True:
            made = grammar.conversation(
                self.question, self.outcome.moves, system=self.system, shots=self.shots, history=self.history
            )
            # eight tokens a message for the template's own, and what the model has begun and is to be told besides
            size = sum(self.traits.count_tokens(m["content"]) + 8 for m in made) + room + 128
            if size <= self.config.context_tokens or not self._drop():
                return made

    def _drop(self) -> bool:
        moves = self.outcome.moves
        for i, move in enumerate(moves):
            if move.observation and move.observation != DROPPED:
                moves[i] = Move(move.said, DROPPED)
                self.outcome.dropped += 1
                return True
        if self.shots:
            self.shots.pop(0)
            return True
        return False
