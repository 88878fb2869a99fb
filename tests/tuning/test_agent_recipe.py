"""The recipe `agent`: rows of traces by hand, the mixture by example, general rows of every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ConfigError, TrainingError, UsageError
from tests.fakes import FakeGenerator, words
from tuning.general import INSTRUCTIONS, SHORT
from tuning.recipes import recipe
from tuning.recipes.agent import agent_rows, general_row, own_rows, read_general, read_trace_file, trace_row
from tuning.rows import Row


def message(role: str, content: str, loss: bool = False) -> dict[str, Any]:
    return {"role": role, "content": content, "loss": loss}


def trace(key: str = "t1", kept: bool = True) -> dict[str, Any]:
    return {
        "id": key, "kept": kept,
        "messages": [
            message("system", "tools"), message("user", "Question: q"), message("assistant", "bad words"),
            message("user", "Observation: invalid"), message("assistant", "Thought: a\nAction: search[x]", True),
            message("user", "Observation: seen"), message("assistant", "Thought: b\nAction: finish[y]", True),
            message("user", "Observation: Episode finished, reward = True"),
        ],
    }  # fmt: skip


def count(text: str) -> int:
    return len(words(text))


def general(n: int) -> list[Row]:
    return [general_row([{"role": "user", "content": f"say {i}"}], f"word {i}") for i in range(n)]


def test_a_trace_is_one_row_with_loss_on_its_legal_turns_alone() -> None:
    row = trace_row(trace())
    assert row is not None and row.kind == "trace"
    assert row.completion == "Thought: b\nAction: finish[y]" and row.also == (4,)
    assert [m["role"] for m in row.prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert all(set(m) == {"role", "content"} for m in row.prompt)
    assert trace_row({"id": "x", "messages": [message("user", "q")]}) is None


@pytest.mark.parametrize(("eta", "traces", "others"), [(1.0, 4, 0), (0.5, 4, 4), (0.2, 4, 16), (0.0, 0, 4)])
def test_the_mixture_is_by_example(eta: float, traces: int, others: int) -> None:
    rows, report = agent_rows([trace(f"t{i}") for i in range(4)], general(6), eta=eta, count_tokens=count)
    assert [sum(r.kind == k for r in rows) for k in ("trace", "general")] == [traces, others]
    assert (report.traces, report.general, report.general_pool) == (traces, others, 6)
    assert len({r.id for r in rows}) == len(rows)  # repeated general rows have names of their own
    if 0 < eta < 1:
        size = sum(count(m["content"]) for r in rows for m in r.prompt) + sum(count(r.completion) for r in rows)
        own = [r for r in rows if r.kind == "trace"]
        part = sum(count(m["content"]) for r in own for m in r.prompt) + sum(count(r.completion) for r in own)
        assert report.token_share == pytest.approx(part / size)
        assert report.token_share > eta
        assert report.shares()["agent_examples"] == pytest.approx(eta)


def test_the_same_seed_gives_the_same_rows() -> None:
    found = [
        agent_rows([trace(f"t{i}") for i in range(4)], general(6), seed=s, count_tokens=count)[0] for s in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]


def test_traces_that_were_not_kept_are_left_out() -> None:
    rows, report = agent_rows([trace("a"), trace("b", kept=False)], (), eta=1.0, count_tokens=count)
    assert [r.id for r in rows] == ["a"] and report.skipped == 1
    with pytest.raises(TrainingError, match="none is kept"):
        agent_rows([trace("b", kept=False)], general(2), count_tokens=count)
    with pytest.raises(TrainingError, match="--general"):
        agent_rows([trace("a")], (), eta=0.2, count_tokens=count)
    with pytest.raises(ConfigError, match="eta is 2"):
        agent_rows([trace("a")], (), eta=2, count_tokens=count)


def test_the_models_own_answers_are_general_rows() -> None:
    generator = FakeGenerator(lambda messages: f"re: {messages[-1]['content'][:9]}")
    rows = own_rows(generator)
    assert len(rows) == len(INSTRUCTIONS) + len(SHORT) and {r.kind for r in rows} == {"own"}
    assert generator.activated == [None] and rows[0].completion.startswith("re: ")
    assert all(not r.also for r in rows)
    assert len(own_rows(FakeGenerator(""))) == 0


def test_general_questions_are_not_those_that_measure_forgetting() -> None:
    from agents.checks import GENERAL

    assert not {q for q, _ in GENERAL} & {*SHORT, *INSTRUCTIONS}


def test_general_files_of_every_form(tmp_path: Path) -> None:
    records: list[Any] = [
        {"instruction": "Say", "input": "hello", "output": "hi"},
        {"prompt": "Say", "completion": "hi"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "u2"}]},
        {"conversations": [{"from": "human", "value": "nobody answered"}]},
    ]  # fmt: skip
    for name, text in (("a.json", json.dumps(records)), ("a.jsonl", "\n".join(map(json.dumps, records)))):
        (tmp_path / name).write_text(text)
        rows = read_general(tmp_path / name)
        assert [r.completion for r in rows] == ["hi", "hi", "a", "a"]
        assert rows[0].prompt[0]["content"] == "Say\n\nhello" and len(rows[2].prompt) == 2
    (tmp_path / "b.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UsageError, match="record 1 has none of the known forms"):
        read_general(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(UsageError, match="neither"):
        read_general(tmp_path / "b.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_general(tmp_path / "none.jsonl")


def test_trace_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(trace()) + "\n\n")
    assert len(read_trace_file(path)) == 1
    for wrong in ("{", '{"id": 1}', json.dumps({"messages": [message("user", "x", True)]})):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="line 1 is no trace"):
            read_trace_file(path)
    with pytest.raises(UsageError, match="ragtune collect"):
        read_trace_file(tmp_path / "none")


def test_a_trace_of_agents_is_a_row_here(tmp_path: Path) -> None:
    """The two rooms meet in files: what one writes the other reads, observations without loss."""
    from agents.imports import fireact_steps, from_fireact
    from agents.traces import write_traces

    text = "Thought: a\nAction: search[x]\nObservation: seen\nThought: b\nAction: finish[y]\nObservation: Episode finished, reward = True\n"
    assert fireact_steps(text)[1] == 1.0
    made = from_fireact({"instruction": "q?", "input": "", "output": text})
    assert made is not None
    write_traces(tmp_path / "t.jsonl", [made])
    rows, _ = agent_rows(read_trace_file(tmp_path / "t.jsonl"), (), eta=1.0, count_tokens=count)
    assert rows[0].completion == "Thought: b\nAction: finish[y]" and rows[0].also == (2,)


def test_the_recipe_is_known() -> None:
    module = recipe("agent")
    assert module.ETA == 0.2 and not module.NEEDS_PASSAGES and module.TRAIN.num_train_epochs >= 1
