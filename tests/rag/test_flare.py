"""Forward-looking retrieval on the starter: when it searches again, with what, and that nothing is counted wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.answer import AnswerConfig, Answerer
from rag.chunk import ChunkConfig
from rag.errors import ConfigError, UsageError
from rag.flare import Draft, Flare, FlareConfig, Writer
from rag.index import Index, sync
from rag.models import load_generator
from rag.retrieve import Retriever
from rag.types import Finished, Retrieved, Searching, Step, Token
from tests.fakes import FakeEncoder, FakeGenerator

QUESTION = "What does the ferry carry?"


@pytest.fixture(scope="module")
def generator() -> Any:
    return load_generator("starter", dtype="fp32")


@pytest.fixture()
def retriever(corpus: Path, tmp_path: Path) -> Retriever:
    encoder = FakeEncoder()
    sync(tmp_path / "index", [corpus], encoder, chunk=ChunkConfig(words=12, max_words=20))
    return Retriever(Index.open(tmp_path / "index", encoder))


def answerer(generator: Any, retriever: Retriever | None, config: FlareConfig, **settings: Any) -> Answerer:
    options = {"k": 1, "max_new_tokens": 8, **settings}
    return Answerer(generator, retriever, AnswerConfig(**options), modes={"flare": Flare(config)})


def test_with_theta_0_it_never_searches_again_and_says_what_rag_says(generator: Any, retriever: Retriever) -> None:
    made = answerer(generator, retriever, FlareConfig(theta=0.0))
    flare, rag = made.answer(QUESTION, arm="flare"), made.answer(QUESTION, arm="rag")
    assert flare.text == rag.text and flare.passages == rag.passages and flare.arm == "flare"
    assert flare.details["searches"] == 0 and 0 < flare.details["least"] <= 1
    assert all(draft["query"] == "" for draft in flare.details["drafts"])


def test_with_theta_1_it_searches_with_the_question_and_the_draft(generator: Any, retriever: Retriever) -> None:
    events = list(answerer(generator, retriever, FlareConfig(theta=1.0, beta=0.0)).stream(QUESTION, arm="flare"))
    assert isinstance(events[0], Searching) and isinstance(events[-1], Finished)
    answer = events[-1].answer
    draft = answer.details["drafts"][0]
    assert answer.details["searches"] >= 1
    assert draft["query"].startswith(QUESTION) and draft["query"].endswith(" ".join(draft["text"].split()))
    steps = [e for e in events if isinstance(e, Step)]
    assert steps[0].kind == "search" and dict(steps[0].data) == draft
    assert len([e for e in events if isinstance(e, Retrieved)]) == 1 + answer.details["searches"]
    assert "".join(e.text for e in events if isinstance(e, Token)).strip().startswith(answer.text.split(" [")[0][:5])


def test_a_draft_without_a_sure_token_is_no_query(generator: Any, retriever: Retriever) -> None:
    answer = answerer(generator, retriever, FlareConfig(theta=1.0, beta=1.0)).answer(QUESTION, arm="flare")
    assert answer.details["searches"] == 0 and answer.details["drafts"][0]["query"] == ""


def test_no_more_searches_than_allowed(generator: Any, retriever: Retriever) -> None:
    config = FlareConfig(theta=1.0, beta=0.0, look_ahead=2, searches=1)
    answer = answerer(generator, retriever, config).answer(QUESTION, arm="flare")
    assert answer.details["searches"] == 1


def test_probabilities_are_those_of_the_tokens(generator: Any) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    prompt = generator.prompt_ids(messages)
    draft = Writer(generator, None, ()).draft(prompt, (), 6)
    text = generator.tokenizer.decode(draft.tokens)
    assert generator.completion_ids(text)[: len(draft.tokens)] == list(draft.tokens)
    scored = generator.score([messages], [text])[0][: len(draft.tokens)]
    assert np.allclose(np.log(draft.probabilities), scored, atol=2e-2)
    assert draft.least == min(draft.probabilities) and Draft((), (), "", True).least == 1.0


def test_a_draft_goes_on_where_it_was_in_another_context(generator: Any) -> None:
    """Only what differs is run again, and the result is that of a fresh start."""
    first = generator.prompt_ids([{"role": "user", "content": "The ferry is red. What colour is it?"}])
    other = generator.prompt_ids([{"role": "user", "content": "The ferry is blue. What colour is it?"}])
    writer = Writer(generator, None, ())
    said = writer.draft(first, (), 3).tokens
    again = writer.draft(other, said[:1], 4)
    fresh = Writer(generator, None, ()).draft(other, said[:1], 4)
    assert again.tokens == fresh.tokens
    assert np.allclose(again.probabilities, fresh.probabilities, atol=1e-2)


def test_a_sentence_ends_where_the_next_begins(generator: Any) -> None:
    messages = [{"role": "user", "content": "Tell me about ferries in three short sentences."}]
    writer = Writer(generator, None, ())
    prompt = generator.prompt_ids(messages)
    first = writer.draft(prompt, (), 60)
    second = writer.draft(prompt, first.tokens, 60)
    assert not first.ended and first.text.rstrip().endswith((".", "!", ":"))
    assert second.text.strip() and second.text not in first.text


def test_many_questions_start_from_frozen_passages(generator: Any, retriever: Retriever) -> None:
    made = answerer(generator, retriever, FlareConfig(theta=0.0))
    frozen = retriever.search_many([QUESTION, "When does the kitchen close?"], 3)
    told: list[tuple[int, int]] = []
    answers = made.answer_many(
        [QUESTION, "When does the kitchen close?"], arm="flare", retrievals=frozen,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert [a.passages[0].chunk.id for a in answers] == [p[0].chunk.id for p in frozen]
    assert answers[0].text == made.answer(QUESTION, arm="flare").text and told == [(1, 2), (2, 2)]
    assert made.answer_many([], arm="flare") == []


def test_what_it_cannot_do_is_said(generator: Any, retriever: Retriever) -> None:
    with pytest.raises(UsageError, match="probability of every token, which fake-generator does not tell"):
        answerer(FakeGenerator(), retriever, FlareConfig()).answer(QUESTION, arm="flare")
    with pytest.raises(UsageError, match="no index was given"):
        answerer(generator, None, FlareConfig()).answer(QUESTION, arm="flare")
    for wrong in ({"theta": 1.5}, {"beta": -0.1}, {"look_ahead": 0}, {"searches": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FlareConfig(**wrong)  # type: ignore[arg-type]


def test_the_answerer_knows_the_arm() -> None:
    assert isinstance(Answerer(FakeGenerator()).mode("flare"), Flare)  # type: ignore[arg-type]
