"""Ctrl-C while training: the step under way is finished, and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Stoppable(Protocol):
    """A trainer that looks at `stop_asked` after each step."""

    stop_asked: bool


@contextmanager
def gentle_interrupt(trainer: Stoppable) -> Iterator[None]:
    """The first Ctrl-C asks to stop after the step, a second one stops at once. Only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if trainer.stop_asked:
            raise KeyboardInterrupt
        trainer.stop_asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
