"""Inside a job: wait for the turn, run the command line, keep the status file true. Started by `apps.processes`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apps.console import Console, plain
from apps.processes import BEAT_SECONDS, GRACE_SECONDS, State, _finish, _kill, _places, read_job, write_json

_LOSS = re.compile(r"loss (\d+(?:\.\d+)?), (\d+(?:\.\d+)?) tokens/s")
_EVERY = 0.5  # seconds between two states written to disk


class JobConsole(Console):
    """A console that writes progress into the status file, remarks into the log, and the result into a file."""

    def __init__(self, status: Status) -> None:
        super().__init__(as_json=True, out=sys.stderr, err=sys.stderr)
        self.status = status
        self.complaint = ""

    def progress(self, stage: str, done: int, total: int, detail: str = "") -> None:
        super().progress(stage, done, total, detail)
        self.status.progress(stage, done, total, detail)

    def result(self, payload: Any, show: Callable[[Any], str]) -> None:
        write_json(self.status.place / "result.json", plain(payload))
        self.say(show(payload))

    def complain(self, sentence: str) -> None:
        """Why the command failed."""
        self.complaint = sentence.strip()
        print(f"ragtune: {self.complaint}", file=sys.stderr, flush=True)


class Status:
    """The status file of this process, written by the thread that works and by the one that keeps the heart beating."""

    def __init__(self, place: Path) -> None:
        import psutil

        self.place = place
        self._lock = threading.Lock()
        self._written = 0.0
        self._step = ("", 0)
        self._values: dict[str, Any] = {
            "state": "queued", "pid": os.getpid(), "process": psutil.Process().create_time(), "beat": time.time(),
        }  # fmt: skip
        self.write()

    def write(self, **values: Any) -> None:
        """Take these values and put all of them on disk, with a heartbeat."""
        with self._lock:
            self._values |= {**values, "beat": time.time()}
            self._written = time.monotonic()
            write_json(self.place / "status.json", self._values)

    def progress(self, stage: str, done: int, total: int, detail: str) -> None:
        """One state of the work; losses are kept for the curve."""
        values = {"stage": stage, "done": done, "total": total, "detail": detail}
        found = _LOSS.search(detail)
        if found and (stage, done) != self._step:
            self._step = (stage, done)
            row = {"step": done, "loss": float(found[1]), "tokens_per_second": float(found[2])}
            with open(self.place / "series.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        fresh = stage != self._values.get("stage") or (total > 0 and done >= total)
        if fresh or time.monotonic() - self._written >= _EVERY:
            self.write(**values)
        else:
            self._values |= values


def main(place: Path) -> int:
    """Run the job of this folder to its end; the exit code is that of the command."""
    from apps.cli import main as command_line

    order = json.loads((place / "job.json").read_text(encoding="utf-8"))
    os.chdir(order["cwd"])
    status = Status(place)
    console = JobConsole(status)
    # A server that was started in the background of a shell ignores interrupts, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_beat, args=(status,), daemon=True).start()
    try:
        with _turn(place, status):
            status.write(state="running", started=time.time())
            code = command_line([*order["argv"]], console=console, complain=console.complain)
    except KeyboardInterrupt:
        code = 130
    cancelled = (place / "cancel").exists()
    state: State = "done" if code == 0 else "cancelled" if cancelled else "failed"
    if code == 130 and not console.complaint:
        console.complaint = "Cancelled before it began."
    status.write(state=state, code=code, message=console.complaint, ended=time.time())
    return code


def _beat(status: Status) -> None:
    """Keep the heartbeat, and turn a wish to cancel into an interrupt, then into force."""
    asked: float | None = None
    while True:
        time.sleep(BEAT_SECONDS / 4)
        if asked is None and (status.place / "cancel").exists():
            asked = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        if asked is not None and time.monotonic() - asked > GRACE_SECONDS:
            _finish(status.place, "cancelled", None, "It did not end by itself and was ended by force.")
            _kill(os.getpid())
        if time.monotonic() - status._written >= BEAT_SECONDS:
            status.write()


@contextmanager
def _turn(place: Path, status: Status) -> Iterator[None]:
    """Wait until no earlier job of this folder lives; the lock makes sure that one runs at a time."""
    with open(place.parent / "turn.lock", "w") as lock:
        while True:
            me = read_job(place)
            others = [read_job(p) for p in _places(place.parent) if p != place]
            before = [j for j in others if not j.over and (j.created, j.id) < (me.created, me.id)]
            if not before:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
            status.write(detail=f"waits for {before[0].kind}" if before else "waits")
            time.sleep(0.3)
        yield
