"""One trace: a question, what an agent did, what came out. One JSON object a line, one schema for every runtime.

    {"format": 1, "id", "question", "kind", "runtime", "model", "adapter", "answer", "answers", "unanswerable",
     "reward", "kept", "ended", "fallback", "failure", "counts", "seconds", "seed",
     "steps":    [{"thought", "tool", "argument", "observation", "problem", "seconds", "orders"}],
     "messages": [{"role", "content", "loss"}]}

`messages` is the conversation as the model saw it, without worked examples; `loss` is true on what the model should
learn to say: its own legal turns, never an observation. Trainers read `messages` and `kept` and need nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents import grammar
from agents.grammar import Move
from agents.loop import Outcome, TraceStep
from rag.errors import UsageError
from rag.prompt import ABSTAIN
from rag.types import Question, to_dict

FORMAT = 1
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (int,), "id": (str,), "question": (str,), "kind": (str,), "runtime": (str,), "model": (str,),
    "adapter": (str, type(None)), "answer": (str,), "answers": (list,), "unanswerable": (bool,),
    "reward": (int, float, type(None)), "kept": (bool,), "ended": (str,), "fallback": (str,), "failure": (str,),
    "counts": (dict,), "seconds": (int, float), "seed": (int,), "steps": (list,), "messages": (list,),
}  # fmt: skip
_STEP = dict.fromkeys(("thought", "tool", "argument", "observation", "problem"), (str,)) | {
    "seconds": (int, float),
    "orders": (bool,),
}
_MESSAGE = {"role": (str,), "content": (str,), "loss": (bool,)}


def make_trace(
    outcome: Outcome,
    question: Question,
    *,
    system: str,
    runtime: str,
    model: str,
    adapter: str | None = None,
    kind: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """The trace of a run, not yet judged."""
    return {
        "format": FORMAT, "id": question.id, "question": question.question, "kind": kind, "runtime": runtime,
        "model": model, "adapter": adapter, "answer": outcome.answer or ABSTAIN, "answers": list(question.answers),
        "unanswerable": question.unanswerable, "reward": None, "kept": False, "ended": outcome.ended,
        "fallback": outcome.fallback, "failure": "", "counts": outcome.counts(), "seconds": round(outcome.seconds, 4),
        "seed": seed, "steps": [to_dict(step) for step in outcome.steps],
        "messages": trace_messages(question.question, outcome, system),
    }  # fmt: skip


def trace_messages(question: str, outcome: Outcome, system: str) -> list[dict[str, Any]]:
    """The conversation with marks of what is learnt; observations that were dropped for space stand in it again."""
    moves = [Move(m.said, s.observation) for m, s in zip(outcome.moves, outcome.steps, strict=True)]
    legal = [not step.problem for step in outcome.steps]
    if outcome.fallback == "forced" and moves:
        moves[-1] = Move(moves[-1].said, moves[-1].observation + "\n" + _answer_now())
        moves.append(Move(grammar.say("I answer now.", grammar.FINISH, outcome.answer or ABSTAIN)))
        legal.append(True)
    turns = iter(legal)
    return [
        {**message, "loss": message["role"] == "assistant" and next(turns)}
        for message in grammar.conversation(question, moves, system=system)
    ]


def _answer_now() -> str:
    from agents.loop import ANSWER_NOW

    return ANSWER_NOW


def moves_of(steps: Sequence[TraceStep]) -> list[Move]:
    """The words of steps that were built without a model."""
    return [Move(grammar.say(s.thought, s.tool, s.argument), s.observation) for s in steps]


def check_trace(trace: Mapping[str, Any]) -> list[str]:
    """What is wrong with a trace; empty when it conforms to the schema of this module."""
    problems = _check(trace, _FIELDS, "")
    if problems:
        return problems
    for name, fields in (("steps", _STEP), ("messages", _MESSAGE)):
        for i, item in enumerate(trace[name]):
            problems += _check(item, fields, f"{name}[{i}].") if isinstance(item, Mapping) else [f"{name}[{i}]"]
    if problems:
        return problems
    wrong = [m["role"] for m in trace["messages"] if m["loss"] and m["role"] != "assistant"]
    if wrong:
        problems.append(f"loss on a message of {wrong[0]}")
    return problems


def _check(value: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]], where: str) -> list[str]:
    problems = [f"{where}{name} is missing" for name in fields if name not in value]
    problems += [f"{where}{name} is unknown" for name in value if name not in fields]
    return problems + [
        f"{where}{name} is {type(value[name]).__name__}"
        for name, types in fields.items()
        if name in value and (not isinstance(value[name], types) or (bool not in types and value[name] is True))
    ]


def write_traces(path: Path, traces: Iterable[Mapping[str, Any]]) -> None:
    """A whole file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with aside.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        file.writelines(json.dumps(trace, ensure_ascii=False) + "\n" for trace in traces)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_traces(path: Path) -> list[dict[str, Any]]:
    """The traces of a file. UsageError naming line and reason when one does not conform."""
    if not path.is_file():
        raise UsageError(f"There is no file of traces at {path}. Make one with `ragtune collect`.")
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogatepass").split("\n"), 1):
        if not line.strip():
            continue
        try:
            trace = json.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number} is not JSON ({error}). Collect again, or take the line out."
            ) from None
        problems = check_trace(trace) if isinstance(trace, dict) else ["not an object"]
        if problems:
            raise UsageError(f"{path}, line {number} is no trace: {'; '.join(problems[:3])}. Collect again.")
        out.append(trace)
    return out
