"""What the server counts, in Prometheus' text form, and the gate that bounds how much it takes on at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rag.errors import ConfigError

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histograms, in seconds."""

_HELP = {
    "ragtune_requests_total": "HTTP requests by route and status.",
    "ragtune_answers_total": "Answers by arm and outcome.",
    "ragtune_tokens_total": "Tokens read (in) and written (out).",
    "ragtune_refused_total": "Questions refused because the queue was full.",
    "ragtune_logins_total": "Logins by outcome.",
    "ragtune_first_token_seconds": "From the request to the first piece of the answer.",
    "ragtune_answer_seconds": "From the request to the end of the answer.",
}


class Metrics:
    """Counters and histograms; safe to use from many threads. Labels hold no text of people or documents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._times: dict[str, list[float]] = {}
        self.started = time.time()

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            key = name, tuple(sorted(labels.items()))
            self._counts[key] = self._counts.get(key, 0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Add a time to a histogram."""
        with self._lock:
            row = self._times.setdefault(name, [0.0] * (len(BUCKETS) + 2))
            for i, bound in enumerate(BUCKETS):
                row[i] += seconds <= bound
            row[-2] += seconds
            row[-1] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it in the text format, version 0.0.4; `gauges` are values of this moment."""
        lines: list[str] = []
        with self._lock:
            for name in sorted({key for key, _ in self._counts}):
                lines += [f"# HELP {name} {_HELP.get(name, name)}", f"# TYPE {name} counter"]
                for (key, labels), value in sorted(self._counts.items()):
                    if key == name:
                        inner = ",".join(f'{k}="{_escape(v)}"' for k, v in labels)
                        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
            for name, row in sorted(self._times.items()):
                lines += [f"# HELP {name} {_HELP.get(name, name)}", f"# TYPE {name} histogram"]
                lines += [f'{name}_bucket{{le="{b:g}"}} {n:g}' for b, n in zip(BUCKETS, row, strict=False)]
                lines += [f'{name}_bucket{{le="+Inf"}} {row[-1]:g}', f"{name}_sum {row[-2]:.6f}"]
                lines.append(f"{name}_count {row[-1]:g}")
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Full(Exception):
    """The queue is full; `retry_after` is about how many seconds until there is room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server is busy: its queue is full. Try again in {retry_after} seconds.")
        self.retry_after = retry_after


@dataclass(slots=True)
class _Place:
    """A place in the gate."""

    inside: bool = False


class Gate:
    """At most `running` answers at once and `waiting` in line, first come first served; the next one is refused."""

    def __init__(self, running: int = 1, waiting: int = 64) -> None:
        if running < 1 or waiting < 0:
            raise ConfigError(f"A gate for {running} running and {waiting} waiting answers cannot be; give 1 and 0 up.")
        self.running, self.waiting = running, waiting
        self._changed = threading.Condition()
        self._line: list[_Place] = []
        self._inside = 0
        self._seconds = 5.0  # of an answer; follows what is seen

    @property
    def load(self) -> tuple[int, int]:
        """Answers that run and that wait."""
        return self._inside, len(self._line)

    def widen(self, running: int) -> None:
        """Let this many run at once from now on."""
        with self._changed:
            self.running = running
            self._changed.notify_all()

    @contextmanager
    def place(
        self, left: Callable[[], bool] = lambda: False, *, waits: Callable[[], None] = lambda: None
    ) -> Iterator[bool]:
        """A place for one answer: True when its turn has come, False when `left()` became true before.

        `waits` is called once where it has to wait. Raises Full at once when the line is full.
        """
        place = _Place()
        with self._changed:
            if self._inside >= self.running and len(self._line) >= self.waiting:
                rounds = (len(self._line) + self._inside) / self.running
                raise Full(max(1, min(600, round(rounds * self._seconds))))
            self._line.append(place)
            if self._inside >= self.running or len(self._line) > 1:
                waits()
            while not (self._line[0] is place and self._inside < self.running) and not left():
                self._changed.wait(0.1)
            self._line.remove(place)
            place.inside = not left()
            self._inside += place.inside
            self._changed.notify_all()
        began = time.monotonic()
        try:
            yield place.inside
        finally:
            if place.inside:
                with self._changed:
                    self._inside -= 1
                    self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
                    self._changed.notify_all()
