"""Conversations under way: each answer belongs to the server, not to the tab that asked.

A run works in a thread, keeps its newest state, and saves it as it grows; any number of tabs may watch it, leave, and
come back. What stands on disk is `apps.store`; what was voted is `apps.feedback`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from apps.feedback import Feedback
from apps.store import ANYONE, Store
from apps.views import Exchange, TalkRow, Voted
from apps.watching import Watched
from rag.errors import RagtuneError, UsageError

if TYPE_CHECKING:
    from apps.service import Service

SAVE_SECONDS = 1.0
"""Between two states of a growing answer on disk: what a killed server loses at most."""
END_SECONDS = 5.0
"""What the next question of a conversation waits at most for the end of the one before: a tenth of one is usual."""


class Run(Watched[Exchange]):
    """One question being answered. `error` is why its end could not be saved, or ""; `superseded_by`: which page has
    gone on to another question of the conversation, or None."""

    def __init__(self, talk: str, position: int, first: Exchange) -> None:
        super().__init__(first)
        self.talk = talk
        self.position = position
        self.error = ""
        self.superseded_by: str | None = None


class Talks:
    """The conversations of a service. Methods raise UsageError for what is not (or no longer) the user's, StoreError
    when the disk refuses."""

    def __init__(self, service: Service, store: Store) -> None:
        self.service = service
        self.store = store
        self.feedback = Feedback(store)
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._users: dict[str, str] = {}
        store.recover()

    # --------------------------------------------------------------------- reading

    def rows(self, user: str = ANYONE) -> list[TalkRow]:
        """The list of conversations, the newest first."""
        return [
            TalkRow(c.id, c.title, c.changed, c.turns, self.running(c.id, user) is not None)
            for c in self.store.conversations(user)
        ]

    def exchanges(self, talk: str, user: str = ANYONE) -> tuple[Exchange, ...]:
        """All turns of a conversation, that under way in its newest state; () for a new one."""
        if not talk:
            return ()
        found = list(self.store.exchanges(talk, user))
        run = self.running(talk, user)
        if run is not None:
            found[run.position :] = [run.state]
        return tuple(found)

    def exists(self, talk: str, user: str = ANYONE) -> bool:
        """Whether this user has such a conversation."""
        with suppress(UsageError):
            return bool(talk) and self.store.get(talk, user).id == talk
        return False

    def running(self, talk: str, user: str = ANYONE) -> Run | None:
        """What is being answered in a conversation, to be watched again."""
        run = self._runs.get(talk)
        return run if run is not None and not run.over and self._users.get(talk) == user else None

    def votes(self, talk: str, user: str = ANYONE) -> Mapping[tuple[str, str], Voted]:
        """What was voted in a conversation, by (exchange id, arm)."""
        if not talk:
            return {}
        said = {(v.id, r.arm): r.answer.text for v in self.exchanges(talk, user) for r in v.replies if r.answer}
        found: dict[tuple[str, str], Voted] = {}
        for vote in self.feedback.ratings(user=user, conversation=talk):
            key = (f"t{vote.position + 1}", vote.shown.arm)
            if said.get(key) == vote.shown.answer:  # an answer that was given again is another one
                found[key] = Voted(vote.good, vote.reasons, vote.correction)
        for choice in self.feedback.choices(user=user, conversation=talk):
            key = (f"t{choice.position + 1}", choice.chosen.arm)
            if said.get(key) == choice.chosen.answer:
                found[key] = replace(found.get(key, Voted()), preferred=True)
        return found

    # ---------------------------------------------------------------------- asking

    def ask(
        self,
        question: str,
        arms: Sequence[str],
        *,
        talk: str = "",
        user: str = ANYONE,
        again: bool = False,
        page: str = "",
    ) -> Run:
        """Begin to answer in a conversation ("" begins one); `again` replaces its last turn. What was being answered
        there ends first, and knows that `page` has ended it.

        Raises UsageError before anything is stored. The answer goes on without anybody watching; `stop` ends it.
        """
        with self._asking:
            past = self.exchanges(talk, user) if talk else ()
            if again:
                past = past[:-1]
            session = f"{user}/{talk}"
            views = self.service.ask(question, arms, past=past, session=session)
            if (before := self._runs.get(talk)) is not None:  # has just been told to stop
                before.superseded_by = page
                before.ended(END_SECONDS)  # so that whoever shows the conversation next shows how that one ended
            try:
                if not talk:
                    talk = self.store.create(user).id
                    self.service.rename_session(session, f"{user}/{talk}")
                elif again:
                    self.store.cut(talk, len(past), user)
                first = next(views)
                self.store.save(talk, len(past), first, user)
            except BaseException:
                views.close()
                raise
            run = Run(talk, len(past), first)
            with self._lock:
                self._runs[talk], self._users[talk] = run, user
        threading.Thread(target=self._work, args=(run, views, user), name="ragtune-talk", daemon=True).start()
        return run

    def newer(self, run: Run, user: str = ANYONE) -> Run | None:
        """What the conversation of a superseded run went on to, if that is being answered."""
        with self._asking:  # between the end of the one and the beginning of the other
            return self.running(run.talk, user)

    def _work(self, run: Run, views: Iterator[Exchange], user: str) -> None:
        """Follow an answer to its end; save it when passages are found, now and then, and at the end in any case."""
        saved, found = time.monotonic(), [0]
        view = run.state
        try:
            for view in views:
                if not view.running:
                    break
                run.publish(view)
                more = [len(reply.passages) for reply in view.replies]
                if more != found or time.monotonic() - saved > SAVE_SECONDS:
                    saved, found = time.monotonic(), more
                    with suppress(RagtuneError):  # the last one is what must not fail unnoticed
                        self._save(run, view, user)
        finally:
            try:
                self._save(run, view, user)
            except RagtuneError as error:
                run.error = f"The answer is not saved: {error}"
            with self._lock:
                if self._runs.get(run.talk) is run:
                    del self._runs[run.talk]
            run.publish(view, over=True)

    def _save(self, run: Run, view: Exchange, user: str) -> None:
        """Write the state of a run, unless its question was asked again meanwhile."""
        newest = self._runs.get(run.talk)
        if newest is None or newest is run or newest.position > run.position:
            self.store.save(run.talk, run.position, view, user)

    def stop(self, talk: str, user: str = ANYONE) -> None:
        """End what is being answered in a conversation; what was written so far stays."""
        self.service.stop(f"{user}/{talk}")

    # -------------------------------------------------------------------- changing

    def delete(self, talk: str, user: str = ANYONE) -> None:
        """Remove a conversation; what was voted in it stays for tuning."""
        self.stop(talk, user)
        self.store.delete(talk, user)

    def vote(
        self, talk: str, turn: str, arm: str, good: bool, *, reasons: Sequence[str] = (), correction: str = "",
        user: str = ANYONE,
    ) -> None:  # fmt: skip
        """Rate a reply; the same thumb again takes it back."""
        before = self.votes(talk, user).get((turn, arm))
        if before is not None and before.up is good and not reasons and not correction.strip():
            self.feedback.unrate(talk, position(turn), arm, user=user)
        else:
            self.feedback.rate(talk, position(turn), arm, good, reasons=reasons, correction=correction, user=user)

    def prefer(self, talk: str, turn: str, arm: str, user: str = ANYONE) -> None:
        """Say that of two replies that of `arm` is the better one."""
        self.feedback.choose(talk, position(turn), arm, user=user)


def position(turn: str) -> int:
    """The place of an exchange in its conversation, from 0, by its id. UsageError for what is no id."""
    if not (turn.startswith("t") and turn[1:].isdecimal() and int(turn[1:]) > 0):
        raise UsageError("This answer is not here any more; reload the page.")
    return int(turn[1:]) - 1
