"""Work that belongs to the server, not to the tab that asked for it: one writes its newest state, any number watch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Watched(Generic[T]):
    """The newest state of some work, and whether it is over. Watchers may come, leave and come back."""

    def __init__(self, first: T) -> None:
        self._changed = threading.Condition()
        self._state = first
        self._number = 0
        self._over = False

    @property
    def state(self) -> T:
        """The newest state."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether nothing will come any more."""
        return self._over

    def publish(self, state: T, *, over: bool = False) -> None:
        """Hand a new state to all who watch; with `over` it is the last."""
        with self._changed:
            self._state, self._over, self._number = state, over, self._number + 1
            self._changed.notify_all()

    def ended(self, seconds: float) -> bool:
        """Wait until the work is over, at most so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, seconds)

    def watch(self) -> Iterator[T]:
        """The present state, then each newer one; those that come faster than they are taken are skipped. Ends with
        the work."""
        seen = -1
        while True:
            with self._changed:
                while self._number == seen and not self._over:
                    self._changed.wait(1.0)
                fresh, seen, state, over = self._number != seen, self._number, self._state, self._over
            if fresh:
                yield state
            if over:
                return
