"""What an OpenAI client sends, checked; and what it gets back. Pure: no model, no server.

Understood: `model` (an arm), `messages`, `stream`, `stream_options.include_usage`, `max_tokens` or
`max_completion_tokens`, `temperature`, `seed`, `stop`. What cannot be honoured and would change the answer is refused;
what a client sends out of habit is named in `ragtune.ignored` of the reply.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.prompt import parse_citations
from rag.types import Answer, Passage, Turn, to_dict

MAX_NEW_TOKENS = 1024
MAX_MESSAGES = 200


class BadRequest(Exception):
    """What the client sent cannot be used; becomes an OpenAI-shaped error."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request: the last user message is the question, the pairs before it are the history."""

    model: str
    question: str
    history: tuple[Turn, ...] = ()
    stream: bool = False
    usage: bool = False
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


_READ = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "seed",
    "stop", "n", "user",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "tools": (None, []), "functions": (None, []), "logprobs": (None, False),
    "response_format": (None, {"type": "text"}), "audio": (None,),
    "tool_choice": (None, "none", "auto"), "modalities": (None, ["text"]),
}  # fmt: skip
"""Options that are only taken at these values: at others they would ask for something that is not done here."""


def read_ask(body: Any) -> Ask:
    """The request of `/v1/chat/completions`. BadRequest names the parameter that is wrong."""
    if not isinstance(body, Mapping):
        raise BadRequest("The body must be a JSON object with model and messages.")
    for name, allowed in _NEUTRAL.items():
        if name in body and body[name] not in allowed:
            told = f"'{name}' is {str(body[name])[:80]}, which this server does not do; leave it away."
            raise BadRequest(told, param=name, code="unsupported_value")
    question, history, dropped = _read_messages(body.get("messages"))
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    options = body.get("stream_options") or {}
    ignored = sorted({k for k in body if k not in _READ and k not in _NEUTRAL and body[k] is not None}) + dropped
    return Ask(
        str(body.get("model") or "auto"),
        question,
        history,
        bool(body.get("stream")),
        bool(options.get("include_usage")) if isinstance(options, Mapping) else False,
        _number(limit, "max_tokens", 1, MAX_NEW_TOKENS, whole=True),  # type: ignore[arg-type]
        _number(body.get("temperature"), "temperature", 0, 2),
        int(_number(body.get("seed"), "seed", -(2**63), 2**63, whole=True) or 0) % 2**63,
        _stops(body.get("stop")),
        tuple(ignored),
    )


def _number(value: Any, name: str, low: float, high: float, *, whole: bool = False) -> float | None:
    if value is None:
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not fits or (whole and int(value) != value) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise BadRequest(f"'{name}' is {str(value)[:40]!r}; it must be {kind} from {low:g} to {high:g}.", param=name)
    return int(value) if whole else float(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else list(value or ()) if isinstance(value, (list, type(None))) else None
    if stops is None or len(stops) > 16 or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest("'stop' must be a string or a list of up to 16 non-empty strings.", param="stop")
    return tuple(stops)


def _read_messages(messages: Any) -> tuple[str, tuple[Turn, ...], list[str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"'messages' has {len(messages)} entries; at most {MAX_MESSAGES} are taken.", param="messages")
    turns: list[Turn] = []
    asked: str | None = None
    dropped: list[str] = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "developer", "user", "assistant"):
            told = f"messages[{i}] has the role {str(role)[:40]!r}; allowed are system, user and assistant."
            raise BadRequest(told, param=f"messages[{i}].role")
        text = _content(message.get("content"), i)
        if role == "user":
            asked = text
        elif role == "assistant" and asked is not None:
            turns.append(Turn(asked, text))
            asked = None
        elif role in ("system", "developer"):
            dropped = ["messages: system"]  # the instruction is part of what was measured and trained
    if asked is None:
        raise BadRequest("The last message must be the user's.", param="messages")
    return asked, tuple(turns), dropped


def _content(content: Any, i: int) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        kinds = {str(part.get("type")) for part in content}
        if kinds <= {"text", "input_text"}:
            return "\n".join(str(part.get("text", "")) for part in content)
        wrong = ", ".join(sorted(kinds - {"text", "input_text"}))
        raise BadRequest(f"messages[{i}] holds {wrong}; only text is understood.", param=f"messages[{i}].content")
    raise BadRequest(f"messages[{i}].content must be text.", param=f"messages[{i}].content")


# ----------------------------------------------------------------------------------- replies


def extra(answer: Answer, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """The one extra field, `ragtune`: which arm, model and adapter answered, from which passages, with citations."""
    return {
        "arm": answer.arm,
        "generator": answer.model,
        "adapter": answer.adapter,
        "abstained": answer.abstained,
        "content": answer.text,
        "citations": to_dict(answer.citations),
        "passages": to_dict(answer.passages),
        "cut": answer.cut,
        "query": answer.query,
        "ignored": list(ignored),
    }


def usage_of(answer: Answer) -> dict[str, int]:
    """Tokens, as OpenAI counts them."""
    total = answer.tokens_in + answer.tokens_out
    return {"prompt_tokens": answer.tokens_in, "completion_tokens": answer.tokens_out, "total_tokens": total}


def finish_of(answer: Answer, limit: int) -> str:
    """Why the answer ended: by itself, or at its limit of tokens."""
    return "length" if answer.tokens_out >= limit else "stop"


def new_id() -> str:
    """An id of one completion."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def completion_body(answer: Answer, ask: Ask, *, id: str, created: int, limit: int) -> dict[str, Any]:
    """The reply to a request without `stream`."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": ask.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_of(answer, limit)}],
        "usage": usage_of(answer),
        "ragtune": extra(answer, ask.ignored),
    }


def chunk_body(
    ask: Ask, *, id: str, created: int, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    """One event of a streamed reply."""
    return {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": ask.model,
        "choices": [{"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}],
    }


class Deltas:
    """Raw pieces of an answer to the pieces a client is sent, whose sum is the cleaned answer.

    A marker is held back until it is whole, so that one which names no passage is never sent.
    """

    def __init__(self) -> None:
        self.sent = ""
        self._raw = ""

    def push(self, piece: str, passages: Sequence[Passage]) -> str:
        """The text that this piece settles."""
        self._raw += piece
        held = self._raw.lstrip()
        for sign, end in (("[", "]"), ("【", "】"), ("(", ")")):
            at = held.rfind(sign)
            if at >= 0 and end not in held[at:] and len(held) - at < 40:
                held = held[:at]
        clean = parse_citations(held, passages).text.rstrip()
        return self._send(clean)

    def end(self, text: str) -> str:
        """The rest, once the answer is known."""
        return self._send(text)

    def _send(self, clean: str) -> str:
        if not clean.startswith(self.sent):
            return ""
        fresh = clean[len(self.sent) :]
        self.sent = clean
        return fresh
