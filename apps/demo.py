"""`ragtune demo`: the whole product on the sample handbook, step by step; what is finished is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from apps import commands, deciding, jobs
from apps.console import Console, duration
from apps.decision import decision_view
from apps.env import version
from rag.errors import UsageError

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "handbook"
EXPECTED = {"index": "15 seconds", "decide": "10 minutes"}
"""What a step takes on two cores of a server, the first time."""

QUESTIONS = 120
"""Of the held-out questions, which stand in shuffled order, so many are measured: enough for large differences."""

MINUTES = 5.0
"""Longest training of each of the two tuned arms."""


def demo(*, folder: Path, port: int | None, no_chat: bool, seed: int, console: Console) -> int:
    """Index, tune, decide, chat. A second call reaches the page at once: each step knows what it was made from."""
    if not (SAMPLE / "documents").is_dir():
        raise UsageError(
            f"The sample handbook is not at {SAMPLE}: it comes with the repository, not with the package. "
            "Clone the repository and type `make demo` there."
        )
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    index, run, documents = folder / "index", folder / "run", SAMPLE / "documents"
    stamp = _stamp(seed)
    _announce(console, 1, f"index the handbook, {documents}", EXPECTED["index"])
    indexed = _index(documents, index, console, known=_done(folder, "index", stamp, index / "manifest.json"))
    _finish(folder, "index", stamp, indexed)
    _announce(console, 2, "tune on training questions, then measure four arms on held-out ones", EXPECTED["decide"])
    if _done(folder, "decide", stamp, run / "decision.json") is None:
        _decide(folder, index, run, seed, console)
        _finish(folder, "decide", stamp, {})
    else:
        console.say("     already decided, from the same documents and questions")
    data = decision_view(run).data
    steps = {"index": indexed, "decide": {key: data.get(key) for key in ("chosen", "reason", "arms", "warnings")}}
    result = {"folder": str(folder), "seconds": round(time.monotonic() - began, 1), "run": str(run), **steps}
    console.result(result, lambda _: deciding.show_decision({**data, "report": str(run / "report.html")}))
    console.say(f"All of it in {duration(time.monotonic() - began)}, kept in {folder}.")
    if no_chat:
        return 0
    _announce(console, 3, "chat with the winner", "a few seconds")
    quiet = Console(quiet=console.quiet, out=console.err, err=console.err) if console.as_json else console
    return jobs.chat(
        index, port=port, decision=run, adapter=None, reranker=None, encoder=None, generator=None, seed=seed,
        console=quiet, examples=_examples(),
    )  # fmt: skip


def _announce(console: Console, number: int, what: str, expected: str) -> None:
    console.say(f"\n{number}/3  {what} (about {expected} the first time)")


def _index(documents: Path, index: Path, console: Console, *, known: dict[str, Any] | None) -> dict[str, Any]:
    """The report of indexing; of an earlier call when nothing in the handbook has changed since."""
    if known is not None:
        console.say(f"     already indexed: {known['documents']} documents, {known['chunks']} chunks")
        return known
    out = StringIO()
    inner = Console(as_json=True, quiet=console.quiet, out=out, err=console.err)
    commands.index([documents], out=index, words=None, encoder=None, rebuild=False, strict=False, console=inner)
    found: dict[str, Any] = json.loads(out.getvalue())
    console.say(
        f"     {found['documents']} documents, {found['chunks']} chunks, {found['embedded']} embedded "
        f"in {duration(found['seconds'])}"
    )
    return found


def _decide(folder: Path, index: Path, run: Path, seed: int, console: Console) -> None:
    lines = (SAMPLE / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    questions = folder / "questions.jsonl"
    questions.write_text("".join(lines[:QUESTIONS]), encoding="utf-8")
    inner = Console(as_json=True, quiet=console.quiet, out=StringIO(), err=console.err)
    deciding.decide(
        index, train=SAMPLE / "train.jsonl", questions=questions, out=run, tuned=None, tuned_rag=None,
        arms=None, adapters=None,
        method="lora", epochs=None, learning_rate=None, minutes=MINUTES, k=None, queries=None, gain=None,
        skip_broken=False, restart=False, dry_run=False, encoder=None, generator=None, seed=seed, console=inner,
    )  # fmt: skip


def _done(folder: Path, step: str, stamp: str, product: Path) -> dict[str, Any] | None:
    """What an earlier call of this step noted; None when it was not finished, or made from something else."""
    note = folder / f"{step}.done.json"
    if not (note.is_file() and product.is_file()):
        return None
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # half-written by a full disk: the step is done again
        return None
    return found["result"] if isinstance(found, dict) and found.get("stamp") == stamp else None


def _finish(folder: Path, step: str, stamp: str, result: Mapping[str, Any]) -> None:
    note = folder / f"{step}.done.json"
    aside = note.with_name(f".{note.name}.{os.getpid()}")
    aside.write_text(json.dumps({"stamp": stamp, "result": result}), encoding="utf-8")
    os.replace(aside, note)


def _stamp(seed: int) -> str:
    """What both steps depend on: version, seed, and a hash of the sample's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in SAMPLE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")):
        digest.update(path.relative_to(SAMPLE).as_posix().encode() + path.read_bytes())
    return f"ragtune {version('ragtune')}, seed {seed}, sample {digest.hexdigest()}"


def _examples() -> list[str]:
    """Some held-out questions that have an answer, for the page to begin with."""
    from rag.questions import read_questions

    asked = [q.question for q in read_questions(SAMPLE / "test.jsonl") if q.answers and q.question.isascii()]
    return asked[:: max(1, len(asked) // 3)][:3]
