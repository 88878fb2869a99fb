"""The tool `ask`: simple questions of an agent are answered as the arm without an agent answers them, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.demonstrations import Demonstrator, Task, demonstrate, plain_tasks
from agents.loop import AgentConfig
from agents.react import ReactMode
from agents.tools import Corpus, Toolkit
from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.index import Index, sync
from rag.prompt import ABSTAIN
from rag.protocols import Message
from rag.retrieve import Retriever
from rag.types import Answer, Evidence, Question
from tests.fakes import FakeEncoder, FakeGenerator

LEAVES, COSTS = "When does the ferry to Korr leave?", "What does a return ticket to Korr cost?"


@pytest.fixture()
def retriever(corpus: Path, tmp_path: Path) -> Retriever:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=20, max_words=30))
    return Retriever(Index.open(tmp_path / "index", encoder))


def reply(messages: Sequence[Message]) -> str:
    """An agent that asks its question and passes on the answer, and a reader that knows two."""
    if not messages[0]["content"].startswith("Answer the question with tools"):
        return "07:40" if LEAVES in messages[-1]["content"].split("Passage")[-1] else "18 crowns"
    asked = messages[1]["content"].removeprefix("Question: ").rstrip()
    if len(messages) == 2:
        return f"I ask it.\nAction: ask[{asked}]"
    return f"It says so.\nAction: finish[{messages[-1]['content'].removeprefix('Observation: ').rstrip()}]"


def test_the_tool_is_offered_where_somebody_answers(retriever: Retriever) -> None:
    corpus = Corpus(retriever)
    assert "ask" not in Toolkit(corpus, names=AgentConfig().tools).tools
    kit = Toolkit(corpus, names=AgentConfig().tools, reader=lambda questions: [Answer(q, "", "rag") for q in questions])
    assert next(iter(kit.tools)) == "ask" and kit.call("ask", LEAVES).text == ABSTAIN


def test_what_was_asked_is_cited_counted_and_open(retriever: Retriever) -> None:
    generator = FakeGenerator(reply)
    answerer = Answerer(generator, retriever, AnswerConfig(), modes={"agent": ReactMode()})
    answer = answerer.answer(LEAVES, arm="agent")
    assert answer.text.startswith("07:40 [") and answer.citations[0].source == "ferry.md"
    trace = answer.details["trace"]
    assert [(s["tool"], s["observation"]) for s in trace["steps"]] == [("ask", "07:40"), ("finish", "")]
    alone = answerer.answer(LEAVES, arm="rag")
    assert answer.passages[0].chunk == alone.passages[0].chunk
    agents = sum(c.tokens_in for c in [answer]) - alone.tokens_in
    assert agents > 0 and answer.tokens_out > alone.tokens_out  # both models' tokens are counted

    kit = Toolkit(Corpus(retriever), reader=lambda questions: answerer.answer_many(questions, arm="rag"))
    assert kit.ask(LEAVES) == "07:40" and "07:40" in kit.lookup("leaves")


def test_runs_side_by_side_ask_in_one_batch_with_the_weights_of_tuned_rag(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = FakeGenerator(reply)
    adapters = {"agent": "a", "tuned+rag": "t"}
    answerer = Answerer(generator, retriever, AnswerConfig(), adapters=adapters, modes={"agent": ReactMode()})
    batches: list[tuple[str, int]] = []
    whole = answerer.answer_many

    def counted(questions: Sequence[str], **options: Any) -> list[Answer]:
        batches.append((options["arm"], len(questions)))
        return whole(questions, **options)

    monkeypatch.setattr(answerer, "answer_many", counted)
    answers = answerer.answer_many([LEAVES, COSTS], arm="agent")
    assert batches == [("agent", 2), ("tuned+rag", 2)]
    assert [a.text.split(" [")[0] for a in answers] == ["07:40", "18 crowns"]
    assert generator.active is None and {"a", "t"} <= set(generator.activated)


def test_demonstrations_ask_for_each_part_and_pass_on(retriever: Retriever) -> None:
    parts = (
        Question("a", "What does a return  ticket to Korr cost?", ("18 crowns",), (Evidence("ferry.md", "18 crowns"),)),
        Question("b", "What is the deposit?", ("250 crowns",), (Evidence("boats/loan.md", "250 crowns"),)),
    )
    whole = Question("s", "Both? What is the sum?", ("268 crowns", "268"), parts[0].evidence + parts[1].evidence)
    nobody = Question("n", "Who painted the mill?", (), (), True)
    corpus = Corpus(retriever)
    maker = Demonstrator(
        lambda reader: Toolkit(corpus, names=AgentConfig().tools, reader=reader),
        observation_tokens=80,
        count_tokens=lambda text: len(text.split()),
    )
    tasks = [Task(whole, "calculation", "sum", parts), *plain_tasks([nobody], {})]
    traces, _ = demonstrate(tasks, maker)
    assert [[(s["tool"], s["argument"], s["observation"]) for s in t["steps"]] for t in traces] == [
        [
            ("ask", "What does a return ticket to Korr cost?", "18 crowns"),
            ("ask", "What is the deposit?", "250 crowns"),
            ("calculate", "18 + 250", "268"),
            ("finish", "268 crowns", ""),
        ],
        [("ask", "Who painted the mill?", ABSTAIN), ("finish", ABSTAIN, "")],
    ]
    assert traces[0]["steps"][1]["thought"] == "The first is 18 crowns. I ask the second."
    assert "ask[question]" in traces[0]["messages"][0]["content"]
