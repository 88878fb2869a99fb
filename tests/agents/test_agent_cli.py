"""`ragtune collect` and `ragtune tune --recipe agent` with fakes: what they print, leave behind and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from apps import agent_tuning, serving
from apps.cli import main
from rag.protocols import Message
from tests.fakes import FakeEncoder, FakeGenerator
from tuning.record import write_record
from tuning.train import TrainReport

Run = Callable[..., tuple[int, Any, str]]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "kind": "fact", "question": "When does the ferry to Korr leave?", "answers": ["07:40"],
     "evidence": [{"source": "ferry.md", "quote": "The ferry to Korr leaves at 07:40 from pier 4."}]},
    {"id": "b", "kind": "number", "question": "What does a return ticket to Korr cost?", "answers": ["18 crowns"],
     "evidence": [{"source": "ferry.md", "quote": "A return ticket costs 18 crowns."}]},
    {"id": "c", "kind": "number", "question": "What is the deposit for the blue boat?", "answers": ["250 crowns"],
     "evidence": [{"source": "boats/loan.md", "quote": "The deposit is 250 crowns."}]},
]  # fmt: skip


def reply(messages: Sequence[Message]) -> str:
    if not messages[0]["content"].startswith("Answer the question with tools"):
        return "a general answer"
    asked = messages[1]["content"].removeprefix("Question: ").rstrip()
    row = next((r for r in ROWS if r["question"] == asked), None)
    if len(messages) == 2:
        return f"I look.\nAction: search[{asked}]"
    return f"So.\nAction: finish[{row['answers'][0] if row else 'nothing'}]"


@pytest.fixture()
def place(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> tuple[Path, Run, FakeGenerator]:
    generator = FakeGenerator(reply)
    monkeypatch.setattr(serving, "load_encoder", lambda name: FakeEncoder(name))
    monkeypatch.setattr(serving, "load_generator", lambda name: generator)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    assert main(["index", str(corpus), "--out", str(tmp_path / "ix"), "--words", "20", "-q"]) == 0
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, Any, str]:
        code = main([*arguments, "--json", "-q"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out.strip() else None, said.err

    return tmp_path, run, generator


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_demonstrate_tune_collect_and_merge(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, run, generator = place
    index, q = str(folder / "ix"), str(folder / "q.jsonl")
    first, second = folder / "demo.jsonl", folder / "round.jsonl"
    code, found, _ = run("collect", index, "--questions", q, "--out", str(first), "--demonstrate", "--compose", "4",
                         "--composed", str(folder / "made.jsonl"))  # fmt: skip
    assert code == 0 and found["kept"] == found["traces"] == len(lines(first)) > 3
    assert {"fact", "number", "calculation", "two-hop"} >= set(found["kinds"]) and not generator.calls
    assert len(lines(folder / "made.jsonl")) == 4 and {r["kind"] for r in lines(folder / "made.jsonl")} <= {
        "calculation",
        "two-hop",
    }

    trained: list[Any] = []

    def train(plan: Any, rows: Any, out: Path, console: Any, **record: Any) -> TrainReport:
        trained.append((plan.recipe, [r.kind for r in rows], record["mixture"]["eta"]))
        out.mkdir(parents=True)
        write_record(out, {"recipe": plan.recipe, **record})
        return TrainReport(out, len(rows), 0, 100, 1.0, (1.0, 0.5), 2, 2)

    monkeypatch.setattr(agent_tuning, "train_adapter", train)
    adapter = str(folder / "ad")
    code, found, error = run("tune", index, "--recipe", "agent", "--questions", str(first), "--out", adapter, "--eta", "0.5",
                         "--test", q)  # fmt: skip
    assert code == 0, error
    assert found["shares"]["agent_examples"] == 0.5 and trained[0][0] == "agent"
    assert set(trained[0][1]) == {"trace", "own"} and found["after"]["format_errors"] == 0.0
    assert found["after"]["em"]["mean"] == 1.0

    code, found, _ = run("collect", index, "--questions", q, "--out", str(second), "--adapter", adapter,
                         "--merge", str(first))  # fmt: skip
    assert code == 0 and found["kept"] == 3 and found["format_errors"] == 0.0
    traces = lines(second)
    kept = [t for t in traces if t["kept"]]
    assert {t["runtime"] for t in kept} == {"react", "demonstration"}
    assert len({t["question"] for t in kept}) == len(kept)
    assert next(t for t in traces if t["runtime"] == "react")["adapter"] == adapter

    code, found, _ = run("ask", index, ROWS[0]["question"], "--adapter", adapter)
    assert code == 0 and found["arm"] == "agent" and found["answer"].startswith("07:40")
    assert found["details"]["agent"]["steps"] == 2


def test_the_arm_can_be_asked_for_without_an_adapter(place: Any) -> None:
    folder, run, _ = place
    code, found, _ = run("ask", str(folder / "ix"), ROWS[1]["question"], "--arm", "agent")
    assert code == 0 and found["answer"].startswith("18 crowns") and found["adapter"] is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--keep", "0"), "keep is 0"),
        (("--reward", "nope"), 'There is no reward "nope"'),
        (("--runtime", "native"), "--runtime react"),
        (("--composed", "x.jsonl"), "--compose N"),
        (("--bank", "none.jsonl"), "no file of traces"),
        (("--adapter", "none"), "no adapter folder"),
        (("--budget-end", "never"), "invalid choice"),
    ],
)
def test_wrong_requests(place: Any, more: tuple[str, ...], said: str) -> None:
    folder, run, _ = place
    code, found, error = run(
        "collect", str(folder / "ix"), "--questions", str(folder / "q.jsonl"), "--out", str(folder / "t.jsonl"), *more
    )
    assert code == 2 and found is None and said in error


def test_traces_that_are_none_are_refused(place: Any) -> None:
    folder, run, _ = place
    code, _, error = run("tune", str(folder / "ix"), "--recipe", "agent", "--questions", str(folder / "q.jsonl"),
                         "--out", str(folder / "ad"))  # fmt: skip
    assert code == 2 and "q.jsonl, line 1 is no trace" in error
    code, _, error = run("tune", str(folder / "ix"), "--recipe", "agent", "--questions", str(folder / "none"),
                         "--out", str(folder / "ad"))  # fmt: skip
    assert code == 2 and "ragtune collect" in error
