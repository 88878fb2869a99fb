"""The whole loop on a shared set, by our own command line: index, tune, measure, decide. Used by the `decide_…` scripts."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import shared_folder


def command(*arguments: str | Path) -> dict[str, Any]:
    """What `ragtune … --json` printed; its progress goes to stderr."""
    line = [sys.executable, "-m", "apps.cli", *map(str, arguments), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make_task(data_set: str, folder: Path) -> Path:
    """Documents and question files of a shared set, with the defaults of the tool that makes them.

    Training questions that stand in the test file, word for word, are left out: two documents of one set may share one.
    """
    shared = shared_folder()
    if shared is None:
        raise SystemExit("The shared data sets are not here; set RAGTUNE_SHARED to their folder.")
    task = folder / data_set.replace("/", "-")
    if not (task / "test.jsonl").is_file():
        tool = shared / "tools" / "make_task.py"
        subprocess.run([sys.executable, str(tool), str(shared / "data" / data_set), str(task)], check=True)
        _take_out(task / "train.jsonl", task / "test.jsonl")
    return task


def _take_out(train: Path, test: Path) -> None:
    from rag.metrics import normalise

    def asked(line: str) -> str:
        return normalise(json.loads(line)["question"])

    held_out = {asked(line) for line in test.read_text(encoding="utf-8").splitlines()}
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)
    train.write_text("".join(line for line in lines if asked(line) not in held_out), encoding="utf-8")


def run(data_set: str, *, labels: bool = True, minutes: float = 15.0) -> None:
    """Run the loop on one set and print its results as Markdown.

    With `labels=False` the training questions come from `ragtune questions` alone; the test questions are the set's.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="keep the task, the index and the runs here, and go on from them")
    parser.add_argument("--minutes", type=float, default=minutes, help="longest training of each tuned arm")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        task = make_task(data_set, work)
        index, train = task / "index", task / "train.jsonl"
        indexed = command("index", task / "corpus", "--out", index)
        lines = [
            f"## Decision on {data_set}{'' if labels else ', without labels'}",
            "",
            f"{indexed['documents']} documents, {indexed['chunks']} chunks. Training at most {given.minutes:g} minutes for "
            "each tuned arm.",
        ]
        began = time.monotonic()
        if not labels:
            train = task / "generated.jsonl"
            made = command("questions", index, "--out", train)
            shares = ", ".join(f"{name} {share:.2f}" for name, share in made["filters"].items())
            lines += ["", f"Questions made from the documents: {made['kept']} kept of {made['asked']} ({shares})."]
        out = task / ("run" if labels else "run-no-labels")
        decision = command(
            *("decide", index, "--train", train, "--questions", task / "test.jsonl", "--out", out),
            *("--minutes", str(given.minutes)),
        )
        minutes_taken = (time.monotonic() - began) / 60
        print("<!-- results -->\n" + "\n".join([*lines, *_tables(decision, minutes_taken)]) + "\n<!-- /results -->")


def _tables(decision: dict[str, Any], minutes: float) -> list[str]:
    out = ["", "| arm | F1 | 95 % | EM | training | s/question | tokens in |", "|---|---|---|---|---|---|---|"]
    for arm in decision["arms"]:
        f1 = arm["f1"]
        out.append(
            f"| {arm['arm']} | {f1['mean']:.3f} | {f1['low']:.3f} to {f1['high']:.3f} | {arm['em']['mean']:.3f} "
            f"| {arm['training_seconds'] / 60:.1f} min | {arm['seconds_per_question']:.2f} "
            f"| {arm['tokens_in']['mean']:.0f} |"
        )
    found = decision["retrieved"]
    figures = [f"{name} {found[name]['mean']:.3f}" for name in ("recall@1", "recall@5", "mrr", "ndcg@10")]
    out += [
        "",
        f"Retrieval (documents): {', '.join(figures)}. Chosen: **{decision['chosen']}**. {decision['reason']}",
        "",
    ]
    out += [f"- warning: {sentence}" for sentence in decision["warnings"]]
    return [*out, "", f"In all {minutes:.0f} minutes after indexing."]
