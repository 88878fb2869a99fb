"""What Self-RAG's decoding works on: its settings, a question under way, an output so far, and one more segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rag.errors import ConfigError
from rag.reflection import Judgement, Weights, escape, sequence_probability
from rag.types import Chunk, Passage, Step

RESERVE = 4  # tokens behind a segment: relevance, support, utility, and one to spare
LEAST = 24  # with less room than this for a passage, an output is ended


@dataclass(frozen=True, slots=True)
class SelfRagConfig:
    """How self-rag answers; names and values of the paper.

    k: passages tried side by side. delta: retrieve where r > delta (0: always, 1: never, None: the likeliest token).
    beam: segments kept at each depth. depth: most segments of an answer. segment_tokens: most tokens of one (0: as the
    answers' `max_new_tokens`). passage_tokens: a longer passage is cut. hard: drop what is not supported, before scores
    count. options: the answers that are allowed (a closed set); their scores are added over passages.
    """

    k: int = 5
    delta: float | None = 0.2
    beam: int = 2
    depth: int = 3
    segment_tokens: int = 0
    passage_tokens: int = 512
    weights: Weights = field(default_factory=Weights)
    hard: bool = False
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("beam", 1), ("depth", 1), ("segment_tokens", 0), ("passage_tokens", LEAST)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.delta is not None and not 0 <= self.delta <= 1:
            raise ConfigError(f"delta is {self.delta}; it must be between 0 (always retrieve) and 1 (never).")


def passage_text(chunk: Chunk) -> str:
    """What stands between the tags: the heading path and a line break (where there is one), then the text; escaped."""
    title = " › ".join(chunk.headings)
    return escape(f"{title}\n{chunk.text}" if title else chunk.text)


def reminder(question: str) -> str:
    """The question once more, at the end of each passage, in training and in serving; escaped.

    The stream has it before its passages, so that it is computed once; a small model does not look back that far.
    """
    return f"\nQuestion: {escape(question)}" if question else ""


@dataclass(eq=False, slots=True)
class Candidate:
    """One segment under way in its own row: what was read about it so far."""

    beam: Beam
    retrieve: str
    passage: Passage | None
    row: int = -1
    opening: list[int] = field(default_factory=list)
    phase: str = "text"
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    relevant: dict[str, float] = field(default_factory=dict)
    supported: dict[str, float] = field(default_factory=dict)
    useful: dict[str, float] = field(default_factory=dict)
    next: dict[str, float] = field(default_factory=dict)
    irrelevant: bool = False
    support: str | None = None
    ended: bool = False
    text: str = ""
    own: float = 0.0
    score: float = 0.0

    def judgement(self, last: bool) -> Judgement:
        """Usefulness belongs to the end of an output: it counts where that is here."""
        useful = self.useful if self.ended or last else {}
        return Judgement(self.relevant, self.supported, useful, sequence_probability(self.logprobs), self.support)


@dataclass(eq=False, slots=True)
class Beam:
    """An output so far: its segments, their summed score, and what it would do next."""

    run: int
    said: tuple[Candidate, ...] = ()
    score: float = 0.0
    next: dict[str, float] = field(default_factory=dict)
    row: int = -1
    ended: bool = False

    @property
    def has_passage(self) -> bool:
        return any(candidate.passage is not None for candidate in self.said)


@dataclass(eq=False, slots=True)
class Run:
    """One question: its prompt, where its passages come from, and what came of it.

    `find(previous segment)` gives passages, best first, numbered across the whole run. `tried` are all candidates.
    `question` is said again after each passage.
    """

    prompt: list[int]
    find: Callable[[str], Sequence[Passage]]
    question: str = ""
    beams: list[Beam] = field(default_factory=list)
    tried: list[Candidate] = field(default_factory=list)
    ratio: float | None = None
    retrieved: bool = False
    fed: int = 0


def likeliest(p: Mapping[str, float]) -> str:
    """The token with the largest probability."""
    return max(p, key=lambda token: p[token])


def judged(candidate: Candidate, kept: Sequence[Beam], last: bool) -> Step:
    """What is told about a candidate: its chips, its score, and whether it was kept."""
    judgement = candidate.judgement(last)
    stays = any(candidate in beam.said for beam in kept)
    number = candidate.passage.rank if candidate.passage else None
    data = {
        "passage": number,
        "source": candidate.passage.chunk.source if candidate.passage else None,
        "retrieve": candidate.retrieve,
        "text": candidate.text,
        **judgement.chips(),
        "sequence": round(judgement.sequence, 4),
        "support": candidate.support,
        "score": round(candidate.own, 4),
        "total": round(candidate.score, 4),
        "kept": stays,
    }
    about = f"[{number}]" if number else "without passages"
    return Step("judge", f"{about}: {'kept' if stays else 'dropped'}, score {candidate.own:.2f}", data)
