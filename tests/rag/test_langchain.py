"""The adapters to LangChain: provenance and scores survive, and the standard ways to call work on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from rag.errors import AdapterMismatch, EndpointError, UsageError
from rag.langchain import LangChainGenerator, RagtuneChatModel, RagtuneRetriever, from_langchain, to_langchain
from rag.protocols import Decoding, Generator
from rag.types import Chunk, Passage, Scores
from tests.fakes import FakeGenerator


class Searcher:
    """Three passages; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def search(self, query: str, k: int | None = None) -> list[Passage]:
        self.asked.append((query, k))
        passages = [
            Passage(
                Chunk(f"c{i}", "d", "a/b.pdf", 10 * i, 10 * i + 5, f"text{i}", i + 1, ("Title", "Part")),
                i + 1,
                0.9 - 0.1 * i,
                Scores(dense=0.5, fused=0.9 - 0.1 * i),
            )
            for i in range(3)
        ]
        return passages[:k]


# --- our retriever in a chain ---


def test_retriever_invoke_gives_text_provenance_and_scores() -> None:
    documents = RagtuneRetriever(retriever=Searcher()).invoke("where?")
    assert [d.page_content for d in documents] == ["text0", "text1", "text2"]
    first = documents[0]
    assert first.id == "c0"
    assert first.metadata["source"] == "a/b.pdf"
    assert (first.metadata["page"], first.metadata["start"], first.metadata["end"]) == (1, 0, 5)
    assert first.metadata["score"] == 0.9
    assert first.metadata["score_dense"] == 0.5
    assert "score_rerank" not in first.metadata


def test_retriever_k_of_the_field_of_the_call_and_too_small() -> None:
    searcher = Searcher()
    retriever = RagtuneRetriever(retriever=searcher, k=2)
    assert len(retriever.invoke("a")) == 2
    assert len(retriever.invoke("b", k=1)) == 1
    assert len(RagtuneRetriever(retriever=searcher).invoke("c")) == 3
    assert searcher.asked == [("a", 2), ("b", 1), ("c", None)]
    with pytest.raises(UsageError, match="k is 0"):
        retriever.invoke("d", k=0)


def test_retriever_batch_and_async() -> None:
    retriever = RagtuneRetriever(retriever=Searcher(), k=1)
    assert [[d.id for d in found] for found in retriever.batch(["a", "b"])] == [["c0"], ["c0"]]
    assert [d.id for d in asyncio.run(retriever.ainvoke("a"))] == ["c0"]


def test_passages_go_there_and_back() -> None:
    passage = Searcher().search("x")[1]
    back = from_langchain(to_langchain(passage))
    assert back.chunk == passage.chunk
    assert (back.rank, back.score) == (passage.rank, passage.score)


def test_chain_of_our_retriever_and_our_model() -> None:
    generator = FakeGenerator(lambda messages: "seen: " + messages[-1]["content"])
    chain: Any = (
        {"context": RagtuneRetriever(retriever=Searcher(), k=1), "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_messages([("system", "Answer."), ("human", "{question}")])
        | RagtuneChatModel(generator=generator)
        | StrOutputParser()
    )
    assert chain.invoke("why?") == "seen: why?"
    assert generator.calls[0].messages == (
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "why?"},
    )


# --- our generator as a chat model ---


def test_chat_model_invoke_reports_usage_and_name() -> None:
    message = RagtuneChatModel(generator=FakeGenerator("forty two")).invoke("what?")
    assert isinstance(message, AIMessage)
    assert message.content == "forty two"
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 3
    assert message.usage_metadata["total_tokens"] == message.usage_metadata["input_tokens"] + 3
    assert message.response_metadata["model_name"] == "fake-generator"


def test_chat_model_settings_come_from_field_binding_and_call() -> None:
    generator = FakeGenerator("one two three. four")
    model = RagtuneChatModel(generator=generator, max_tokens=3, temperature=0.5, seed=7)
    assert model.invoke("x").content == "one two three."
    assert generator.calls[-1].decoding == Decoding(3, (), 0.5, 7)
    assert model.bind(stop=["three"]).invoke("x").content == "one two "
    model.invoke("x", max_tokens=9, temperature=0.0, seed=1)
    assert generator.calls[-1].decoding == Decoding(9, (), 0.0, 1)
    assert RagtuneChatModel(generator=generator, stop=["two"]).invoke("x").content == "one "


def test_chat_model_stream_adds_up_and_ends_with_usage() -> None:
    model = RagtuneChatModel(generator=FakeGenerator("a longer answer in pieces"))
    chunks = list(model.stream("x"))
    assert len([c for c in chunks if c.content]) > 2
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == "a longer answer in pieces"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 5

    async def collect() -> str:
        return "".join([str(chunk.content) async for chunk in model.astream("x")])

    assert asyncio.run(collect()) == "a longer answer in pieces"


def test_chat_model_stream_that_is_closed_stops_the_generator() -> None:
    closed: list[bool] = []

    class Endless(FakeGenerator):
        def stream(self, messages: Any, decoding: Decoding = Decoding()) -> Iterator[str]:
            try:
                while True:
                    yield "more "
            finally:
                closed.append(True)

    stream = RagtuneChatModel(generator=Endless()).stream("x")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_chat_model_batch_keeps_order() -> None:
    model = RagtuneChatModel(generator=FakeGenerator(lambda messages: messages[-1]["content"].upper()))
    assert [m.content for m in model.batch(["a", "b", "c"])] == ["A", "B", "C"]


def test_chat_model_takes_roles_and_text_blocks() -> None:
    generator = FakeGenerator("ok")
    blocks: list[Any] = [{"type": "text", "text": "part one, "}, "part two"]
    RagtuneChatModel(generator=generator).invoke(
        [SystemMessage("be brief"), HumanMessage("q"), AIMessage("a"), HumanMessage(blocks)]
    )
    assert [m["role"] for m in generator.calls[0].messages] == ["system", "user", "assistant", "user"]
    assert generator.calls[0].messages[-1]["content"] == "part one, part two"


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        ([ToolMessage("x", tool_call_id="1")], {}, "role 'tool'"),
        ([HumanMessage([{"type": "image_url", "image_url": "data:"}])], {}, "text only"),
        ("x", {"tools": [{"name": "t"}]}, "no tools"),
        ("x", {"model": "another"}, "make another RagtuneChatModel"),
    ],
)
def test_chat_model_refuses_what_it_cannot_do(messages: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        RagtuneChatModel(generator=FakeGenerator()).invoke(messages, **options)


# --- their chat model as our generator ---


def test_langchain_generator_is_a_generator_and_keeps_order() -> None:
    generator = LangChainGenerator(FakeListChatModel(responses=["r0", "r1", "r2"]), workers=1)
    assert isinstance(generator, Generator)
    seen: list[tuple[int, int]] = []
    made = generator.generate(
        [[{"role": "user", "content": str(i)}] for i in range(3)],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [g.text for g in made] == ["r0", "r1", "r2"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(g.tokens_in > 0 and g.tokens_out > 0 for g in made)
    assert generator.generate([]) == []
    with pytest.raises(UsageError, match="1 prompts came with 2 decodings"):
        generator.generate([[{"role": "user", "content": "x"}]], [Decoding(), Decoding()])


def test_langchain_generator_passes_options_and_cuts_at_stop() -> None:
    received: list[dict[str, Any]] = []

    class Recording(FakeListChatModel):
        def _call(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
            received.append({"stop": stop, **kwargs})
            return "first\nsecond"

    [made] = LangChainGenerator(Recording(responses=["unused"])).generate(
        [[{"role": "user", "content": "x"}]], Decoding(12, ("\n",), 0.3, copy_from=("a",))
    )
    assert made.text == "first"
    assert received == [{"stop": ["\n"], "max_tokens": 12, "temperature": 0.3}]


def test_langchain_generator_streams_and_stops_at_a_split_stop_sequence() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("one two END three")] * 2))
    generator = LangChainGenerator(model)
    assert "".join(generator.stream([{"role": "user", "content": "x"}])) == "one two END three"
    assert "".join(generator.stream([{"role": "user", "content": "x"}], Decoding(stop=("END",)))) == "one two "


def test_langchain_generator_refuses_what_a_chat_model_has_not() -> None:
    generator = LangChainGenerator(FakeListChatModel(responses=["r"]), name="mine")
    assert generator.name == "mine"
    with pytest.raises(EndpointError, match="no token ids"):
        generator.prompt_ids([])
    with pytest.raises(EndpointError, match="scores no given"):
        generator.score([], [])
    with pytest.raises(AdapterMismatch, match="cannot load the adapter folder"), generator.adapter("folder"):
        pass
    with generator.adapter(None):
        assert generator.generate([[{"role": "user", "content": "x"}]])[0].text == "r"


def test_langchain_generator_names_the_model_when_a_call_fails() -> None:
    class Broken(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            raise RuntimeError("connection refused")

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            raise RuntimeError("connection refused")
            yield

    generator = LangChainGenerator(Broken(responses=["x"]), name="far")
    with pytest.raises(EndpointError, match="far failed: RuntimeError: connection refused"):
        generator.generate([[{"role": "user", "content": "x"}]])
    with pytest.raises(EndpointError, match="far failed"):
        list(generator.stream([{"role": "user", "content": "x"}]))


def test_langchain_generator_counts_on_the_safe_side() -> None:
    generator = LangChainGenerator(FakeListChatModel(responses=["r"]))
    assert generator.count_tokens("one two three") >= 4
    assert generator.count_tokens("渡船每天出发") == 6
    assert LangChainGenerator(FakeListChatModel(responses=["r"]), count_tokens=len).count_tokens("abc") == 3
