"""Retrieval in rounds: the running thought is the next query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError, UsageError
from rag.index import Index, sync
from rag.iterative import Iterative, IterativeConfig
from rag.protocols import Message
from rag.retrieve import Retriever
from rag.types import Finished, Searching, Step, Turn
from tests.fakes import FakeEncoder, FakeGenerator

ASKED = "In which room does the cook work who serves the last warm meal?"


@pytest.fixture()
def retriever(corpus: Path, tmp_path: Path) -> Retriever:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=12, max_words=20))
    return Retriever(Index.open(tmp_path / "index", encoder))


def think(messages: Sequence[Message]) -> str:
    """First the second half of the chain, then nothing new; the answer from the passages."""
    if messages[0]["content"].startswith("Read the passages"):
        return "Tomas Vey is the night cook, name role room." if "Known:" not in messages[1]["content"] else ""
    return "3" if "Tomas" in "".join(m["content"] for m in messages) else "unknown"


def made(retriever: Retriever | None, reply: object = think, **options: int) -> Answerer:
    mode = Iterative(IterativeConfig(**{"per_round": 1, **options}))
    return Answerer(FakeGenerator(reply), retriever, AnswerConfig(k=2), modes={"iterative": mode})  # type: ignore[arg-type]


def test_the_thought_finds_what_the_question_does_not(retriever: Retriever) -> None:
    events = list(made(retriever).stream(ASKED, arm="iterative"))
    assert isinstance(events[0], Searching) and isinstance(events[-1], Finished)
    answer = events[-1].answer
    thoughts = [e.text for e in events if isinstance(e, Step)]
    assert thoughts == ["Tomas Vey is the night cook, name role room."]
    assert [p.chunk.source for p in answer.passages] == ["kitchen.txt", "staff.csv"]
    assert answer.text.startswith("3") and answer.arm == "iterative" and answer.details["rounds"] == 2


def test_batches_and_single_questions_agree(retriever: Retriever) -> None:
    answerer = made(retriever)
    together = answerer.answer_many([ASKED, "When does the ferry to Korr leave?"], arm="iterative")
    alone = [answerer.answer(q, arm="iterative") for q in (ASKED, "When does the ferry to Korr leave?")]
    assert [(a.text, a.passages, a.details) for a in together] == [(a.text, a.passages, a.details) for a in alone]
    frozen = [retriever.search(ASKED, 5)]
    assert answerer.answer_many([ASKED], arm="iterative", retrievals=frozen)[0].text == together[0].text


def test_it_ends_when_nothing_new_comes(retriever: Retriever) -> None:
    answerer = made(retriever, "the same thought", rounds=9)
    answer = answerer.answer(ASKED, arm="iterative")
    assert answer.details["thoughts"] == ["the same thought"]
    answer = made(retriever, "", rounds=9).answer(ASKED, arm="iterative")
    assert answer.details["thoughts"] == [] and answer.abstained


def test_thoughts_come_from_the_base_and_the_answer_from_the_adapter(retriever: Retriever) -> None:
    answerer = made(retriever)
    answerer.adapters["iterative"] = "folder"
    answer = answerer.answer(ASKED, arm="iterative")
    used = [call.adapter for call in answerer.generator.calls]  # type: ignore[attr-defined]
    assert used == [None, None, "folder"] and answer.adapter == "folder"


def test_follow_ups_are_searched_with_what_they_are_about(retriever: Retriever) -> None:
    stream = made(retriever).stream(
        "When does it leave?", arm="iterative", history=[Turn("Where is the ferry?", "pier 4")]
    )
    first = next(iter(stream))
    assert isinstance(first, Searching) and first.query == "Where is the ferry? pier 4 When does it leave?"


def test_the_arm_is_built_in_and_needs_documents(retriever: Retriever) -> None:
    assert Answerer(FakeGenerator(think), retriever).answer(ASKED, arm="iterative").arm == "iterative"
    with pytest.raises(UsageError, match="no index"):
        made(None).answer(ASKED, arm="iterative")
    with pytest.raises(ConfigError, match="rounds"):
        IterativeConfig(rounds=0)
