"""Traces: one schema for all runtimes, judged, kept, resumed, imported, demonstrated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.collect import CollectConfig, CollectReport, collect, merged
from agents.demonstrations import Demonstrator, compose, demonstrate, figure, plain_tasks
from agents.imports import fireact_steps, from_agentinstruct, guess_form, import_traces
from agents.loop import AgentConfig
from agents.react import ReactMode
from agents.rewards import (
    contaminated,
    em_reward,
    f1_reward,
    failure_class,
    find_reward,
    format_errors,
    judge,
    score,
    summary,
)
from agents.tools import Corpus, Toolkit
from agents.traces import check_trace, read_traces, write_traces
from rag.answer import Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError, UsageError
from rag.index import Index, sync
from rag.protocols import Message
from rag.retrieve import Retriever
from rag.types import Evidence, Question
from tests.fakes import FakeEncoder, FakeGenerator, words

QUESTIONS = [
    Question("a", "When does the ferry to Korr leave?", ("07:40",), (Evidence("ferry.md", "The ferry to Korr leaves at 07:40 from pier 4."),)),
    Question("b", "What does a return ticket to Korr cost?", ("18 crowns",), (Evidence("ferry.md", "A return ticket costs 18 crowns."),)),
    Question("c", "What is the deposit for the blue boat?", ("250 crowns",), (Evidence("boats/loan.md", "The deposit is 250 crowns."),)),
    Question("d", "What does a late library book cost per week?", ("2 crowns",), (Evidence("library.html", "A late book costs 2 crowns per week."),)),
    Question("e", "Who is the king of the moon?", (), (), unanswerable=True),
]  # fmt: skip
KINDS = {"a": "fact", "b": "number", "c": "number", "d": "number", "e": "unanswerable"}


@pytest.fixture()
def retriever(corpus: Path, tmp_path: Path) -> Retriever:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=20, max_words=30))
    return Retriever(Index.open(tmp_path / "index", encoder))


def right(messages: Sequence[Message]) -> str:
    """Right about all but the boat; one malformed action about the library."""
    asked = messages[1]["content"].removeprefix("Question: ").rstrip()
    question = next(q for q in QUESTIONS if q.question == asked)
    if question.id == "d" and len(messages) == 2:
        return "x\nAction: search library"
    if len(messages) < 4:
        return f"I look.\nAction: search[{asked}]"
    said = {"c": "99 crowns", "e": "Not in the documents."}.get(question.id) or question.answers[0]
    return f"So.\nAction: finish[{said}]"


def gather(retriever: Retriever, out: Path, reply: Any = right, **more: Any) -> CollectReport:
    mode = ReactMode(AgentConfig())
    made = Answerer(FakeGenerator(reply), retriever, modes={"agent": mode})
    options = {"reward": f1_reward, "kinds": KINDS, **more}
    return collect(made, mode, QUESTIONS, out, **options)


def test_traces_are_judged_and_kept(retriever: Retriever, tmp_path: Path) -> None:
    report = gather(retriever, tmp_path / "t.jsonl")
    traces = read_traces(tmp_path / "t.jsonl")
    assert [t["id"] for t in traces] == ["a", "b", "c", "d", "e"]
    assert [t["kept"] for t in traces] == [True, True, False, True, True]
    assert [t["reward"] for t in traces] == [1.0, 1.0, 0.5, 1.0, 1.0]
    assert traces[2]["failure"] == "wrong answer" and report.dropped == {"below the threshold": 1}
    assert report.summary["kinds"]["number"] == {"n": 3, "kept": 2, "reward": 0.8333, "share_kept": 0.6667}
    assert report.summary["steps"] == 10 and report.summary["format_errors"] == 0.1
    assert not (tmp_path / "t.jsonl.partial").exists()


def test_what_is_learnt_is_what_the_model_should_say(retriever: Retriever, tmp_path: Path) -> None:
    gather(retriever, tmp_path / "t.jsonl")
    trace = read_traces(tmp_path / "t.jsonl")[3]
    learnt = [m["content"] for m in trace["messages"] if m["loss"]]
    assert learnt[-1] == "Thought: So.\nAction: finish[2 crowns]" and len(learnt) == 1
    assert not any(m["loss"] for m in trace["messages"] if "Observation" in m["content"])
    malformed = next(m for m in trace["messages"] if m["role"] == "assistant")
    assert not malformed["loss"]


def test_an_interrupted_collection_goes_on(retriever: Retriever, tmp_path: Path) -> None:
    def stop(done: int, total: int, detail: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "t.jsonl"
    config = CollectConfig(rows=1)
    with pytest.raises(KeyboardInterrupt):
        gather(retriever, out, progress=stop, config=config)
    partial = out.with_name("t.jsonl.partial")
    assert not out.exists() and len(partial.read_text().splitlines()) == 3
    with partial.open("a") as file:
        file.write('{"number": 4, "tr')  # killed in the middle of a line
    report = gather(retriever, out, config=config)
    assert report.resumed == 2
    gather(retriever, tmp_path / "whole.jsonl", config=config)

    def timeless(path: Path) -> list[Any]:
        return [{**t, "seconds": 0, "steps": [{**s, "seconds": 0} for s in t["steps"]]} for t in read_traces(path)]

    assert timeless(out) == timeless(tmp_path / "whole.jsonl")


def test_another_collection_is_not_continued(retriever: Retriever, tmp_path: Path) -> None:
    def stop(done: int, total: int, detail: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(retriever, tmp_path / "t.jsonl", progress=stop)
    with pytest.raises(UsageError, match=r"begun with another seed.*--restart"):
        gather(retriever, tmp_path / "t.jsonl", config=CollectConfig(seed=1))
    assert gather(retriever, tmp_path / "t.jsonl", config=CollectConfig(seed=1), resume=False).resumed == 0


def test_a_reward_that_raises_is_counted(retriever: Retriever, tmp_path: Path) -> None:
    def broken(answer: str, question: Question) -> float:
        if question.id == "b":
            raise ZeroDivisionError
        return float("nan") if question.id == "c" else 1.0

    report = gather(retriever, tmp_path / "t.jsonl", reward=broken)
    traces = read_traces(tmp_path / "t.jsonl")
    assert [t["reward"] for t in traces] == [1.0, None, None, 1.0, 1.0]
    assert report.summary["failures"] == {"reward function failed": 2} and report.summary["kept"] == 3


def test_traces_that_share_words_with_the_test_file_are_not_kept(retriever: Retriever, tmp_path: Path) -> None:
    held_out = [Question("x", "When does the ferry to Korr leave?", ("07:40",))]
    report = gather(retriever, tmp_path / "t.jsonl", test=held_out)
    assert report.dropped["contaminated"] == 1 and not read_traces(tmp_path / "t.jsonl")[0]["kept"]
    ten = "one two three four five six seven eight nine ten"
    assert contaminated([f"start {ten} end", "one two three", "four five"], [f"other {ten}", "one two three"]) == [
        True, True, False
    ]  # fmt: skip


def test_of_several_samples_the_best_is_kept(retriever: Retriever, tmp_path: Path) -> None:
    replies = iter(range(100))

    def reply(messages: Sequence[Message]) -> str:
        return f"So.\nAction: finish[{'07:40' if next(replies) % 2 else 'no idea'}]"

    mode = ReactMode(AgentConfig())
    generator = FakeGenerator(reply)
    made = Answerer(generator, retriever, modes={"agent": mode})
    report = collect(
        made, mode, QUESTIONS[:1], tmp_path / "t.jsonl", reward=em_reward, config=CollectConfig(samples=3, rows=1)
    )
    assert report.summary["kept"] == 1 and report.summary["traces"] == 3
    assert [c.decoding.temperature for c in generator.calls] == [0.0, 0.7, 0.7]
    assert len({c.decoding.seed for c in generator.calls}) == 3


def test_rewards() -> None:
    fact = Question("x", "?", ("Orrin bridge",))
    assert f1_reward("the Orrin bridge [2]", fact) == 1.0 and em_reward("Orrin", fact) == 0.0
    assert f1_reward("yes, the bridge", Question("x", "?", ("yes",))) == 0.0
    assert f1_reward("I do not know", Question("e", "?", (), unanswerable=True)) == 1.0
    assert score(lambda a, q: 7.0, "x", fact) is None
    assert find_reward("em") is em_reward
    for wrong in ("nope", "no.module:f", "json:nothing", "json:__name__"):
        with pytest.raises(UsageError, match="reward"):
            find_reward(wrong)


def test_a_users_reward_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reward_for_test.py").write_text("def half(answer, question):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert find_reward("my_reward_for_test:half")("x", QUESTIONS[0]) == 0.5


def trace_like(**changes: Any) -> dict[str, Any]:
    base = {
        "question": "q?", "reward": 0.0, "unanswerable": False, "ended": "finish", "fallback": "", "answer": "x",
        "steps": [{"problem": ""}], "kind": "", "kept": False, "failure": "",
        "counts": {"steps": 1, **dict.fromkeys(("bad_calls", "invalid_actions", "repeated_actions", "tool_failures", "dropped", "tokens_in", "tokens_out"), 0)},
    }  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward": None}, "reward function failed"),
        ({"reward": 1.0}, "right"),
        ({}, "wrong answer"),
        ({"unanswerable": True}, "answered the unanswerable"),
        ({"ended": "repeats"}, "repeated itself"),
        ({"ended": "steps", "fallback": "empty"}, "no answer within the budget"),
        ({"ended": "steps", "fallback": "forced"}, "wrong answer, steps used up"),
        ({"steps": [{"problem": "brackets"}]}, "format errors"),
        ({"answer": "Not in the documents."}, "abstained wrongly"),
    ],
)
def test_failure_classes(changes: dict[str, Any], expected: str) -> None:
    assert failure_class(trace_like(**changes), 1.0) == expected


def test_equal_questions_keep_the_shortest_right_trace() -> None:
    long = trace_like(reward=1.0, steps=[{"problem": ""}] * 3, question="What is it?")
    short = trace_like(reward=1.0, question="what is it")
    judged, dropped = judge([long, short], keep=1.0)
    assert [t["kept"] for t in judged] == [False, True] and dropped == {"duplicate": 1}
    both = merged([long], [trace_like(reward=0.2, question="What is it?")], keep=1.0)
    assert sorted(t["kept"] for t in both) == [False, True]
    assert summary([]) | {} and format_errors([]) == 0.0


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"keep": 2.0}, {"samples": 0}, {"samples": 2, "temperature": 0.0}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CollectConfig(**wrong)


# ---------------------------------------------------------------- demonstrations


def make_demonstrator(retriever: Retriever) -> Demonstrator:
    corpus = Corpus(retriever)
    return Demonstrator(lambda _: Toolkit(corpus), observation_tokens=80, count_tokens=lambda t: len(words(t)))


def test_a_demonstration_reads_what_it_answers(retriever: Retriever) -> None:
    [trace], counts = demonstrate(plain_tasks(QUESTIONS[:1], KINDS), make_demonstrator(retriever))
    assert check_trace(trace) == [] and counts == {"fact": {"tried": 1, "kept": 1}}
    assert [m["content"].split("(ferry)")[0] for m in trace["messages"][1:]] == [
        "Question: When does the ferry to Korr leave?\n",
        "Thought: I search for it.\nAction: search[When does the ferry to Korr leave?]",
        "Observation: ",
        "Thought: It says 07:40.\nAction: finish[07:40]",
    ]
    assert trace["runtime"] == "demonstration" and trace["kept"] and trace["reward"] == 1.0


def test_what_cannot_be_read_is_not_demonstrated(retriever: Retriever) -> None:
    wrong = Question("w", "When does the ferry to Korr leave?", ("noon",), (Evidence("ferry.md", "noon"),))
    traces, counts = demonstrate(plain_tasks([wrong, QUESTIONS[4]], {}), make_demonstrator(retriever))
    assert [t["answer"] for t in traces] == ["Not in the documents."] and counts["question"]["tried"] == 2


def test_composed_questions_take_two_documents_and_arithmetic(retriever: Retriever) -> None:
    tasks = compose(QUESTIONS, 12, seed=3)
    assert tasks == compose(QUESTIONS, 12, seed=3) != compose(QUESTIONS, 12, seed=4)
    assert {t.form for t in tasks} == {"sum", "difference", "times", "both", "larger"}
    for task in tasks:
        if len(task.parts) == 2:
            assert len({e.source for e in task.question.evidence}) == 2
    traces, _ = demonstrate(tasks, make_demonstrator(retriever))
    by_id = {t["id"]: t for t in traces}
    for task in tasks:
        if task.form == "sum" and task.question.id in by_id:
            trace = by_id[task.question.id]
            tools = [s["tool"] for s in trace["steps"]]
            assert tools == ["search", "search", "calculate", "finish"]
            assert em_reward(trace["answer"], task.question) == 1.0
    assert any(s["tool"] == "calculate" for t in traces for s in t["steps"])
    for trace in traces:
        assert check_trace(trace) == []
        task = next(t for t in tasks if t.question.id == trace["id"])
        assert em_reward(trace["answer"], task.question) == 1.0


def test_figures() -> None:
    one = figure("1,950 crowns")
    assert one is not None and (one.value, one.unit, one.written) == (1950.0, "crowns", "1950")
    for text in ("07:40", "44 of 59 evenings", "more than 60 minutes", "nine", "12 to 14", "RP-5"):
        assert figure(text) is None


# ---------------------------------------------------------------------- imports


def test_agentinstruct_keeps_its_marks() -> None:
    record = {
        "id": "os_1",
        "conversations": [
            {"from": "human", "loss": None, "value": "You are an assistant. Task: count files."},
            {"from": "gpt", "loss": False, "value": "Ok."},
            {"from": "human", "loss": None, "value": "Begin."},
            {"from": "gpt", "loss": True, "value": "Think: list them.\n\nAct: bash\n\nls"},
            {"from": "human", "loss": None, "value": "a b"},
        ],
    }
    trace = from_agentinstruct(record)
    assert trace is not None and check_trace(trace) == []
    assert [m["loss"] for m in trace["messages"]] == [False, False, False, True]
    assert guess_form(record) == "agentinstruct"


def test_fireact_observations_and_rewards_are_split_off() -> None:
    text = (
        "Thought: I look.\nAction: search[x]\nObservation: seen\nThought: a\nThought: b\nAction: finish[y]\n"
        "Observation: Episode finished, reward = True\n"
    )
    steps, reward = fireact_steps(text)
    assert [(s.thought, s.tool, s.argument, s.observation) for s in steps] == [
        ("I look.", "search", "x", "seen"), ("a b", "finish", "y", ""),
    ]  # fmt: skip
    assert reward == 1.0


def test_published_samples(shared_data: Path) -> None:
    for name, count in (("fireact_hotpotqa_react.json", 500), ("glaive_toolcall_en_demo.json", 300)):
        traces = import_traces(shared_data / "agent" / name)
        assert len(traces) == count and not any(check_trace(t) for t in traces)
        for message in (m for t in traces for m in t["messages"] if m["loss"]):
            assert message["role"] == "assistant"
            assert "Observation:" not in message["content"] and "reward =" not in message["content"]


def test_imports_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for text, match in (("{", "neither JSON"), ("[]", "no list"), ('[{"a": 1}]', "known forms")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UsageError, match=match):
            import_traces(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('[{"instruction": "q", "output": "Thought: x"}, {"instruction": 3}]')
    with pytest.raises(UsageError, match="record 2"):
        import_traces(tmp_path / "x.json")


# ----------------------------------------------------------------------- schema


def test_broken_trace_files_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(UsageError, match="no file of traces"):
        read_traces(path)
    path.write_text('{"format": 1}\n')
    with pytest.raises(UsageError, match="line 1 is no trace"):
        read_traces(path)
    path.write_text("{\n")
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        read_traces(path)


def test_the_schema_refuses_loss_on_others(retriever: Retriever, tmp_path: Path) -> None:
    gather(retriever, tmp_path / "t.jsonl")
    trace = read_traces(tmp_path / "t.jsonl")[0]
    wrong = json.loads(json.dumps(trace))
    wrong["messages"][1]["loss"] = True
    assert check_trace(wrong) == ["loss on a message of text"]
    assert check_trace({**trace, "extra": 1}) == ["extra is unknown"]
    assert check_trace({**trace, "seed": "0"}) == ["seed is str"]
    write_traces(tmp_path / "again.jsonl", [trace])
    assert read_traces(tmp_path / "again.jsonl") == [trace]


# ----------------------------------------------------------------------- native


@pytest.fixture()
def scripted() -> Iterator[Any]:
    """A chat model that calls tools as it was told to."""
    core = pytest.importorskip("langchain_core.language_models")
    pytest.importorskip("langchain.agents")
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Scripted(core.BaseChatModel):  # type: ignore[misc,name-defined]
        script: list[Any]
        seen: list[Any] = []  # noqa: RUF012

        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            self.seen.append(list(messages))
            item = self.script[min(len(self.seen), len(self.script)) - 1]
            usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
            if isinstance(item, str):
                message = AIMessage(item, usage_metadata=usage)
            else:
                name, arguments = item
                call = {"name": name, "args": arguments, "id": f"c{len(self.seen)}"}
                message = AIMessage("I look.", tool_calls=[call], usage_metadata=usage)
            return ChatResult(generations=[ChatGeneration(message=message)])

    yield Scripted


def native(retriever: Retriever, model: Any, **options: Any) -> Any:
    from agents.native import NativeMode
    from rag.langchain import LangChainGenerator

    mode = NativeMode(AgentConfig(**options))
    return Answerer(LangChainGenerator(model), retriever, modes={"agent": mode})


def test_both_runtimes_give_the_same_events_and_the_same_schema(retriever: Retriever, scripted: Any) -> None:
    model = scripted(script=[("search", {"query": "ferry to Korr"}), "07:40"])
    events = list(native(retriever, model).stream(QUESTIONS[0].question, arm="agent"))
    theirs = events[-1].answer
    text = Answerer(
        FakeGenerator(["I look.\nAction: search[ferry to Korr]", "I know the answer.\nAction: finish[07:40]"]),
        retriever, modes={"agent": ReactMode()},
    )  # fmt: skip
    ours = text.answer(QUESTIONS[0].question, arm="agent")
    for answer in (theirs, ours):
        assert check_trace(answer.details["trace"]) == []
    assert theirs.text == ours.text and theirs.citations == ours.citations
    assert theirs.details["trace"]["messages"] == ours.details["trace"]["messages"]
    assert set(theirs.details["trace"]) == set(ours.details["trace"])
    assert [type(e).__name__ for e in events] == ["Searching", "Step", "Step", "Step", "Step", "Token", "Finished"]
    assert theirs.tokens_in == 20 and theirs.tokens_out == 10


def test_native_budgets_end_in_the_same_policies(retriever: Retriever, scripted: Any) -> None:
    for end, answer in (("forced", "07:40"), ("empty", "Not in the documents.")):
        searches = [("search", {"query": f"ferry {i}"}) for i in range(3)]
        made = native(retriever, scripted(script=[*searches, "07:40"]), steps=3, end=end)
        said = made.answer(QUESTIONS[0].question, arm="agent")
        assert said.text.startswith(answer) and said.details["agent"]["ended"] == "steps"
        assert said.details["agent"]["fallback"] == end and check_trace(said.details["trace"]) == []


def test_native_repetition_and_unknown_tools(retriever: Retriever, scripted: Any) -> None:
    same = ("search", {"query": "ferry"})
    said = native(retriever, scripted(script=[same, same, same, "x"])).answer("q?", arm="agent")
    assert said.details["agent"]["ended"] == "repeats" and said.details["agent"]["repeated_actions"] == 2
    said = native(retriever, scripted(script=[("fly", {"to": "home"}), "x"])).answer("q?", arm="agent")
    assert said.details["agent"]["invalid_actions"] == 1 and said.text == "x"


def test_native_traces_are_collected(retriever: Retriever, scripted: Any, tmp_path: Path) -> None:
    model = scripted(script=["07:40"])
    made = native(retriever, model)
    report = collect(made, made.modes["agent"], QUESTIONS[:2], tmp_path / "t.jsonl", reward=em_reward)
    traces = read_traces(tmp_path / "t.jsonl")
    assert [t["runtime"] for t in traces] == ["native", "native"] and report.summary["kept"] == 1


def test_a_local_model_has_no_native_calls(retriever: Retriever) -> None:
    from agents.native import NativeMode

    made = Answerer(FakeGenerator(), retriever, modes={"agent": NativeMode()})
    with pytest.raises(UsageError, match="--runtime react"):
        made.answer("q?", arm="agent")
