"""Jobs as processes: they outlive who started them, wait for one another, can be cancelled, and a dead one is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps import processes
from apps.processes import Job, Jobs, read_job, write_json
from apps.running import Status
from rag.errors import ConfigError, UsageError
from tests.conftest import ROOT

# In the place of the command line: steps of 0.1 s with progress, until the number in RAGTUNE_SEED is reached.
FAKE = """
import sys, time
from apps import cli
def main(argv, *, console, complain):
    steps = int(argv[argv.index("--seed") + 1]) if "--seed" in argv else 3
    try:
        for i in range(1, steps + 1):
            console.progress("training", i, steps, f"loss {2.0 / i:.3f}, {100 + i} tokens/s")
            time.sleep(0.1)
    except KeyboardInterrupt:
        complain("stopped. Checkpoints are kept.")
        return 130
    if steps == 2:
        complain("it went wrong")
        return 1
    console.result({"steps": steps}, lambda p: f"done in {p['steps']}")
    return 0
cli.main = main
"""


@pytest.fixture()
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs whose processes run FAKE; a sitecustomize of their own puts it in."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\nif any('apps.processes' in a for a in getattr(sys, 'orig_argv', [])):\n"
        f"    sys.path.insert(0, {str(ROOT)!r})\n" + "".join(f"    {line}\n" for line in FAKE.splitlines())
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    made = Jobs(tmp_path / "idx.jobs")
    yield made
    for job in made.all():
        if not job.over and job.pid:
            os.kill(job.pid, signal.SIGKILL)


def tune(jobs: Jobs, steps: int = 3) -> Job:
    return jobs.start(["tune", "idx", "--questions", "q.jsonl", "--out", "a b", "--seed", str(steps)])


def until(jobs: Jobs, job: Job, state: str, seconds: float = 60.0) -> Job:
    end = time.monotonic() + seconds
    while (found := jobs.get(job.id)).state != state and time.monotonic() < end:
        time.sleep(0.05)
    assert found.state == state, (found, jobs.log(job.id))
    return found


def test_a_job_runs_to_its_end_and_leaves_result_log_and_curve(jobs: Jobs) -> None:
    job = tune(jobs)
    assert job.command == "ragtune tune idx --questions q.jsonl --out 'a b' --seed 3"
    done = jobs.wait(job.id, 60)
    assert done.state == "done" and done.code == 0 and (done.done, done.total) == (3, 3) and done.seconds > 0
    assert jobs.result(job.id) == {"steps": 3} and "done in 3" in jobs.log(job.id)
    assert [(p.step, p.loss, p.tokens_per_second) for p in jobs.series(job.id)] == [
        (1, 2.0, 101),
        (2, 1.0, 102),
        (3, 0.667, 103),
    ]
    with pytest.raises(UsageError, match="no job"):
        jobs.get("nothing")
    jobs.remove(job.id)
    assert jobs.all() == []


def test_a_failing_job_says_why_and_can_be_resumed(jobs: Jobs) -> None:
    failed = jobs.wait(tune(jobs, 2).id, 60)
    assert (failed.state, failed.code, failed.message) == ("failed", 1, "it went wrong") and failed.can_resume
    again = jobs.resume(failed.id)
    assert again.argv == failed.argv and again.id != failed.id
    jobs.wait(again.id, 60)


def test_cancel_ends_it_and_jobs_wait_in_order(jobs: Jobs) -> None:
    first, second, third = tune(jobs, 6000), tune(jobs), tune(jobs)
    until(jobs, first, "running")
    waiting = until(jobs, second, "queued")
    assert waiting.ahead == 1 and jobs.get(third.id).ahead == 2
    with pytest.raises(UsageError, match="still runs"):
        jobs.resume(first.id)
    with pytest.raises(UsageError, match="still runs"):
        jobs.remove(first.id)
    jobs.cancel(third.id)
    until(jobs, third, "cancelled")
    assert jobs.cancel(first.id).cancelling
    ended = until(jobs, first, "cancelled", 120)
    assert ended.message == "stopped. Checkpoints are kept." and ended.can_resume
    until(jobs, second, "done")


def test_a_job_of_a_server_in_the_background_of_a_shell_can_be_cancelled(jobs: Jobs) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what stands before an ampersand
    try:
        job = tune(jobs, 6000)
    finally:
        signal.signal(signal.SIGINT, before)
    until(jobs, job, "running")
    jobs.cancel(job.id)
    assert until(jobs, job, "cancelled", 120).message == "stopped. Checkpoints are kept."


def test_a_killed_server_loses_no_job_and_the_next_one_finds_it(jobs: Jobs, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from apps.processes import Jobs\n"
        "Jobs(Path(sys.argv[1])).start(['tune', 'idx', '--questions', 'q', '--out', 'o', '--seed', '25'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    server = subprocess.run(
        [sys.executable, "-c", code, str(jobs.folder)], env={**os.environ, "PYTHONPATH": paths}, timeout=60
    )
    assert server.returncode == -9
    (job,) = Jobs(jobs.folder).all()
    assert job.state in ("queued", "running")
    assert Jobs(jobs.folder).wait(job.id, 60).state == "done"


def test_a_killed_job_is_dead_not_running(jobs: Jobs) -> None:
    job = tune(jobs, 600)
    running = until(jobs, job, "running")
    assert running.pid
    os.kill(running.pid, signal.SIGKILL)
    dead = until(jobs, job, "dead", 10)
    assert "killed" in dead.message and dead.can_resume and dead.over
    after = tune(jobs)  # and it holds nobody up
    until(jobs, after, "done")


def test_a_number_that_is_used_again_is_not_taken_for_the_job(tmp_path: Path) -> None:
    place = tmp_path / "j1"
    place.mkdir()
    order = {"kind": "tune", "argv": ["tune"], "created": time.time()}
    write_json(place / "job.json", order)
    status = Status(place)
    assert read_job(place).state == "queued"
    write_json(place / "status.json", {**status._values, "state": "running", "process": 12345.0})
    assert read_job(place).state == "dead"
    write_json(place / "status.json", {**status._values, "state": "running", "beat": time.time() - 999})
    assert read_job(place).stuck


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"state": "dancing"}', '{"state": "running", "process": "x"}']
)
def test_a_damaged_status_file_is_a_dead_job(tmp_path: Path, text: str) -> None:
    place = tmp_path / "j1"
    place.mkdir()
    write_json(place / "job.json", {"kind": "tune", "argv": ["tune"], "created": time.time()})
    (place / "status.json").write_text(text)
    job = read_job(place)
    assert job.state == "dead" and "status.json" in job.message
    (place / "job.json").write_text(text)
    assert read_job(place).state == "dead" and "job.json" in read_job(place).message
    assert [j.state for j in Jobs(tmp_path).all()] == ["dead"]


def test_a_process_that_never_began_is_dead_after_a_while(tmp_path: Path) -> None:
    place = tmp_path / "j1"
    place.mkdir()
    write_json(place / "status.json", {"state": "queued"})
    for age, state in ((0.0, "queued"), (processes.START_SECONDS + 1, "dead")):
        write_json(place / "job.json", {"kind": "tune", "argv": ["tune"], "created": time.time() - age})
        assert read_job(place).state == state


def test_wrong_commands_are_refused_before_anything_starts(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs")
    for argv in ([], ["chat", "idx"], ["tune", "idx"], ["tune", "idx", "--nonsense"], ["rm", "-rf"]):
        with pytest.raises((UsageError, ConfigError)):
            jobs.start(argv)
    assert not (tmp_path / "jobs").exists()


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes(b"x" * 10**6 + b"\nbad \xff byte\nlast\n")
    assert processes.tail(file, 2) == "bad \ufffd byte\nlast" and processes.tail(tmp_path / "none", 5) == ""
