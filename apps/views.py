"""What the page shows, as frozen dataclasses: the service makes them, `render` and `panels` turn them into HTML.

    Reply × arms → Exchange          one question and what one or two arms said so far
    Voted, TalkRow                   what was voted on a reply; a stored conversation in the list
    ModelState, ArmChoice            what answers, and what could
    DocumentRow, ChunkRow, Upload, SearchColumn, DecisionView   the other tabs

Nothing here knows Gradio or a model; a `Reply` is a fold over the events of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rag.types import Answer, Event, Finished, Passage, Retrieved, Searching, Step, Token

ReplyStatus = Literal["waiting", "loading", "searching", "reading", "writing", "done", "stopped", "failed"]
RUNNING: frozenset[str] = frozenset({"waiting", "loading", "searching", "reading", "writing"})
USES_DOCUMENTS = frozenset({"rag", "tuned+rag"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What one arm has said so far. `note` says why it waits or failed; `seconds` are those since the question."""

    arm: str
    status: ReplyStatus = "waiting"
    note: str = ""
    query: str = ""
    chunks: int = 0
    passages: tuple[Passage, ...] = ()
    cut: int = 0
    text: str = ""
    answer: Answer | None = None
    seconds: float = 0.0
    steps: tuple[Step, ...] = ()

    @property
    def running(self) -> bool:
        return self.status in RUNNING

    def after(self, event: Event) -> Reply:
        """This reply one event later."""
        if isinstance(event, Searching):
            return replace(self, status="searching", note="", query=event.query, chunks=event.chunks)
        if isinstance(event, Retrieved):
            return replace(self, status="reading", note="", passages=event.passages, cut=event.cut)
        if isinstance(event, Step):
            return replace(self, note=event.text, steps=(*self.steps, event))
        if isinstance(event, Token):
            return replace(self, status="writing", note="", text=self.text + event.text)
        if isinstance(event, Finished):
            answer = event.answer
            return replace(
                self, status="done", note="", answer=answer, text=answer.text, passages=answer.passages, cut=answer.cut
            )
        raise TypeError(f"not an event of a run: {event!r}")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and the replies of one or two arms. `id` is safe in an HTML id: letters, digits and hyphens."""

    id: str
    question: str
    replies: tuple[Reply, ...]

    @property
    def running(self) -> bool:
        return any(reply.running for reply in self.replies)


@dataclass(frozen=True, slots=True)
class Voted:
    """What a person said about a reply: up, down (`up` False) or nothing yet; why; what would have been right; and
    whether it was preferred to the one beside it."""

    up: bool | None = None
    reasons: tuple[str, ...] = ()
    correction: str = ""
    preferred: bool = False


@dataclass(frozen=True, slots=True)
class TalkRow:
    """A stored conversation in the list. `updated` is seconds since the epoch; `running` while it is being answered."""

    id: str
    title: str
    updated: float = 0.0
    turns: int = 0
    running: bool = False


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether questions can be answered yet. `generator` and `encoder` are names to show."""

    phase: Literal["waiting", "loading", "ready", "failed"]
    message: str
    generator: str = ""
    encoder: str = ""


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """An arm of the picker; `reason` says why it is chosen (auto) or why it cannot be (not available)."""

    arm: str
    label: str
    available: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """One document of the index as the table shows it."""

    source: str
    title: str
    pages: int
    chunks: int
    uploaded: bool = False


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk of a document, as retrieval sees it: [start, end) of its text, page and heading path."""

    number: int
    start: int
    end: int
    page: int | None
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file on its way into the index. `source` is its name there; `note` is the verdict as a sentence.

    While it is worked on, `stage` says what is done and `share` in [0, 1] how much of it."""

    name: str
    source: str = ""
    status: Literal["queued", "working", "indexed", "unchanged", "failed"] = "queued"
    note: str = ""
    stage: str = ""
    share: float = 0.0
    pages: int = 0
    chunks: int = 0

    @property
    def finished(self) -> bool:
        return self.status in ("indexed", "unchanged", "failed")


@dataclass(frozen=True, slots=True)
class SearchColumn:
    """What one stage of retrieval finds for a query; `note` says why it is empty."""

    stage: Literal["dense", "lexical", "fused", "rerank"]
    passages: tuple[Passage, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class OpenDocument:
    """A document's text around a span. `offset` is where `text` begins in it; `total` is the length of the whole."""

    source: str
    text: str
    offset: int
    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class DecisionView:
    """A decision as read from its run folder: `data` is decision.json, `report` is report.html ("" if absent),
    `path` the folder itself."""

    data: Mapping[str, Any]
    folder: str
    report: str = ""
    path: str = ""
