"""Runs of the agent: one, with its steps as they happen, or many side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from agents.loop import Ask, Ballot, Call, Outcome, Run, Signal, Vote
from agents.speakers import Speaker
from agents.tools import ASK, ToolResult
from rag.protocols import Progress
from rag.types import Step

Voter = Callable[[Vote], Ballot]
CALLS_AT_ONCE = 8


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
    """Many runs, as many at a time as the speaker has rows: the model writes for all of them at once, and their tools
    work at the same time. `done` is told of each run that ends, in the order in which they end."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(range(len(runs)))
    rows: dict[int, _Active] = {}
    while waiting or rows:
        for row in range(talker.rows):
            if row not in rows and waiting:
                number = waiting.pop(0)
                rows[row] = _Active(number, runs[number])
        pending = _first({row: active.signal for row, active in rows.items() if active.signal is not None})
        replies = _answer_all(pending, rows, talker, vote)
        for row, active in list(rows.items()):
            if row in pending:
                active.send(replies[row])
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


def _first(pending: Mapping[int, Signal]) -> dict[int, Signal]:
    """What is answered first: all that the model need not write for. A token written for few rows takes nearly as long
    as one written for all."""
    quick = {row: signal for row, signal in pending.items() if not isinstance(signal, Ask) or signal.options}
    return quick or dict(pending)


def _answer_all(
    pending: Mapping[int, Signal], rows: Mapping[int, _Active], talker: Speaker, vote: Voter
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
