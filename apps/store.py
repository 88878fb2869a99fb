"""Conversations and ratings on disk: one SQLite file beside the index, every row owned by a user.

    manuals/                  the index
    manuals.chat.sqlite3      what was asked and answered, and how it was rated (this module)

Write-ahead log, so that a reader never waits; every change is one transaction, flushed before it is reported as done.
An answer is saved while it grows: what a killed server had written so far is found again. A file that is locked or a
disk that is full makes a StoreError with the reason, and leaves what was there before.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.views import Exchange, Reply
from rag.errors import StoreError, UsageError
from rag.types import Answer, Citation, Step, passage_from_dict, to_dict

FORMAT = 1
ANYONE = "local"
"""The user of a page without a login."""
MAX_TITLE = 120
BUSY_SECONDS = 5.0
INTERRUPTED = "The server ended while this was being written."

_TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, title TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL);
CREATE INDEX IF NOT EXISTS conversations_of ON conversations (user, changed);
CREATE TABLE IF NOT EXISTS turns (
  conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE, position INTEGER NOT NULL,
  running INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (conversation, position));
CREATE TABLE IF NOT EXISTS feedback (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, conversation TEXT NOT NULL, position INTEGER NOT NULL, arm TEXT NOT NULL,
  kind TEXT NOT NULL, time REAL NOT NULL, content TEXT NOT NULL, UNIQUE (user, conversation, position, arm, kind));
"""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of the list of conversations; times are seconds since the epoch, `turns` how many questions it has."""

    id: str
    title: str
    created: float
    changed: float
    turns: int


class Store:
    """The conversations of all users of one index; safe to use from many threads and processes.

    Every method raises StoreError when the file cannot be read or written, and UsageError when a conversation is not
    (or no longer) this user's.
    """

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA foreign_keys = ON")
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > FORMAT:
                raise StoreError(f"{path} has format {found}; this version reads up to {FORMAT}: upgrade ragtune.")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if found < FORMAT:
                self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")

    @classmethod
    def beside(cls, index: Path) -> Store:
        """The store of an index folder."""
        place = index.resolve()
        return cls(place.with_name(place.name + ".chat.sqlite3"))

    def close(self) -> None:
        """Release the file; the object cannot be used afterwards."""
        with self._lock:
            self._db.close()

    # ---------------------------------------------------------------- transactions

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on disk when the block ends, or none of it."""
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of one query."""
        with self._lock, self._explained():
            return self._db.execute(query, tuple(values)).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(_sentence(self.path, error)) from error
        except OSError as error:
            raise StoreError(f"{self.path} cannot be opened: {error.strerror or error}.") from error

    # --------------------------------------------------------------- conversations

    def conversations(self, user: str = ANYONE, containing: str = "") -> list[Conversation]:
        """The conversations of a user, the one changed last first; with `containing`, those with it in the title."""
        rows = self.read(
            "SELECT c.id, c.title, c.created, c.changed, count(t.position) FROM conversations c "
            "LEFT JOIN turns t ON t.conversation = c.id WHERE c.user = ? GROUP BY c.id ORDER BY c.changed DESC, c.id",
            (user,),
        )
        wanted = containing.strip().casefold()
        return [Conversation(*row) for row in rows if wanted in str(row[1]).casefold()]

    def create(self, user: str = ANYONE, title: str = "") -> Conversation:
        """A new, empty conversation."""
        now = time.time()
        made = Conversation(uuid.uuid4().hex, clean_title(title), now, now, 0)
        with self.write() as db:
            db.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?)", (made.id, user, made.title, now, now))
        return made

    def get(self, conversation: str, user: str = ANYONE) -> Conversation:
        """One conversation. UsageError when there is none of this id for this user."""
        rows = self.read(
            "SELECT id, title, created, changed, (SELECT count(*) FROM turns WHERE conversation = c.id) "
            "FROM conversations c WHERE id = ? AND user = ?",
            (conversation, user),
        )
        if not rows:
            raise UsageError("This conversation is not here any more: it was deleted. Begin a new one.")
        return Conversation(*rows[0])

    def rename(self, conversation: str, title: str, user: str = ANYONE) -> Conversation:
        """Give a conversation another title. UsageError for an empty one."""
        if not clean_title(title):
            raise UsageError("The title is empty. Type a few words.")
        found = self.get(conversation, user)
        with self.write() as db:
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", (clean_title(title), conversation))
        return replace(found, title=clean_title(title))

    def delete(self, conversation: str, user: str = ANYONE) -> None:
        """Remove a conversation and its turns. Ratings given in it stay; `apps.feedback` removes those."""
        self.get(conversation, user)
        with self.write() as db:
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation,))

    # ----------------------------------------------------------------------- turns

    def exchanges(self, conversation: str, user: str = ANYONE) -> tuple[Exchange, ...]:
        """All turns of a conversation, in order."""
        self.get(conversation, user)
        rows = self.read("SELECT content FROM turns WHERE conversation = ? ORDER BY position", (conversation,))
        return tuple(exchange_from_dict(json.loads(row[0])) for row in rows)

    def save(self, conversation: str, position: int, view: Exchange, user: str = ANYONE) -> None:
        """Write turn number `position` (from 0) as it stands now; the first question names an untitled conversation."""
        content = json.dumps(to_dict(view), ensure_ascii=False)
        with self.write() as db:
            owned = db.execute(
                "UPDATE conversations SET changed = ?, title = CASE title WHEN '' THEN ? ELSE title END "
                "WHERE id = ? AND user = ?",
                (time.time(), clean_title(view.question), conversation, user),
            ).rowcount
            if not owned:
                raise UsageError("This conversation was deleted while its answer was written.")
            db.execute(
                "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?)", (conversation, position, view.running, content)
            )

    def cut(self, conversation: str, position: int, user: str = ANYONE) -> None:
        """Forget the turns from `position` on: before a question is asked again, or edited."""
        self.get(conversation, user)
        with self.write() as db:
            db.execute("DELETE FROM turns WHERE conversation = ? AND position >= ?", (conversation, position))

    def recover(self) -> int:
        """At the start of a server: what was being written when the last one ended is marked as stopped; how many."""
        rows = self.read("SELECT conversation, position, content FROM turns WHERE running = 1")
        for conversation, position, content in rows:
            view = exchange_from_dict(json.loads(content))
            replies = [replace(r, status="stopped", note=INTERRUPTED) if r.running else r for r in view.replies]
            ended = json.dumps(to_dict(replace(view, replies=tuple(replies))), ensure_ascii=False)
            with self.write() as db:
                db.execute(
                    "UPDATE turns SET running = 0, content = ? WHERE conversation = ? AND position = ?",
                    (ended, conversation, position),
                )
        return len(rows)

    def forget_source(self, source: str) -> int:
        """After a document was deleted: its text goes from stored passages, quotes and ratings; how many rows changed.

        The answers stay, with the name of the document they came from.
        """
        changed = 0
        for table, key in (("turns", "conversation || ':' || position"), ("feedback", "id")):
            for name, content in self.read(f"SELECT {key}, content FROM {table}"):
                value = json.loads(content)
                if _blank(value, source):
                    with self.write() as db:
                        text = json.dumps(value, ensure_ascii=False)
                        db.execute(f"UPDATE {table} SET content = ? WHERE {key} = ?", (text, name))
                    changed += 1
        return changed

    # ---------------------------------------------------------------------- export

    def export_json(self, conversation: str, user: str = ANYONE) -> str:
        """A conversation as one JSON object: title, times, and each turn with passages, citations and scores."""
        found = self.get(conversation, user)
        turns = [to_dict(view) for view in self.exchanges(conversation, user)]
        return json.dumps({**to_dict(found), "turns": turns}, ensure_ascii=False, indent=1) + "\n"

    def export_markdown(self, conversation: str, user: str = ANYONE) -> str:
        """A conversation as Markdown: questions as headings, answers with the arm that gave them, sources below."""
        found = self.get(conversation, user)
        lines = [f"# {found.title or 'Conversation'}", ""]
        for view in self.exchanges(conversation, user):
            lines += [f"## {' '.join(view.question.split())}", ""]
            for reply in view.replies:
                lines += _reply_lines(reply)
        return "\n".join(lines).rstrip() + "\n"


def clean_title(text: str) -> str:
    """A title of one line, at most MAX_TITLE characters."""
    plain = " ".join(text.split())
    return plain if len(plain) <= MAX_TITLE else plain[: MAX_TITLE - 1] + "…"


def exchange_from_dict(data: Mapping[str, Any]) -> Exchange:
    """The inverse of `to_dict` for a turn; fields that this version does not know are left out."""
    return Exchange(str(data["id"]), str(data["question"]), tuple(_reply(r) for r in data["replies"]))


def _reply(data: Mapping[str, Any]) -> Reply:
    known = {k: v for k, v in data.items() if k in Reply.__dataclass_fields__}
    known["passages"] = tuple(passage_from_dict(p) for p in data.get("passages", ()))
    known["steps"] = tuple(Step(**s) for s in data.get("steps", ()))
    known["answer"] = answer_from_dict(data["answer"]) if data.get("answer") else None
    return Reply(**known)


def answer_from_dict(data: Mapping[str, Any]) -> Answer:
    """The inverse of `to_dict` for an answer."""
    known = {k: v for k, v in data.items() if k in Answer.__dataclass_fields__}
    known["citations"] = tuple(Citation(**c) for c in data.get("citations", ()))
    known["passages"] = tuple(passage_from_dict(p) for p in data.get("passages", ()))
    known["unknown_markers"] = tuple(data.get("unknown_markers", ()))
    return Answer(**known)


def _blank(value: Any, source: str) -> bool:
    """Empty `text` and `quote` of everything that names `source`, in place; whether anything was emptied."""
    changed = False
    if isinstance(value, dict):
        if value.get("source") == source:
            for name in ("text", "quote"):
                if value.get(name):
                    value[name], changed = "", True
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            changed = _blank(item, source) or changed
    return changed


def _reply_lines(reply: Reply) -> list[str]:
    answer = reply.answer
    made = ", ".join(part for part in (reply.arm, answer.model if answer else "", _stem(answer)) if part)
    text = (answer.text if answer else reply.text).strip() or reply.note or "(no answer)"
    lines = [text, "", f"*{made}{'' if answer else ': ' + reply.status}*", ""]
    for passage in answer.passages if answer else reply.passages:
        page = f", page {passage.chunk.page}" if passage.chunk.page else ""
        lines.append(f"- [{passage.rank}] {passage.chunk.source}{page}")
    if reply.cut:
        lines.append(f"- {reply.cut} more passages were found and did not fit")
    return [*lines, ""] if reply.passages else lines


def _stem(answer: Answer | None) -> str:
    return Path(answer.adapter).name if answer and answer.adapter else ""


def _sentence(path: Path, error: sqlite3.Error) -> str:
    """What SQLite says, for a person; whatever it was, the last transaction was taken back."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"{path} is in use by another program. Nothing was changed; try again in a moment."
    if "full" in text:
        return f"The disk that holds {path} is full. Nothing was saved; make room, then try again."
    if "readonly" in text or "unable to open" in text:
        return f"{path} cannot be written to ({text}). Give the server the right to write there."
    if "malformed" in text or "not a database" in text:
        return f"{path} is damaged ({text}). Move it away to begin a new one; the old one can often be read by sqlite3."
    return f"{path} failed: {text}. Nothing was saved."
