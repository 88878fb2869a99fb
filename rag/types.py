"""What flows through the product, one frozen dataclass per stage; no third-party import.

    Document → Chunk → Passage → Answer          the stages
    Question, Evidence                            what is asked, and what is known about the answer
    Event = Searching | Retrieved | Step | Token | Finished     one run, as a stream
    Trace                                         one run, as one JSON line

Offsets are Python string offsets (code points) into `Document.text`, end exclusive, everywhere.
A score belongs to a (query, chunk) pair, so it sits on `Passage`, never on `Chunk`. Higher is better, for every score.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

ARMS = ("base", "rag", "tuned", "tuned+rag")
MODE_ARMS = ("self-rag", "ra-dit", "replug", "rag-token", "rag-sequence", "iterative", "flare", "agent")
"""Arms that answer in a way of their own, by a mode (`rag.modes`); measured where they are asked for."""
ALL_ARMS = (*ARMS, *MODE_ARMS)


def content_hash(*parts: str | bytes) -> str:
    """Hex digest (32 characters) of the parts, each preceded by its length so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(str(len(data)).encode() + b":")
        digest.update(data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading that stands at `start` in the text of its document; `level` 1 is the highest."""

    start: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One readable unit of a file: its text and where pages and headings begin in it.

    `source` is the path relative to the indexed root, with "/" on every system. `page_starts[i]` is the offset at which
    page i+1 begins; empty for formats without pages. `warnings` are sentences about what was lost while reading.
    """

    id: str
    source: str
    text: str
    title: str = ""
    page_starts: tuple[int, ...] = ()
    headings: tuple[Heading, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A contiguous piece of a document: `document.text[start:end] == text`. Pages count from 1; None without pages."""

    id: str
    document_id: str
    source: str
    start: int
    end: int
    text: str
    page: int | None = None
    headings: tuple[str, ...] = ()

    @property
    def embedded_text(self) -> str:
        """What the encoder and the lexical index see: the heading path, then the text. Never shown to a person."""
        return " › ".join(self.headings) + "\n" + self.text if self.headings else self.text


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one (query, chunk) pair by stage; None where a stage did not see the chunk."""

    dense: float | None = None
    lexical: float | None = None
    fused: float | None = None
    rerank: float | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as found for one query. `rank` counts from 1; `score` is that of the last stage that ran."""

    chunk: Chunk
    rank: int
    score: float
    scores: Scores = Scores()


@dataclass(frozen=True, slots=True)
class Citation:
    """A marker of an answer, carried to a span of a source: `document.text[start:end] == quote`.

    `number` is the passage number shown in the answer (`[2]`); `support` in [0, 1] is the share of the cited sentence's
    content words that stand in the quote.
    """

    number: int
    chunk_id: str
    source: str
    page: int | None
    start: int
    end: int
    quote: str
    support: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What one arm said to one question.

    `passages` are those the model saw, in rank order; `cut` counts retrieved ones that did not fit the token budget.
    `unknown_markers` are citation numbers that named no passage of this turn: dropped from the text, and counted.
    `details` are plain JSON values that the arm's mode adds (judgements of segments, steps of an agent, costs).
    """

    question: str
    text: str
    arm: str
    abstained: bool = False
    citations: tuple[Citation, ...] = ()
    passages: tuple[Passage, ...] = ()
    cut: int = 0
    unknown_markers: tuple[int, ...] = ()
    query: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    model: str = ""
    adapter: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where an answer stands: a source path relative to the indexed root, and words quoted from it."""

    source: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its known answers; `answers` is empty iff `unanswerable` (or for retrieval-only sets)."""

    id: str
    question: str
    answers: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    unanswerable: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier exchange of a conversation."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Searching:
    """Retrieval has begun. `query` is what is searched, after joining a follow-up question with what it is about."""

    query: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Retrieval has ended; `seconds` is its time."""

    passages: tuple[Passage, ...]
    cut: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of a mode on its way to the answer: a judgement, a thought, an action, an observation.

    `kind` is one word ("judge", "thought", "action", "observation", ...), `text` a line for a person, `data` plain JSON
    values for the trace, `seconds` the time of this step alone.
    """

    kind: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer as it is generated; the pieces joined are the raw text before citation clean-up."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended; always the last event of a run that was not interrupted."""

    answer: Answer


Event: TypeAlias = Searching | Retrieved | Step | Token | Finished


@dataclass(frozen=True, slots=True)
class Trace:
    """One run as it is stored: one schema from chat, agent and evaluation. `time` is seconds since the epoch, UTC."""

    id: str
    time: float
    arm: str
    answer: Answer
    history: tuple[Turn, ...] = ()
    events: tuple[Mapping[str, Any], ...] = field(default=())


def to_dict(value: Any) -> Any:
    """A dataclass of this module as plain JSON values (tuples become lists)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_dict(v) for v in value]
    return value


def to_json(value: Any) -> str:
    """One JSON line of a dataclass of this module."""
    return json.dumps(to_dict(value), ensure_ascii=False)


def passage_from_dict(data: Mapping[str, Any]) -> Passage:
    """The inverse of `to_dict` for a passage (frozen retrievals are stored this way)."""
    chunk = dict(data["chunk"])
    chunk["headings"] = tuple(chunk.get("headings", ()))
    return Passage(Chunk(**chunk), int(data["rank"]), float(data["score"]), Scores(**data.get("scores", {})))
