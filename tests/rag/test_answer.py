"""Answering: events, arms, frozen retrievals, citations, bad questions; fake models over a real index."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.answer import MAX_QUESTION, AnswerConfig, Answerer
from rag.errors import ConfigError, UsageError
from rag.index import Index, sync
from rag.prompt import ABSTAIN
from rag.retrieve import RetrievalConfig, Retriever
from rag.types import Finished, Retrieved, Searching, Token, Turn
from tests.fakes import FakeEncoder, FakeGenerator


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "bridge.md").write_text(
        "# Bridge\n\nThe Orrin bridge is 420 metres long. Mayor Tessa Vane opened it in 1911.\n"
    )
    (docs / "ferry.md").write_text(
        "# Ferry\n\nThe Skarn ferry carries 60 passengers. It sails at 7:15 every morning.\n"
    )
    encoder = FakeEncoder()
    sync(tmp_path / "index", [docs], encoder)
    return Retriever(Index.open(tmp_path / "index", encoder), RetrievalConfig(k=2))


def test_a_run_is_searching_retrieved_tokens_finished(retriever: Retriever) -> None:
    answerer = Answerer(FakeGenerator("420 metres"), retriever)
    events = list(answerer.stream("How long is the Orrin bridge?"))
    assert isinstance(events[0], Searching) and events[0].chunks == 2
    assert isinstance(events[1], Retrieved) and events[1].passages[0].chunk.source == "bridge.md"
    tokens = [e.text for e in events[2:-1] if isinstance(e, Token)]
    assert "".join(tokens) == "420 metres" and len(tokens) == len(events) - 3
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert answer.text == "420 metres [1]" and answer.arm == "rag" and not answer.abstained
    (citation,) = answer.citations
    text = retriever.index.text(citation.source)
    assert text[citation.start : citation.end] == citation.quote == "The Orrin bridge is 420 metres long."


def test_closed_book_arms_retrieve_nothing(retriever: Retriever) -> None:
    generator = FakeGenerator("I guess 300 metres")
    events = list(Answerer(generator, retriever).stream("How long is the Orrin bridge?", arm="base"))
    assert not any(isinstance(e, (Searching, Retrieved)) for e in events)
    assert "420" not in generator.calls[0].messages[-1]["content"]
    last = events[-1]
    assert isinstance(last, Finished) and last.answer.passages == () and last.answer.citations == ()


def test_tuned_arms_answer_through_their_adapter_and_without_examples(retriever: Retriever) -> None:
    generator = FakeGenerator("base", adapters={"A": "tuned", "B": "tuned with passages"})
    answerer = Answerer(generator, retriever, adapters={"tuned": "A", "tuned+rag": "B"})
    assert answerer.answer("How long?", arm="tuned").text == "tuned"
    assert answerer.answer("How long?", arm="tuned+rag").adapter == "B"
    assert answerer.answer("How long?", arm="base").adapter is None
    assert [c.adapter for c in generator.calls] == ["A", "B", None]
    asked = [call.messages[0]["content"].count("Question: ") for call in generator.calls]
    assert asked == [1, 1, 5]  # the base alone sees four worked examples


def test_an_arm_without_adapter_is_refused_with_the_way_out(retriever: Retriever) -> None:
    with pytest.raises(UsageError, match="ragtune decide"):
        Answerer(FakeGenerator(), retriever).answer("How long?", arm="tuned+rag")
    with pytest.raises(UsageError, match=r'no arm "magic".*base, rag, tuned'):
        Answerer(FakeGenerator(), retriever).answer("How long?", arm="magic")


def test_frozen_retrievals_are_used_as_they_are(retriever: Retriever) -> None:
    frozen = [retriever.search("ferry passengers", 1)]
    (answer,) = Answerer(FakeGenerator("60"), retriever).answer_many(
        ["How long is the Orrin bridge?"], arm="oracle", retrievals=frozen
    )
    assert [p.chunk.source for p in answer.passages] == ["ferry.md"] and answer.arm == "oracle"
    with pytest.raises(UsageError, match="2 questions"):
        Answerer(FakeGenerator(), retriever).answer_many(["a", "b"], arm="rag", retrievals=frozen)


def test_many_answers_equal_single_answers(retriever: Retriever) -> None:
    questions = ["How long is the Orrin bridge?", "When does the Skarn ferry sail?"]
    answerer = Answerer(FakeGenerator(lambda m: m[-1]["content"].rsplit("Question: ")[-1][:12]), retriever)
    many = answerer.answer_many(questions, arm="rag")
    single = [answerer.answer(q) for q in questions]
    assert [a.text for a in many] == [a.text for a in single]
    assert [a.passages for a in many] == [a.passages for a in single]


def test_an_honest_no_is_an_abstention_without_citations(retriever: Retriever) -> None:
    answer = Answerer(FakeGenerator("Not in the documents"), retriever).answer("Who is the king?")
    assert answer.abstained and answer.citations == ()
    empty = Answerer(FakeGenerator(""), retriever).answer("Who is the king?")
    assert empty.abstained and empty.text == ABSTAIN
    assert Answerer(FakeGenerator("I don't know."), retriever).answer("Who is the king?", arm="base").abstained


def test_copy_decoding_is_limited_to_the_shown_passages(retriever: Retriever) -> None:
    generator = FakeGenerator("420 metres")
    Answerer(generator, retriever, AnswerConfig(decoding="copy", k=1)).answer("How long is the Orrin bridge?")
    copy_from = generator.calls[0].decoding.copy_from
    assert copy_from is not None and len(copy_from) == 1 and "420 metres" in copy_from[0]


def test_a_follow_up_question_finds_what_it_is_about(retriever: Retriever) -> None:
    history = [Turn("How many passengers does the Skarn ferry carry?", "60 [1]")]
    events = list(Answerer(FakeGenerator("7:15"), retriever).stream("When does it sail?", history=history))
    assert isinstance(events[1], Retrieved) and events[1].passages[0].chunk.source == "ferry.md"


@pytest.mark.parametrize("question", ["", "   \n", "x" * (MAX_QUESTION + 1)])
def test_empty_and_endless_questions_are_refused_before_anything_runs(retriever: Retriever, question: str) -> None:
    generator = FakeGenerator()
    with pytest.raises(UsageError, match="question"):
        Answerer(generator, retriever).answer(question)
    assert generator.calls == []


def test_impossible_settings_name_the_field() -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        AnswerConfig(k=0)
    with pytest.raises(ConfigError, match=r"style is 'loud'.*examples, short, cited"):
        AnswerConfig(style="loud")  # type: ignore[arg-type]
