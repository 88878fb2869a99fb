"""One question under way: a thread works, the page follows at its own pace.

The worker reports every change of a reply; `follow` hands them on a bounded number of times per second and keeps time
meanwhile, so that a page stays alive while a model is silent, and a press of Stop shows at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TypeAlias

from apps.views import Exchange, Reply
from rag.types import Turn

UPDATES_PER_SECOND = 10

Change: TypeAlias = Callable[[Reply], Reply]
Report: TypeAlias = Callable[[int, Change], None]
"""report(which reply, what happened to it)."""


def follow(
    view: Exchange, work: Callable[[Report], None], stop: threading.Event, *, limit: float
) -> Generator[Exchange, None, None]:
    """The states of `view` while `work` runs in a thread, at most UPDATES_PER_SECOND; in the last one nothing runs.

    Ends when the work ends, when `stop` is set, or after `limit` seconds. `stop` is set in any case at the end, also
    when the iterator is closed, and the worker must heed it.
    """
    changes: queue.SimpleQueue[tuple[int, Change] | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(lambda i, change: changes.put((i, change)))
        finally:
            changes.put(None)

    began = time.monotonic()
    shown = view
    yield view
    threading.Thread(target=run, name="ragtune-ask", daemon=True).start()
    try:
        ended = False
        while not ended:
            view, ended = _collect(view, changes, time.monotonic() + 1 / UPDATES_PER_SECOND)
            seconds = time.monotonic() - began
            if stop.is_set():
                view, ended = _end(view, "stopped"), True
            elif seconds > limit:
                view, ended = _end(view, "failed", f"This took longer than {limit:.0f} seconds and was ended."), True
            elif ended:
                view = _end(view, "failed", "The model ended without an answer. Ask again.")
            view = _timed(view, seconds)
            if ended or view != shown:
                shown = view
                yield view
    finally:
        stop.set()


def _collect(
    view: Exchange, changes: queue.SimpleQueue[tuple[int, Change] | None], until: float
) -> tuple[Exchange, bool]:
    """`view` with the changes that arrive before `until` (monotonic seconds), and whether the worker has ended."""
    replies = list(view.replies)
    ended = False
    while not ended:
        try:
            item = changes.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if item is None:
            ended = True
        else:
            replies[item[0]] = item[1](replies[item[0]])
    return replace(view, replies=tuple(replies)), ended


def _end(view: Exchange, status: str, note: str = "") -> Exchange:
    """`view` with nothing running any more."""
    return replace(view, replies=tuple(_closed(r, status, note) for r in view.replies))


def _closed(reply: Reply, status: str, note: str) -> Reply:
    return replace(reply, status=status, note=note) if reply.running else reply  # type: ignore[arg-type]


def _timed(view: Exchange, seconds: float) -> Exchange:
    """Whole seconds on the replies that run, so that a view changes once a second while nothing else happens."""
    whole = float(int(seconds))
    return replace(view, replies=tuple(replace(r, seconds=whole) if r.running else r for r in view.replies))


def history(past: Sequence[Exchange], arm: str, most: int) -> tuple[Turn, ...]:
    """The last `most` exchanges as `arm` knows them: its own reply where it gave one, otherwise the first given one."""
    turns = []
    for view in past:
        finished = [r for r in view.replies if r.answer is not None]
        mine = next((r for r in finished if r.arm == arm), finished[0] if finished else None)
        if mine is not None and mine.answer is not None:
            turns.append(Turn(view.question, mine.answer.text))
    return tuple(turns[-most:]) if most else ()
