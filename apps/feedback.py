"""What people said about answers, and what can be made of it.

    Rating   thumb up or down of one reply, with reasons, a note, and perhaps the answer that should have been given
    Choice   of two replies side by side, which one was better

Each keeps the question, the passages that were shown, the answer, arm, model and adapter, so that it can be trained on
without the conversation. Exports are in TRL's own forms: unpaired preference (KTO), preference pairs (DPO), and
prompt-completion rows (SFT) from corrections.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.store import ANYONE, Store
from apps.views import Exchange, Reply
from rag.errors import UsageError
from rag.types import Evidence, Passage, Question, Turn, content_hash, passage_from_dict, to_dict

if TYPE_CHECKING:
    from rag.prompt import Style

REASONS = ("wrong answer", "wrong source", "incomplete", "style")
MAX_NOTE = 2_000
ENOUGH = 16
"""Ratings from which tuning is offered: TRL's guide to KTO asks for at least 16 examples in an optimizer step."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One reply as it was rated: everything a training row needs."""

    question: str
    answer: str
    arm: str
    model: str = ""
    adapter: str | None = None
    passages: tuple[Passage, ...] = ()
    history: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Rating:
    """A vote on one reply; `time` is seconds since the epoch. `correction` is the answer that was wanted, or ""."""

    id: str
    user: str
    time: float
    conversation: str
    position: int
    good: bool
    shown: Shown
    reasons: tuple[str, ...] = ()
    note: str = ""
    correction: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A preference between two replies to one question."""

    id: str
    user: str
    time: float
    conversation: str
    position: int
    chosen: Shown
    rejected: Shown


@dataclass(frozen=True, slots=True)
class Counts:
    """How much feedback there is, and what it can do."""

    good: int = 0
    bad: int = 0
    corrections: int = 0
    choices: int = 0

    @property
    def ratings(self) -> int:
        return self.good + self.bad

    @property
    def examples(self) -> int:
        """Rows for preference tuning: a choice counts as two."""
        return self.ratings + 2 * self.choices

    @property
    def missing(self) -> int:
        """Ratings still needed before tuning is offered."""
        return max(0, ENOUGH - self.examples)

    @property
    def can_tune(self) -> bool:
        """Whether the recipe `preference` can be run: enough examples, and both kinds among them."""
        both = (self.good or self.choices) and (self.bad or self.choices)
        return self.missing == 0 and bool(both)

    def sentence(self) -> str:
        """What the page says beside the thumbs: "42 ratings: export them, or tune with them."."""
        if not self.examples:
            return f"No ratings yet. From {ENOUGH} on, good and bad ones, the model can be tuned on them."
        parts = [
            _plural(count, word)
            for count, word in (
                (self.ratings, "rating"),
                (self.choices, "comparison"),
                (self.corrections, "correction"),
            )
            if count
        ]
        told = ", ".join(parts)
        if self.can_tune:
            return f"{told}: export them, or tune with them."
        if self.missing:
            return f"{told}: export them; {_plural(self.missing, 'more rating')} and they can tune the model."
        kind = "bad" if self.good else "good"
        return f"{told}: export them; tuning also needs {kind} ones, to have something to compare."


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


class Feedback:
    """The ratings in a store. StoreError when they cannot be saved: then nothing was, and the old vote still stands."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # ------------------------------------------------------------------- collecting

    def rate(
        self,
        conversation: str,
        position: int,
        arm: str,
        good: bool,
        *,
        reasons: Iterable[str] = (),
        note: str = "",
        correction: str = "",
        user: str = ANYONE,
    ) -> Rating:
        """Vote on the reply of `arm` in turn `position` (from 0); a second vote replaces the first.

        Raises UsageError for a reply that is not there or not finished, and for an unknown reason.
        """
        reasons = tuple(dict.fromkeys(reasons))
        unknown = [r for r in reasons if r not in REASONS]
        if unknown:
            raise UsageError(f'"{unknown[0]}" is no reason; allowed are {", ".join(REASONS)}.')
        view, past = self._turn(conversation, position, user)
        shown = shown_of(view, arm, past)
        rating = Rating(
            uuid.uuid4().hex, user, time.time(), conversation, position, good, shown, reasons, note.strip()[:MAX_NOTE],
            correction.strip()[:MAX_NOTE],
        )  # fmt: skip
        self._put(rating.id, user, conversation, position, arm, "rating", rating)
        return rating

    def unrate(self, conversation: str, position: int, arm: str, *, user: str = ANYONE) -> None:
        """Take a vote back; nothing happens where there is none."""
        with self.store.write() as db:
            db.execute(
                "DELETE FROM feedback WHERE user = ? AND conversation = ? AND position = ? AND arm = ?",
                (user, conversation, position, arm),
            )

    def choose(self, conversation: str, position: int, arm: str, *, user: str = ANYONE) -> Choice:
        """Of the two replies of a turn, that of `arm` is the better one; another choice replaces the first."""
        view, past = self._turn(conversation, position, user)
        others = [r.arm for r in view.replies if r.arm != arm]
        if len(others) != 1:
            raise UsageError("A choice needs two replies side by side; ask with “Compare with”.")
        chosen, rejected = shown_of(view, arm, past), shown_of(view, others[0], past)
        choice = Choice(uuid.uuid4().hex, user, time.time(), conversation, position, chosen, rejected)
        self._put(choice.id, user, conversation, position, "", "choice", choice)
        return choice

    def _turn(self, conversation: str, position: int, user: str) -> tuple[Exchange, tuple[Exchange, ...]]:
        views = self.store.exchanges(conversation, user)
        if not 0 <= position < len(views):
            raise UsageError(f"This conversation has {len(views)} turns; turn {position + 1} is not there any more.")
        return views[position], views[:position]

    def _put(self, key: str, user: str, talk: str, position: int, arm: str, kind: str, row: Rating | Choice) -> None:
        content = json.dumps(to_dict(row), ensure_ascii=False)
        with self.store.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, user, talk, position, arm, kind, row.time, content),
            )

    def forget(self, *, user: str | None = None, conversation: str | None = None) -> int:
        """Delete ratings and choices of a user, of a conversation, or (neither given) all; how many there were."""
        with self.store.write() as db:
            return db.execute(
                "DELETE FROM feedback WHERE (? IS NULL OR user = ?) AND (? IS NULL OR conversation = ?)",
                (user, user, conversation, conversation),
            ).rowcount

    # ---------------------------------------------------------------------- reading

    def ratings(self, *, user: str | None = None, conversation: str | None = None) -> list[Rating]:
        """Votes in the order they were given, of everybody or of one user or conversation."""
        return [_rating(row) for row in self._rows("rating", user, conversation)]

    def choices(self, *, user: str | None = None, conversation: str | None = None) -> list[Choice]:
        """Side-by-side choices in the order they were given."""
        return [_choice(row) for row in self._rows("choice", user, conversation)]

    def _rows(self, kind: str, user: str | None, conversation: str | None) -> list[dict[str, Any]]:
        rows = self.store.read(
            "SELECT content FROM feedback WHERE kind = ? AND (? IS NULL OR user = ?) "
            "AND (? IS NULL OR conversation = ?) ORDER BY time, id",
            (kind, user, user, conversation, conversation),
        )
        return [json.loads(row[0]) for row in rows]

    def counts(self, *, user: str | None = None) -> Counts:
        """How much there is; `Counts.sentence` says what it is good for."""
        votes, choices = self.ratings(user=user), self.choices(user=user)
        good = sum(v.good for v in votes)
        return Counts(good, len(votes) - good, sum(bool(v.correction) for v in votes), len(choices))

    # -------------------------------------------------------------------- exporting

    def unpaired(self, *, user: str | None = None, style: Style = "short") -> list[dict[str, Any]]:
        """TRL's unpaired preference form: {"prompt", "completion", "label"}, texts or messages as the style has them.

        Choices count as one good and one bad row, a correction as a good row beside the bad one. Replies whose passages
        were deleted since are left out.
        """
        rows: list[tuple[Shown, str, bool]] = []
        for vote in self.ratings(user=user):
            rows.append((vote.shown, vote.shown.answer, vote.good))
            if vote.correction:
                rows.append((vote.shown, vote.correction, True))
        for choice in self.choices(user=user):
            rows += [(choice.chosen, choice.chosen.answer, True), (choice.rejected, choice.rejected.answer, False)]
        return [
            {**_said(prompt_of(shown, style), completion=text), "label": label}
            for shown, text, label in rows
            if usable(shown)
        ]

    def pairs(self, *, user: str | None = None, style: Style = "short") -> list[dict[str, Any]]:
        """TRL's preference form: {"prompt", "chosen", "rejected"}, from corrections, and from choices between replies
        to the same prompt (the same passages)."""
        made = []
        for vote in self.ratings(user=user):
            if vote.correction and not vote.good and usable(vote.shown):
                made.append((vote.shown, vote.correction, vote.shown.answer))
        for choice in self.choices(user=user):
            chosen, rejected = choice.chosen, choice.rejected
            same = prompt_of(chosen, style) == prompt_of(rejected, style)
            if same and chosen.answer != rejected.answer and usable(chosen) and usable(rejected):
                made.append((chosen, chosen.answer, rejected.answer))
        return [_said(prompt_of(shown, style), chosen=good, rejected=bad) for shown, good, bad in made]

    def corrections(self, *, user: str | None = None, style: Style = "short") -> list[dict[str, Any]]:
        """TRL's prompt-completion rows: the prompt as it was, and the answer a person typed."""
        return [
            _said(prompt_of(vote.shown, style), completion=vote.correction)
            for vote in self.ratings(user=user)
            if vote.correction and usable(vote.shown)
        ]

    def questions(self, *, user: str | None = None) -> list[Question]:
        """Rated answers as questions for `ragtune tune --questions`: corrections, and answers that were found good.

        The evidence is the passage the answer stands in, where it stands in one. A question rated more than once takes
        its newest answer.
        """
        found: dict[str, Question] = {}
        for vote in self.ratings(user=user):
            answer = vote.correction or (vote.shown.answer if vote.good else "")
            if answer:
                key = content_hash(vote.shown.question.strip().casefold())[:16]
                found[key] = Question(key, vote.shown.question, (answer,), _evidence(vote.shown.passages, answer))
        return list(found.values())

    def export(self, path: Path, *, user: str | None = None, style: Style = "short") -> int:
        """Write `unpaired` as JSON lines, whole or not at all; how many rows. UsageError when there are none."""
        rows = self.unpaired(user=user, style=style)
        if not rows:
            raise UsageError("There are no ratings to export yet. Rate some answers in the chat first.")
        write_jsonl(path, rows)
        return len(rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, written aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def shown_of(view: Exchange, arm: str, past: Sequence[Exchange] = ()) -> Shown:
    """The reply of an arm as it is rated. UsageError when it has none, or none that is finished."""
    reply = next((r for r in view.replies if r.arm == arm), None)
    if reply is None or reply.answer is None:
        raise UsageError("Only a finished answer can be rated; wait for its end, or ask again.")
    return _shown_of(view.question, reply, past)


def _shown_of(question: str, reply: Reply, past: Sequence[Exchange]) -> Shown:
    from apps.asking import history
    from rag.prompt import HISTORY_TURNS

    answer = reply.answer
    assert answer is not None
    turns = history(past, reply.arm, HISTORY_TURNS)
    return Shown(question, answer.text, reply.arm, answer.model, answer.adapter, answer.passages, turns)


def usable(shown: Shown) -> bool:
    """Whether the prompt can still be made: none of its passages lost its text with a deleted document."""
    return bool(shown.answer.strip()) and all(p.chunk.text for p in shown.passages)


def prompt_of(shown: Shown, style: Style = "short") -> list[dict[str, str]]:
    """The messages of this reply as a tuned model is prompted: the passages that were shown, nothing cut."""
    from rag.answer import CLOSED_BOOK
    from rag.prompt import render

    made = render(
        shown.question,
        shown.passages,
        count_tokens=lambda text: 0,
        history=shown.history,
        style=style,
        closed_book=shown.arm in CLOSED_BOOK,
    )
    return made.messages


def _said(prompt: list[dict[str, str]], **answers: str) -> dict[str, Any]:
    """A row in TRL's form: the prompt, and what was answered under each of these names."""
    from rag.prompt import as_trl

    return {
        "prompt": as_trl(prompt, "")[0],
        **{name: as_trl(prompt, text.strip())[1] for name, text in answers.items()},
    }


def _evidence(passages: Sequence[Passage], answer: str) -> tuple[Evidence, ...]:
    plain = " ".join(answer.split()).casefold()
    for passage in passages:
        if plain in " ".join(passage.chunk.text.split()).casefold():
            return (Evidence(passage.chunk.source, answer.strip()),)
    return ()


def _shown(data: Mapping[str, Any]) -> Shown:
    known = {k: v for k, v in data.items() if k in Shown.__dataclass_fields__}
    known["passages"] = tuple(passage_from_dict(p) for p in data.get("passages", ()))
    known["history"] = tuple(Turn(**t) for t in data.get("history", ()))
    return Shown(**known)


def _rating(data: Mapping[str, Any]) -> Rating:
    known = {k: v for k, v in data.items() if k in Rating.__dataclass_fields__}
    return Rating(**{**known, "shown": _shown(data["shown"]), "reasons": tuple(data.get("reasons", ()))})


def _choice(data: Mapping[str, Any]) -> Choice:
    known = {k: v for k, v in data.items() if k in Choice.__dataclass_fields__}
    return Choice(**{**known, "chosen": _shown(data["chosen"]), "rejected": _shown(data["rejected"])})
