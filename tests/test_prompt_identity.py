"""A model is served with the token ids it was trained on: real rows, the real tokenizer, golden ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rag.answer import AnswerConfig, Answerer
from rag.prompt import PROMPT_VERSION, render
from rag.tokens import ChatTokens
from rag.types import Chunk, Evidence, Passage, Question
from tests.fakes import FakeGenerator
from tuning.rows import RowsConfig, build_rows
from tuning.train import encode_rows

TEXTS = ("The Orrin bridge is 420 metres long.", "The Skarn ferry carries 60 passengers.")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from rag.starters import starter_generator_folder

    return AutoTokenizer.from_pretrained(starter_generator_folder())


def passages() -> list[Passage]:
    return [Passage(Chunk(f"c{i}", "d", f"{i}.md", 0, len(t), t), i, 1 / i) for i, t in enumerate(TEXTS, 1)]


QUESTION = Question("q1", "How long is the Orrin bridge?", ("420 metres",), (Evidence("1.md", TEXTS[0]),))


def test_prompt_ids_of_a_training_row_are_those_that_serving_sends(tokenizer: Any) -> None:
    tokens = ChatTokens(tokenizer)

    def count(text: str) -> int:
        return len(tokens.ids(text))

    rows, _ = build_rows(
        [QUESTION], [passages()], config=RowsConfig(), count_tokens=count, chunks=[p.chunk for p in passages()]
    )
    ((encoded,), dropped) = encode_rows(rows, tokenizer, max_seq_length=2048)
    assert dropped == 0
    generator = FakeGenerator("420 metres")
    generator.count_tokens = count  # type: ignore[method-assign]
    answerer = Answerer(generator, SimpleNamespace(), AnswerConfig(), adapters={"tuned+rag": "A"})  # type: ignore[arg-type]
    answerer.answer_many([QUESTION.question], arm="tuned+rag", retrievals=[passages()])
    served = tokens.prompt_ids(generator.calls[0].messages)
    assert list(encoded.ids[: -encoded.answer]) == served
    assert list(encoded.ids[-encoded.answer :]) == tokens.completion_ids(" 420 metres")


def test_golden_prompt_of_this_version(tokenizer: Any) -> None:
    """Changing the layout makes every adapter's training stale: raise PROMPT_VERSION, then this."""
    tokens = ChatTokens(tokenizer)
    messages = render(QUESTION.question, passages(), count_tokens=lambda t: len(t.split())).messages
    assert PROMPT_VERSION == "3"
    assert tokenizer.decode(tokens.prompt_ids(messages)) == (
        "Passage: The Skarn ferry carries 60 passengers.\nPassage: The Orrin bridge is 420 metres long.\n"
        "Question: How long is the Orrin bridge?\nAnswer:"
    )


def test_a_begun_answer_is_continued_not_ended(tokenizer: Any) -> None:
    tokens = ChatTokens(tokenizer)
    messages = render(QUESTION.question, passages(), count_tokens=lambda t: len(t.split()), style="examples").messages
    ids = tokens.prompt_ids(messages)
    assert tokenizer.decode(ids) == messages[0]["content"] and messages[0]["content"].endswith("\nAnswer:")
    assert not set(ids) & set(tokens.ends)
    begun = [{"role": "user", "content": "How long is it?"}, {"role": "assistant", "content": "Answer:"}]
    assert tokenizer.decode(tokens.prompt_ids(begun)).endswith("<|im_start|>assistant\nAnswer:")
