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
from apps.decision import load_decision
from apps.env import version
from rag.errors import UsageError

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "handbook"
EXPECTED = {"index": "15 seconds", "decide": "10 minutes"}
"""What a step takes on two cores of a server, the first time."""

MINUTES = 4.0
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
    index, run = folder / "index", folder / "run"
    documents = SAMPLE / "documents"
    _announce(console, 1, f"index the handbook, {documents}", EXPECTED["index"])
    steps: dict[str, Any] = {"index": _index(documents, index, console)}
    _announce(
        console, 2, "tune on the training questions, then measure four arms on the held-out ones", EXPECTED["decide"]
    )
    data = _decide(index, run, folder, seed, console)
    steps["decide"] = {key: data.get(key) for key in ("chosen", "reason", "arms", "warnings")}
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


def _index(documents: Path, index: Path, console: Console) -> dict[str, Any]:
    out = StringIO()
    inner = Console(as_json=True, quiet=console.quiet, out=out, err=console.err)
    commands.index([documents], out=index, words=None, encoder=None, rebuild=False, strict=False, console=inner)
    found: dict[str, Any] = json.loads(out.getvalue())
    console.say(
        f"     {found['documents']} documents, {found['chunks']} chunks, {found['embedded']} embedded "
        f"in {duration(found['seconds'])}"
    )
    return found


def _decide(index: Path, run: Path, folder: Path, seed: int, console: Console) -> Mapping[str, Any]:
    """The decision; the one of an earlier call when it was made from the same documents, questions and code version."""
    stamp, file = _stamp(seed), folder / "demo.json"
    if file.is_file() and (run / "decision.json").is_file() and file.read_text(encoding="utf-8") == stamp:
        console.say("     already decided, from the same documents and questions")
        return load_decision(run).data
    out = StringIO()
    inner = Console(as_json=True, quiet=console.quiet, out=out, err=console.err)
    deciding.decide(
        index, train=SAMPLE / "train.jsonl", questions=SAMPLE / "test.jsonl", out=run, tuned=None, tuned_rag=None,
        method="lora", epochs=None, learning_rate=None, minutes=MINUTES, k=None, queries=None, gain=None,
        skip_broken=False, restart=False, dry_run=False, encoder=None, generator=None, seed=seed, console=inner,
    )  # fmt: skip
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(stamp, encoding="utf-8")
    os.replace(aside, file)
    return load_decision(run).data


def _stamp(seed: int) -> str:
    """What the decision depends on, as one line."""
    digest = hashlib.sha256()
    for path in sorted(p for p in SAMPLE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")):
        digest.update(path.relative_to(SAMPLE).as_posix().encode() + path.read_bytes())
    return json.dumps({"ragtune": version("ragtune"), "sample": digest.hexdigest(), "seed": seed}) + "\n"


def _examples() -> list[str]:
    """Some held-out questions that have an answer, for the page to begin with."""
    from rag.questions import read_questions

    asked = [q.question for q in read_questions(SAMPLE / "test.jsonl") if q.answers and q.question.isascii()]
    return asked[:: max(1, len(asked) // 3)][:3]
