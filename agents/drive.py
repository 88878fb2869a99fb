"""Who answers a run's questions: a local model that keeps its cache between steps, or any generator; one run or many.

A local model never reads a conversation twice. Each row of its cache holds one run; what is asked next begins with what
stands there already, and only the new tokens, an observation and the marks around it, go through the model. A row that
is given a new question keeps the instruction it shares with the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agents.loop import Ask, Ballot, Call, Outcome, Run, Said, Signal, Traits, Vote
from agents.tools import ASK, ToolResult
from rag.errors import ConfigError
from rag.protocols import Decoding, Message, Progress
from rag.protocols import Generator as Model
from rag.types import Step

if TYPE_CHECKING:
    import numpy as np

    from rag.generator import LocalGenerator

Voter = Callable[[Vote], Ballot]
CALLS_AT_ONCE = 8


class Speaker(Protocol):
    """Answers several runs' questions at once, each known by a row."""

    traits: Traits
    rows: int

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        """What the model says to each."""
        ...


def speaker(generator: Model, *, rows: int = 1, context_tokens: int = 1536) -> Speaker:
    """The best way to talk to this generator; made within the context of the adapter that is to be used."""
    if hasattr(generator, "hold"):
        return CachedSpeaker(generator, rows=rows, capacity=context_tokens)  # type: ignore[arg-type]
    return PlainSpeaker(generator, rows=rows)


class PlainSpeaker:
    """Any generator, by whole prompts; it is not asked to continue a beginning or to keep to options."""

    def __init__(self, generator: Model, *, rows: int = 1) -> None:
        self.generator, self.rows = generator, rows
        self.traits = Traits(generator.count_tokens)

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        decodings = [Decoding(a.max_tokens, a.stop, a.temperature, a.seed) for a in asks.values()]
        made = self.generator.generate([list(a.messages) for a in asks.values()], decodings)
        return {row: Said(g.text.strip(), g.tokens_in, g.tokens_out) for row, g in zip(asks, made, strict=True)}


class CachedSpeaker:
    """A local model on a `Stepper`: rows side by side, each token step for all of them at once."""

    def __init__(self, generator: LocalGenerator, *, rows: int, capacity: int) -> None:
        from rag.stepping import Stepper

        self.generator, self.rows = generator, rows
        self.traits = Traits(generator.count_tokens, continues=True, chooses=True)
        self.stepper = Stepper(generator, rows=rows, capacity=capacity)
        self.read = 0  # tokens that went through the model as text

    def complete(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        choosing = {row: ask for row, ask in asks.items() if ask.options}
        speaking = {row: ask for row, ask in asks.items() if not ask.options}
        return {**self._choose(choosing), **self._speak(speaking)}

    def _ids(self, ask: Ask, more: str = "") -> list[int]:
        begun: list[Message] = [{"role": "assistant", "content": ask.begun + more}] if ask.begun + more else []
        return self.generator.prompt_ids([*ask.messages, *begun])

    def _sync(self, wanted: Mapping[int, Sequence[int]]) -> tuple[Any, dict[int, int]]:
        """Bring rows to these tokens; the logits behind them, in order, and how many tokens each had to read."""
        import torch

        held = self.stepper.tokens
        fresh = {row: ids for row, ids in wanted.items() if row not in held}
        more: dict[int, list[int]] = {}
        for row, ids in wanted.items():
            if row in fresh:
                continue
            same = _shared(held[row], ids)
            same = min(same, len(ids) - 1)  # the last token is run again where nothing is new: its logits are asked
            if same == 0:
                fresh[row] = ids
                continue
            if same < len(held[row]):
                self.stepper.cut(row, same)
            more[row] = list(ids[same:])
        parts: dict[int, Any] = {}
        for group, feed in ((fresh, self.stepper.start), (more, self.stepper.extend)):
            if group:
                logits = feed(group)
                parts.update({row: logits[i] for i, row in enumerate(group)})
        read = {row: len(more.get(row, fresh.get(row, ()))) for row in wanted}
        self.read += sum(read.values())
        return torch.stack([parts[row] for row in wanted]), read

    def _choose(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        """The option that the model's next token names; options that begin alike are told apart further on."""
        out: dict[int, Said] = {}
        left = {row: {o: self._ids(ask, o) for o in ask.options} for row, ask in asks.items()}
        total = dict.fromkeys(asks, 0)
        while left:
            places = {
                row: min(_all_shared(list(ids.values())), min(map(len, ids.values())) - 1) for row, ids in left.items()
            }
            logits, read = self._sync({row: next(iter(ids.values()))[: places[row]] for row, ids in left.items()})
            for i, (row, ids) in enumerate(list(left.items())):
                total[row] += read[row]
                at = places[row]
                best = max(ids, key=lambda o: float(logits[i][ids[o][at]]))
                kept = {o: v for o, v in ids.items() if v[at] == ids[best][at]}
                if len(kept) == 1 or len(kept) == len(ids):
                    out[row] = Said(best, total[row], 1)
                    del left[row]
                else:
                    left[row] = kept
        return out

    def _speak(self, asks: Mapping[int, Ask]) -> dict[int, Said]:
        from rag.decode import Job, TextStream

        if not asks:
            return {}
        import numpy as np

        jobs: dict[int, Job] = {}
        prompts = {row: self._ids(ask) for row, ask in asks.items()}
        for row, ask in asks.items():
            room = self.stepper.capacity - len(prompts[row])
            if room < 1:
                raise ConfigError(
                    f"The conversation has {len(prompts[row])} tokens; at most {self.stepper.capacity - 1} fit here. "
                    "Ask a shorter question, or raise context_tokens."
                )
            random = np.random.default_rng(ask.seed) if ask.temperature > 0 else None
            decoding = Decoding(ask.max_tokens, ask.stop, ask.temperature, ask.seed)
            jobs[row] = Job(
                row,
                prompts[row],
                decoding,
                min(ask.max_tokens, room),
                TextStream(self.generator.tokenizer),
                random=random,
            )
        logits, read = self._sync(prompts)
        active = list(jobs)
        while active:
            self._take(logits, [jobs[row] for row in active], asks)
            active = [row for row in active if not jobs[row].done]
            if active:
                logits = self.stepper.step({row: jobs[row].out[-1] for row in active})
        return {row: Said(job.text.strip(), read[row], len(job.out)) for row, job in jobs.items()}

    def _take(self, logits: Any, jobs: Sequence[Any], asks: Mapping[int, Ask]) -> None:
        picks = logits.argmax(dim=-1).tolist()
        for i, job in enumerate(jobs):
            row: np.ndarray | None = logits[i].cpu().numpy() if job.random is not None else None
            job.take(row, picks[i], 0.0, 0.0, self.generator.tokens.ends)
            if asks[job.index].bracket and (end := closing(job.text)) is not None:
                job.text, job.done = job.text[:end], True


def closing(text: str) -> int | None:
    """Where the bracket closes that was opened before `text` began; None while it is open."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return i
    return None


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def _all_shared(sequences: Sequence[Sequence[int]]) -> int:
    return min((_shared(sequences[0], other) for other in sequences[1:]), default=len(sequences[0]))


# --------------------------------------------------------------------------- runs


def drive(run: Run, talker: Speaker, vote: Voter, *, row: int = 0) -> Generator[Step, None, Outcome]:
    """One run, its steps as they happen. Closing the iterator stops between two of them."""
    conversation = run.go()
    answer: Any = None
    try:
        while True:
            signal = conversation.send(answer)
            answer = None
            if isinstance(signal, Step):
                yield signal
            elif isinstance(signal, Ask):
                answer = talker.complete({row: signal})[row]
            elif isinstance(signal, Call):
                answer = run.toolkit.call(signal.tool, signal.argument)
            else:
                answer = vote(signal)
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome
    finally:
        conversation.close()


def drive_many(
    runs: Sequence[Run],
    talker: Speaker,
    vote: Voter,
    *,
    done: Callable[[int, Outcome, list[Step]], None] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Many runs, as many at a time as the speaker has rows: in each round the model answers all of them at once, and
    their tools work at the same time. `done` is told of each run that ends, in the order in which they end."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(range(len(runs)))
    rows: dict[int, _Active] = {}
    while waiting or rows:
        for row in range(talker.rows):
            if row not in rows and waiting:
                number = waiting.pop(0)
                rows[row] = _Active(number, runs[number])
        pending = {row: active.signal for row, active in rows.items()}
        replies = _answer_all(pending, rows, talker, vote)
        for row, active in list(rows.items()):
            if active.outcome is None:
                active.send(replies.get(row))
            if active.outcome is not None:
                outcomes[active.number] = active.outcome
                del rows[row]
                if done is not None:
                    done(active.number, active.outcome, active.steps)
                if progress is not None:
                    progress(len(outcomes), len(runs))
    return [outcomes[i] for i in range(len(runs))]


class _Active:
    """A run under way: what it waits for, or how it ended."""

    def __init__(self, number: int, run: Run) -> None:
        self.number, self.run = number, run
        self.steps: list[Step] = []
        self.outcome: Outcome | None = None
        self._conversation = run.go()
        self.signal: Signal | None = None
        self.send(None)

    def send(self, reply: Any) -> None:
        """Go on with a reply up to the next thing that somebody else must do."""
        try:
            self.signal = self._conversation.send(reply)
            while isinstance(self.signal, Step):
                self.steps.append(self.signal)
                self.signal = self._conversation.send(None)
        except StopIteration as ended:
            self.outcome, self.signal = ended.value, None


def _answer_all(
    pending: Mapping[int, Signal | None], rows: Mapping[int, _Active], talker: Speaker, vote: Voter
) -> dict[int, Any]:
    replies: dict[int, Any] = {}
    asks = {row: signal for row, signal in pending.items() if isinstance(signal, Ask)}
    if asks:
        replies.update(talker.complete(asks))
    calls = {row: signal for row, signal in pending.items() if isinstance(signal, Call)}
    replies.update(_call_all(calls, rows))
    replies.update({row: vote(signal) for row, signal in pending.items() if isinstance(signal, Vote)})
    return replies


def _call_all(calls: Mapping[int, Call], rows: Mapping[int, _Active]) -> dict[int, ToolResult]:
    """All calls of a round; several at a time, so that one that hangs keeps nobody waiting for longer than itself."""
    found: dict[int, ToolResult] = {}
    asked = {row: call.argument for row, call in calls.items() if call.tool == ASK}
    if asked:  # one model answers them all together
        kits = {row: rows[row].run.toolkit for row in asked}
        reader = next(iter(kits.values())).reader
        assert reader is not None, "the tool is not offered without one"
        answers = reader(list(asked.values()))
        found.update({row: kits[row].told(a) for row, a in zip(asked, answers, strict=True)})

    def work(row: int, call: Call) -> None:
        found[row] = rows[row].run.toolkit.call(call.tool, call.argument)

    items = [(row, call) for row, call in calls.items() if row not in asked]
    for begin in range(0, len(items), CALLS_AT_ONCE):
        group = items[begin : begin + CALLS_AT_ONCE]
        threads = [threading.Thread(target=work, args=item, daemon=True) for item in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # bounded: every call has its own time limit
    return found
