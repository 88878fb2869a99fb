"""From questions to chips on the starter, by the command line: critic, adapter, answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.chips import candidates, chips
from apps.cli import main

pytestmark = pytest.mark.slow


def run(capsys: Any, *argv: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, argv), "--json", "-q"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_critic_adapter_and_answer(tmp_path: Path, corpus: Path, root: Path, capsys: Any) -> None:
    facts = (
        ("ferry.md", "When does the ferry to Korr leave?", "07:40"),
        ("ferry.md", "What does a return ticket cost?", "18 crowns"),
        ("ferry.md", "From which pier does the ferry leave?", "pier 4"),
        ("boats/loan.md", "What is the deposit of the blue boat?", "250 crowns"),
        ("boats/loan.md", "For how long may members borrow the boat?", "3 days"),
        ("kitchen.txt", "When does the kitchen close?", "21:15"),
        ("kitchen.txt", "When is the last warm meal served?", "20:30"),
        ("library.html", "How many books does the library lend?", "nine"),
        ("library.html", "For how long are books lent?", "28 days"),
        ("library.html", "What does a late book cost?", "2 crowns per week"),
    )
    lines = [
        {"id": f"q{i}", "question": q, "answers": [a], "evidence": [{"source": source, "quote": a}]}
        for i, (source, q, a) in enumerate(facts)
    ]
    lines += [{"id": "none", "question": "Who owns the harbour cat?", "answers": [], "unanswerable": True}]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = tmp_path / "index"
    assert main(["index", str(corpus), "--out", str(index), "-q"]) == 0

    critic = run(capsys, "critic", index, "--questions", questions, "--out", tmp_path / "critic", "--minutes", "0.3")
    assert critic["labels"]["gold"] > 0 and set(critic["agreement"]) == {"critic and gold"}

    out = tmp_path / "adapter"
    tuned = run(
        capsys, "tune", index, "--questions", questions, "--out", out, "--recipe", "self-rag",
        "--critic", tmp_path / "critic", "--minutes", "0.5",
    )  # fmt: skip
    assert tuned["rows"] >= 20 and tuned["loss"][-1] < tuned["loss"][0]

    said = run(capsys, "ask", index, "When does the kitchen close?", "--adapter", out, "--delta", "0")
    assert said["arm"] == "self-rag" and said["details"]["mode"] == "tokens"
    assert said["details"]["retrieved"] and said["details"]["sequences"] >= 5
    assert "rt-chip" in chips(said["details"]) and "tried" in candidates(said["details"])
    without = run(capsys, "ask", index, "When does the kitchen close?", "--adapter", out, "--delta", "1")
    assert not without["details"]["retrieved"] and without["passages"] == []
