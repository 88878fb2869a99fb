"""The agent's whole loop offline, by our own commands, on the sample handbook: how long it takes, and what it brings.

Right runs are built from the evidence of the training questions; an adapter is tuned on them; the tuned agent answers
the training questions itself, and what it got right is kept beside them; a second adapter is tuned on both; each is
measured on the held-out questions. No model but the starters takes part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loop import command

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "handbook"


class Clock:
    """Runs commands and keeps a line for each: what it was, what it took, what it said."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.lines: list[str] = []

    def run(self, what: str, *arguments: str | Path, say: Any = None) -> dict[str, Any]:
        began = time.perf_counter()
        found = command(*arguments)
        self.lines.append(f"| {what} | {time.perf_counter() - began:.0f} s | {say(found) if say else ''} |")
        return found

    @property
    def minutes(self) -> float:
        return (time.perf_counter() - self.began) / 60


def first(file: Path, count: int, folder: Path) -> Path:
    """The first questions of a file, in `folder`."""
    made = folder / f"{file.stem}-{count}.jsonl"
    made.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    return made


def kept(found: dict[str, Any]) -> str:
    return f"{found['kept']} of {found['traces']} traces kept, format errors {found['format_errors']:.1%}"


def scores(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {found[name]['mean']:.3f}" for name in ("f1", "em") if found.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="longest training of each round")
    parser.add_argument("--collect", type=int, default=120, help="training questions that the tuned agent answers")
    parser.add_argument("--tests", type=int, default=100, help="held-out questions")
    parser.add_argument("--work", type=Path, help="keep everything here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        index, train, test = work / "handbook", SAMPLE / "train.jsonl", first(SAMPLE / "test.jsonl", given.tests, work)
        traces, again = work / "traces.jsonl", work / "round2.jsonl"
        clock, minutes = Clock(), ("--minutes", str(given.minutes))
        clock.run("index", "index", SAMPLE / "documents", "--out", index)
        clock.run(
            "traces from the evidence", "collect", index, "--questions", train, "--out", traces, "--demonstrate",
            "--compose", "200", say=kept,
        )  # fmt: skip
        clock.run("tune", "tune", index, "--questions", traces, "--out", work / "one", "--recipe", "agent", *minutes)
        clock.run(
            f"the tuned agent on {given.collect} of them", "collect", index, "--questions",
            first(train, given.collect, work), "--out", again,
            "--adapter", work / "one", "--merge", traces, say=kept,
        )  # fmt: skip
        clock.run(
            "tune again", "tune", index, "--questions", again, "--out", work / "two", "--recipe", "agent", *minutes
        )
        clock.run(
            f"{given.tests} held-out questions", "evaluate", index, "--questions", test, "--arm", "agent", "--adapter",
            work / "two",
            say=scores,
        )  # fmt: skip
        whole = clock.minutes
    print("<!-- results -->\n## Agent: the loop offline, on the sample handbook\n")
    print("\n".join(["| step | time | |", "|---|---|---|", *clock.lines]))
    print(f"\nIn all {whole:.1f} minutes, each command a process of its own.\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
