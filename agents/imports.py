"""Traces that others published, as ours: AgentInstruct and ShareGPT conversations, FireAct, glaive tool calls.

What the model should learn to say keeps its mark; what came from an environment never gets one. FireAct's own files put
observations, and a closing line with the reward, into the trained text; here they are split off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from agents import grammar
from agents.loop import TraceStep
from agents.traces import FORMAT, moves_of
from rag.errors import UsageError
from rag.types import content_hash, to_dict

Form = Literal["agentinstruct", "fireact", "glaive"]

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TURN = re.compile(r"^(Thought|Action|Observation)(?: \d+)?: ?", re.MULTILINE)


def import_traces(path: Path, form: Form | None = None) -> list[dict[str, Any]]:
    """The traces of a published file, kept, with a reward where the file states one. Its form is seen from its records.

    Raises UsageError: not JSON, an unknown form, or a record of another form than the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
        records = json.loads(text) if text.lstrip()[:1] in "[{" and not _lines(text) else None
        if records is None:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"{path} is neither JSON nor JSON lines ({error}).") from None
    if not isinstance(records, list) or not records:
        raise UsageError(f"{path} holds no list of records.")
    form = form or guess_form(records[0])
    if form is None or form not in get_args(Form):
        raise UsageError(f"{path} has none of the known forms: {', '.join(get_args(Form))}.")
    out = []
    for number, record in enumerate(records, 1):
        try:
            made = _READERS[form](record)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UsageError(
                f"{path}, record {number} is not of the form {form} ({type(error).__name__}: {error})."
            ) from None
        if made is not None:
            out.append(made)
    return out


def _lines(text: str) -> bool:
    """JSON lines of objects rather than one value."""
    first = text.lstrip().split("\n", 1)[0].strip()
    return first.startswith("{") and first.endswith("}")


def guess_form(record: Any) -> Form | None:
    """The form of a record by its fields; None for an unknown one."""
    if not isinstance(record, Mapping):
        return None
    turns = record.get("conversations")
    if isinstance(turns, list):
        speakers = {t.get("from") for t in turns if isinstance(t, Mapping)}
        return "glaive" if "tools" in record or speakers & {"function_call", "observation"} else "agentinstruct"
    return "fireact" if {"instruction", "output"} <= set(record) else None


def _trace(
    question: str,
    messages: list[dict[str, Any]],
    steps: Sequence[TraceStep],
    answer: str,
    kind: str,
    reward: float | None,
) -> dict[str, Any] | None:
    if not any(m["loss"] for m in messages):
        return None
    names = ("bad_calls", "invalid_actions", "repeated_actions", "tool_failures", "dropped", "tokens_in", "tokens_out")
    return {
        "format": FORMAT, "id": f"{kind}-{content_hash(json.dumps(messages))[:12]}", "question": question, "kind": kind,
        "runtime": "import", "model": kind, "adapter": None, "answer": answer, "answers": [answer] if answer else [],
        "unanswerable": False, "reward": reward, "kept": reward is None or reward >= 1, "ended": "finish",
        "fallback": "", "failure": "", "counts": {"steps": len(steps), **dict.fromkeys(names, 0), "votes": None},
        "seconds": 0.0, "seed": 0, "steps": [to_dict(s) for s in steps], "messages": messages,
    }  # fmt: skip


def from_agentinstruct(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"id", "conversations": [{"from", "loss", "value"}]}: loss where the file says so, and never on a human's turn.
    ShareGPT files have no "loss": all turns of the assistant count."""
    messages: list[dict[str, Any]] = []
    for turn in record["conversations"]:
        role = _ROLES[turn["from"]]
        loss = role == "assistant" and turn.get("loss", True) is True
        messages.append({"role": role, "content": str(turn["value"]), "loss": loss})
    question = next((m["content"] for m in messages if m["role"] == "user"), "")
    answer = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    return _trace(question, _whole(messages), (), answer, "agentinstruct", None)


def _whole(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to the last turn of the assistant."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    return messages[: last + 1]


_REWARD = re.compile(r"Episode finished, reward = (True|False|[\d.]+)")


def from_fireact(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"instruction", "input", "output"}: the whole trace is one text, observations and reward in it; taken apart into
    turns. The closing observation holds the reward and becomes only that."""
    asked = "\n".join(part for part in (record["instruction"], record.get("input") or "") if part).strip()
    steps, reward = fireact_steps(record["output"])
    if not steps or steps[-1].tool != grammar.FINISH:
        return None
    system = grammar.system_text([("search", "words")])
    messages = [
        {**m, "loss": m["role"] == "assistant"} for m in grammar.conversation(asked, moves_of(steps), system=system)
    ]
    return _trace(asked, messages, steps, steps[-1].argument, "fireact", reward)


def fireact_steps(text: str) -> tuple[list[TraceStep], float | None]:
    """The steps of a trace that is one text, and the reward that its closing line states."""
    parts = _TURN.split(text)
    labels, bodies = parts[1::2], parts[2::2]
    steps: list[TraceStep] = []
    thought = ""
    reward: float | None = None
    for label, body in zip(labels, bodies, strict=True):
        body = body.strip()
        if label == "Thought":
            thought = " ".join(f"{thought} {body}".split())
        elif label == "Action":
            parsed = grammar.parse(f"Action: {body}", ("search",))
            if parsed.problem:
                return [], None
            steps.append(TraceStep(thought, parsed.tool, parsed.argument))
            thought = ""
        elif (closing := _REWARD.search(body)) is not None:
            reward = {"True": 1.0, "False": 0.0}.get(closing[1]) if closing[1][0] in "TF" else float(closing[1])
        elif steps:
            last = steps[-1]
            seen = grammar.quote(body, ("search",)) or "(nothing)"
            steps[-1] = TraceStep(last.thought, last.tool, last.argument, seen)
    return steps, reward


def from_glaive(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"conversations": [human, function_call, observation, gpt ...], "tools"}: a call becomes an action, with its
    arguments as JSON; what the assistant says to the person stays as it is."""
    tools = json.loads(record.get("tools") or "[]")
    names = [str(tool["name"]) for tool in tools if isinstance(tool, Mapping) and "name" in tool]
    messages: list[dict[str, Any]] = []
    if tools:
        calls = [(str(t["name"]), json.dumps(dict.fromkeys(_parameters(t), "..."))) for t in tools]
        messages.append({"role": "system", "content": grammar.system_text(calls), "loss": False})
    steps: list[TraceStep] = []
    for turn in record["conversations"]:
        speaker, value = turn["from"], str(turn["value"])
        if speaker == "function_call":
            call = json.loads(value)
            step = TraceStep("", str(call["name"]), json.dumps(call.get("arguments", {}), ensure_ascii=False))
            steps.append(step)
            said = grammar.say("I call a tool.", step.tool, step.argument)
            messages.append({"role": "assistant", "content": said, "loss": True})
        elif speaker == "observation":
            content = f"{grammar.OBSERVATION} {grammar.quote(value, names)}"
            messages.append({"role": "user", "content": content, "loss": False})
        else:
            role = _ROLES[speaker]
            messages.append({"role": role, "content": value, "loss": role == "assistant"})
    question = next((m["content"] for m in messages if m["role"] == "user"), "")
    messages = _whole(_joined(messages))
    return _trace(question, messages, steps, messages[-1]["content"] if messages else "", "glaive", None)


def _parameters(tool: Mapping[str, Any]) -> list[str]:
    schema = tool.get("parameters") or {}
    return list(schema.get("properties", schema)) if isinstance(schema, Mapping) else []


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role as one message: templates want roles to take turns."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if out and out[-1]["role"] == message["role"] != "system":
            out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{message['content']}"}
        else:
            out.append(message)
    return out


_READERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
    "agentinstruct": from_agentinstruct,
    "fireact": from_fireact,
    "glaive": from_glaive,
}
