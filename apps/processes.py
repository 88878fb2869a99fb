"""Long work as processes of our own command line: started, watched, cancelled and found again, never owned by a page.

    manuals.jobs/             beside the index `manuals`
      20261122-141500-a1b2/   one job
        job.json              what runs: kind, argv, who asked, when
        status.json           how far it is; replaced whole by the job itself, with a heartbeat
        log.txt               everything it said        series.jsonl   loss and speed by step
        result.json           what `--json` would print

A job runs the same command that a person could paste into a terminal, in a session of its own: it goes on when the
server ends, and a new server finds it. Jobs wait for one another in the order they were asked for, without a scheduler:
each looks at the folder for itself. `python -m apps.processes FOLDER` is what is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from apps.store import ANYONE
from rag.errors import StoreError, UsageError

State = Literal["queued", "running", "done", "failed", "cancelled", "dead"]
ENDED: frozenset[str] = frozenset({"done", "failed", "cancelled", "dead"})
KINDS = ("index", "questions", "tune", "decide", "evaluate")
"""Commands that may run as jobs; all of them load a model, so one runs at a time."""

BEAT_SECONDS = 2.0
STUCK_SECONDS = 60.0
START_SECONDS = 60.0
"""From the order to the first sign of life; Python starts in under a second, a loaded machine takes longer."""
GRACE_SECONDS = 30.0
"""From a wish to cancel to the end by force; a training step and its checkpoint fit into it."""
LOG_BYTES = 256 * 1024
_LOST = "The process ended without a word: it was killed, or the memory was full."


@dataclass(frozen=True, slots=True)
class Point:
    """One training step: its mean loss per answer token (nats) and the speed so far (tokens a second)."""

    step: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the page shows it. Times are seconds since the epoch; `message` says why it ended as it did.

    `ahead` is how many jobs run before it; `stuck` says that it lives but gave no sign for STUCK_SECONDS.
    """

    id: str
    kind: str
    argv: tuple[str, ...]
    user: str
    created: float
    state: State = "queued"
    stage: str = ""
    done: int = 0
    total: int = 0
    detail: str = ""
    message: str = ""
    started: float | None = None
    ended: float | None = None
    beat: float = 0.0
    pid: int | None = None
    code: int | None = None
    ahead: int = 0
    stuck: bool = False
    cancelling: bool = False

    @property
    def command(self) -> str:
        """What a person would type in a terminal."""
        return shlex.join(["ragtune", *self.argv])

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def can_resume(self) -> bool:
        """Whether the same command goes on from what this one left."""
        return self.state in ("failed", "cancelled", "dead")

    @property
    def seconds(self) -> float:
        """How long it has run, waiting not counted."""
        return max(0.0, (self.ended or time.time()) - self.started) if self.started else 0.0


class Jobs:
    """The jobs of one index. Nothing is kept in memory: any number of servers and terminals may look at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    @classmethod
    def beside(cls, index: Path) -> Jobs:
        """The jobs of an index folder."""
        place = index.resolve()
        return cls(place.with_name(place.name + ".jobs"))

    def start(self, argv: Sequence[str], *, user: str = ANYONE) -> Job:
        """Begin `ragtune ARGV...`, or queue it behind what runs; returns at once.

        Raises UsageError (or ConfigError) as the command line would, before anything is started.
        """
        argv = [str(a) for a in argv]
        check_command(argv)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        job = Job(f"{stamp}-{uuid.uuid4().hex[:4]}", argv[0], tuple(argv), user, time.time())
        place = self.folder / job.id
        try:
            place.mkdir(parents=True)
            order = {"id": job.id, "kind": job.kind, "argv": argv, "user": user, "created": job.created}
            write_json(place / "job.json", {**order, "cwd": os.getcwd()})
            write_json(place / "status.json", {"state": "queued"})
            with open(place / "log.txt", "ab") as log:
                self._children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "apps.processes", str(place)], stdin=subprocess.DEVNULL, stdout=log,
                        stderr=log, start_new_session=True, env=_environment(),
                    )
                )  # fmt: skip
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise StoreError(f"The job could not be started: {error.strerror or error} ({place}).") from error
        return job

    def all(self) -> list[Job]:
        """All jobs, the newest first."""
        self._reap()
        jobs = [self._read(place) for place in _places(self.folder)]
        live = sorted((j for j in jobs if not j.over), key=lambda j: (j.created, j.id))
        ahead = {job.id: i for i, job in enumerate(live)}
        return [replace(j, ahead=ahead.get(j.id, 0)) for j in sorted(jobs, key=lambda j: (-j.created, j.id))]

    def get(self, job: str) -> Job:
        """One job. UsageError when there is none of this id."""
        found = next((j for j in self.all() if j.id == job), None)
        if found is None:
            raise UsageError(f"There is no job {job[:40]} any more.")
        return found

    def cancel(self, job: str) -> Job:
        """Ask a job to end; it ends after its present step, or by force after GRACE_SECONDS. Ended ones stay as they
        are."""
        found = self.get(job)
        if not found.over:
            (self.folder / found.id / "cancel").touch()
            if found.stuck and found.pid:
                _kill(found.pid)
                _finish(self.folder / found.id, "cancelled", None, "It gave no sign of life and was ended by force.")
        return self.get(job)

    def resume(self, job: str) -> Job:
        """The command of an ended job once more: it goes on from what is there. UsageError while it runs."""
        found = self.get(job)
        if not found.over:
            raise UsageError("This job still runs; cancel it first, or wait.")
        argv = [a for a in found.argv if a != "--restart"]
        return self.start(argv, user=found.user)

    def remove(self, job: str) -> None:
        """Forget an ended job with its log; what it made stays. UsageError while it runs."""
        found = self.get(job)
        if not found.over:
            raise UsageError("This job still runs; cancel it first.")
        shutil.rmtree(self.folder / found.id, ignore_errors=True)

    def log(self, job: str, lines: int = 200) -> str:
        """The last lines of what a job said."""
        return tail(self.folder / self.get(job).id / "log.txt", lines)

    def series(self, job: str) -> list[Point]:
        """Loss and speed of each training step so far."""
        points = []
        for line in _text(self.folder / self.get(job).id / "series.jsonl").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be half written
                row = json.loads(line)
                points.append(Point(int(row["step"]), float(row["loss"]), float(row["tokens_per_second"])))
        return points

    def result(self, job: str) -> Any | None:
        """What the command printed with --json; None until it is done."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / self.get(job).id / "result.json").read_text(encoding="utf-8"))
        return None

    def wait(self, job: str, seconds: float = 600.0) -> Job:
        """The job once it has ended, or after `seconds`."""
        until = time.monotonic() + seconds
        while not (found := self.get(job)).over and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _read(self, place: Path) -> Job:
        return read_job(place)


def read_job(place: Path) -> Job:
    """A job from its folder, with what is true now: a process that is gone makes it "dead", whatever the file says."""
    try:
        order = json.loads((place / "job.json").read_text(encoding="utf-8"))
        job = Job(
            place.name, str(order["kind"]), tuple(order["argv"]), str(order.get("user", ANYONE)),
            float(order["created"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{place / 'job.json'} cannot be read ({error}); remove this job."
        return Job(place.name, "unknown", (), ANYONE, 0.0, "dead", message=told)
    try:
        status = json.loads((place / "status.json").read_text(encoding="utf-8"))
        fields = {k: status[k] for k in _FIELDS if k in status}
        job = replace(job, **fields, cancelling=(place / "cancel").exists())
        process = float(status.get("process") or 0.0)
        if job.state not in (*ENDED, "queued", "running"):
            raise ValueError(f"state {job.state!r}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        told = f"{place / 'status.json'} cannot be read ({error}). Resume begins from what the job left."
        return replace(job, state="dead", message=told)
    if job.over:
        return job
    if job.pid is None:
        late = time.time() - job.created > START_SECONDS
        return replace(job, state="dead", message="The process never began; its log may say why.") if late else job
    if not _alive(job.pid, process):
        return replace(job, state="dead", ended=job.beat or None, message=_LOST)
    return replace(job, stuck=time.time() - job.beat > STUCK_SECONDS)


_FIELDS = ("state", "stage", "done", "total", "detail", "message", "started", "ended", "beat", "pid", "code")


def check_command(argv: Sequence[str]) -> None:
    """Raises UsageError or ConfigError when the command line would refuse these arguments, or when it is no job."""
    from apps.cli import build_parser
    from apps.options import resolve

    if not argv or argv[0] not in KINDS:
        raise UsageError(f"{argv[0] if argv else 'Nothing'} cannot run as a job; these can: {', '.join(KINDS)}.")
    given = vars(build_parser().parse_args(list(argv)))
    resolve(argv[0], given, os.environ)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any] | Any) -> None:
    """A JSON value, aside and renamed, so that a reader sees the old one or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        aside.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; "" when there is none."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    return ""


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _places(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _environment() -> dict[str, str]:
    """The job finds the packages this server runs from, wherever it is started."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + path if path else ""), "PYTHONUNBUFFERED": "1"}


def _alive(pid: int, process: float) -> bool:
    """Whether `pid` is still the process that began at `process` (seconds since the epoch): numbers are used again."""
    import psutil

    try:
        found = psutil.Process(pid)
        return bool(found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - process) < 2.0)
    except psutil.Error:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # a job leads its own group


def _finish(place: Path, state: State, code: int | None, message: str) -> None:
    """The last status of a job, whoever writes it."""
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads((place / "status.json").read_text(encoding="utf-8"))
    write_json(
        place / "status.json", {**before, "state": state, "code": code, "message": message, "ended": time.time()}
    )


if __name__ == "__main__":
    from apps.running import main

    raise SystemExit(main(Path(sys.argv[1])))
