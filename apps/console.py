"""What a person sees of a running command: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

EVERY_TTY = 0.1  # seconds between two states of a line that is rewritten in place
EVERY_LOG = 5.0  # seconds between two lines where nothing can be rewritten: alive, but short in a log
RECENT = 60.0  # seconds whose pace says how long the rest takes: a resumed job and one that slows down fool the mean


def plain(value: Any) -> Any:
    """`value` as JSON values: dataclasses, paths and numpy values are converted, NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalar or array, without importing numpy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces; the first row is the head; cells that look like numbers are set to the right."""
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(_numeric(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for cell, width, numeric in zip(row, widths, right, strict=True):
            pad = " " * (width - _width(cell))
            cells.append(pad + cell if numeric else cell + pad)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "-+–"


def _width(text: str) -> int:
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Console:
    """Where a command writes. `quiet` drops progress and remarks; with `as_json` stdout carries one JSON value."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self._clock = clock
        self._tty = bool(getattr(self.err, "isatty", lambda: False)())
        self._stage = ""
        self._finished = False
        self._began = self._written = clock()
        self._marks: list[tuple[float, int]] = []  # (time, how far) within the recent past, and the last one before it
        self._open = 0  # width of the unfinished line on a terminal

    def say(self, text: str) -> None:
        """A remark, on its own line of stderr."""
        if not self.quiet:
            self._clear()
            print(text, file=self.err, flush=True)

    def progress(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """One state of a long job; written at most ten times a second on a terminal, every five seconds in a log."""
        if self.quiet:
            return
        now = self._clock()
        fresh = stage != self._stage
        if fresh:
            self._clear()
            self._stage, self._began, self._marks = stage, now, []
            self._written = now - (EVERY_LOG - 1.0)  # in a log the first line of a stage comes after a second
        self._mark(now, done)
        finished = total > 0 and done >= total
        if finished and self._finished and not fresh:
            return  # told once is enough
        self._finished = finished
        at_once = fresh and (self._tty or not total)  # in a log, only what cannot be counted is announced
        if not finished and not at_once and now - self._written < (EVERY_TTY if self._tty else EVERY_LOG):
            return
        if finished and not self._tty and now - self._began < 1.0:
            return  # a stage of less than a second is no news in a log
        self._written = now
        self._write(self._line(stage, done, total, detail, now - self._began), end=finished)

    def stage(self, name: str) -> Callable[[int, int], None]:
        """`progress` for a job that only counts: a function of (done, total)."""
        return lambda done, total: self.progress(name, done, total)

    def result(self, payload: Any, show: Callable[[Any], str]) -> None:
        """The result of the command: one JSON value, or `show(payload)` for a person."""
        self._clear()
        text = json.dumps(plain(payload), ensure_ascii=False, allow_nan=False) if self.as_json else show(payload)
        encoding = getattr(self.out, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=self.out, flush=True)

    def _line(self, stage: str, done: int, total: int, detail: str, elapsed: float) -> str:
        if not (done or total) and elapsed < 1.0:
            return stage + (f": {detail}" if detail else "")
        share = f" {done}/{total} ({100 * done // total} %)" if total > 0 else f" {done}" if done else ""
        left = ""
        (since, first), (until, last) = self._marks[0], self._marks[-1]
        enough = elapsed >= 20.0 or 30 * (last - first) >= total  # the first of a batch comes late, the next at once
        if first < last < total and elapsed >= 1.0 and enough:
            left = f", about {duration((until - since) * (total - last) / (last - first))} left"
        return f"{stage}{share}, {duration(elapsed)}{left}" + (f": {detail}" if detail else "")

    def _mark(self, now: float, done: int) -> None:
        """Remember when this much was done."""
        if self._marks and done < self._marks[-1][1]:
            self._marks = []  # the stage has begun again
        if not self._marks or done > self._marks[-1][1]:
            self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RECENT:
            del self._marks[0]

    def _write(self, line: str, *, end: bool) -> None:
        if not self._tty:
            print(line, file=self.err, flush=True)
            return
        line = line[:118]
        pad = " " * max(0, self._open - len(line))
        self.err.write("\r" + line + pad + ("\n" if end else ""))
        self.err.flush()
        self._open = 0 if end else len(line)

    def _clear(self) -> None:
        if self._open:
            self.err.write("\r" + " " * self._open + "\r")
            self.err.flush()
            self._open = 0
