"""What the server must know of the pages that are open in browsers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

TWICE_SECONDS = 1.0
"""The same question from the same page this soon is a second press of the key, not a second question."""
MOST_PAGES = 10_000
"""So many pages are remembered; those opened before them are taken for closed."""


class Pages:
    """Which conversation each page shows, and which question it sent within the last second."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], float] = {}
        self._shown: dict[str, str] = {}

    def twice(self, page: str, question: str) -> bool:
        """Whether this page has just sent the same question; remembers that it has."""
        now = time.monotonic()
        for key in [key for key, at in list(self._at.items()) if now - at > TWICE_SECONDS]:
            self._at.pop(key, None)
        return self._at.setdefault((page, question), now) is not now

    def turn(self, page: str, talk: str) -> None:
        """The page shows this conversation from now on; "" is a new one."""
        self._shown.pop(page, None)
        self._shown[page] = talk
        for old in list(self._shown)[:-MOST_PAGES]:
            self._shown.pop(old, None)

    def while_shown(self, page: str, talk: str, updates: Iterator[T], nothing: T) -> Iterator[T]:
        """`updates` as long as the page shows `talk`, then `nothing`: an answer that goes on is not written into the
        conversation that was opened meanwhile. When an iterator ends, Gradio sends its last update once more."""
        for update in updates:
            if self._shown.get(page) != talk:
                break
            yield update
        yield nothing
