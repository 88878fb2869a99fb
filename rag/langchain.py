"""Adapters to LangChain; needs only `langchain-core` (`pip install "ragtune[langchain]"`).

RagtuneRetriever(retriever=ours)      our Retriever as a LangChain BaseRetriever
RagtuneChatModel(generator=ours)      our Generator as a LangChain BaseChatModel
LangChainGenerator(theirs)            any LangChain chat model as our Generator
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rag.errors import EndpointError, UsageError
from rag.langchain_generator import LangChainGenerator
from rag.protocols import Decoding, Generator, Message
from rag.types import Chunk, Passage, content_hash

try:  # langchain-core itself needs pydantic
    from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from pydantic import PrivateAttr
except ImportError as error:
    raise ImportError(
        'rag.langchain needs langchain-core; install it with: pip install "ragtune[langchain]"'
    ) from error

__all__ = [
    "LangChainGenerator",
    "RagtuneChatModel",
    "RagtuneRetriever",
    "from_langchain",
    "from_messages",
    "to_langchain",
]


class Searcher(Protocol):
    """What the retriever adapter needs: `rag.retrieve.Retriever` has it."""

    def search(self, query: str, k: int | None = None) -> list[Passage]:
        """The passages for a query, best first."""
        ...


def to_langchain(passage: Passage) -> LangChainDocument:
    """A passage as a LangChain document: `page_content` is the shown text, provenance and scores are metadata.

    `start` and `end` are offsets into the text of the document `source`; `page` counts from 1, None without pages.
    """
    chunk = passage.chunk
    metadata = {
        "source": chunk.source,
        "page": chunk.page,
        "start": chunk.start,
        "end": chunk.end,
        "headings": list(chunk.headings),
        "document_id": chunk.document_id,
        "rank": passage.rank,
        "score": passage.score,
    }
    for stage in ("dense", "lexical", "fused", "rerank"):
        if (value := getattr(passage.scores, stage)) is not None:
            metadata[f"score_{stage}"] = value
    return LangChainDocument(id=chunk.id, page_content=chunk.text, metadata=metadata)


def from_langchain(document: LangChainDocument, rank: int = 1) -> Passage:
    """The inverse of `to_langchain`; documents of other origin get an id by content and offsets of their own text."""
    metadata: Mapping[str, Any] = document.metadata
    text = document.page_content
    source = str(metadata.get("source", ""))
    start = int(metadata.get("start", 0))
    page = metadata.get("page")
    chunk = Chunk(
        id=document.id or content_hash(source, text),
        document_id=str(metadata.get("document_id") or content_hash(source)),
        source=source,
        start=start,
        end=int(metadata.get("end", start + len(text))),
        text=text,
        page=page if isinstance(page, int) else None,
        headings=tuple(metadata.get("headings", ())),
    )
    return Passage(chunk, int(metadata.get("rank", rank)), float(metadata.get("score", 0.0)))


class RagtuneRetriever(BaseRetriever):
    """Our retriever in a LangChain chain.

    `k` None means what the retriever is configured for; `invoke(query, k=3)` overrides it for one call.
    """

    retriever: Any
    """A `rag.retrieve.Retriever`, or anything with its `search`."""
    k: int | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[LangChainDocument]:
        wanted = self.k if k is None else k
        if wanted is not None and wanted < 1:
            raise UsageError(f"k is {wanted}; ask for at least 1 document")
        searcher: Searcher = self.retriever
        return [to_langchain(passage) for passage in searcher.search(query, wanted)]


class RagtuneChatModel(BaseChatModel):
    """Our generator as a LangChain chat model: `invoke`, `batch`, `stream` and their async forms.

    Per call, or bound: `stop`, `max_tokens`, `temperature`, `seed`. Takes system, user and assistant messages of text;
    it calls no tools and reads no images. Calls made at the same time (`batch`) run one after another.
    """

    generator: Any
    """A `rag.protocols.Generator`."""
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    stop: list[str] | None = None
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @property
    def _llm_type(self) -> str:
        return "ragtune"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.generator.name,
            "fingerprint": self.generator.fingerprint,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "ragtune"
        params["ls_model_name"] = kwargs.get("model") or self.generator.name
        return params

    def get_num_tokens(self, text: str) -> int:
        """Tokens of the text as the generator counts them."""
        return int(self.generator.count_tokens(text))

    def _decoding(self, stop: list[str] | None, options: Mapping[str, Any]) -> Decoding:
        if options.get("tools") or options.get("functions"):
            raise UsageError(
                "ragtune generators call no tools; leave out `tools`, or use another chat model for that step"
            )
        if options.get("model") not in (None, self.generator.name):
            raise UsageError(
                f"this chat model is {self.generator.name}; make another RagtuneChatModel for {options['model']}"
            )
        chosen = stop if stop is not None else self.stop or []
        return Decoding(
            max_new_tokens=int(options.get("max_tokens") or self.max_tokens),
            stop=tuple(chosen),
            temperature=float(self.temperature if options.get("temperature") is None else options["temperature"]),
            seed=int(self.seed if options.get("seed") is None else options["seed"]),
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        generator: Generator = self.generator
        with self._lock:  # one local model, one set of weights: threads would only get in each other's way
            [made] = generator.generate([from_messages(messages)], self._decoding(stop, kwargs))
        usage = {
            "input_tokens": made.tokens_in,
            "output_tokens": made.tokens_out,
            "total_tokens": made.tokens_in + made.tokens_out,
        }
        metadata: dict[str, Any] = {"model_name": generator.name, "model_provider": "ragtune"}
        if made.logprob is not None:
            metadata["logprob"] = made.logprob
        message = AIMessage(content=made.text, usage_metadata=usage, response_metadata=metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        generator: Generator = self.generator
        prompt, said = from_messages(messages), []
        pieces = generator.stream(prompt, self._decoding(stop, kwargs))
        try:
            for piece in pieces:
                said.append(piece)
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        finally:
            if close := getattr(pieces, "close", None):
                close()  # whoever stops listening stops the model
        yield ChatGenerationChunk(message=self._last_chunk(prompt, "".join(said)))

    def _last_chunk(self, prompt: list[Message], text: str) -> AIMessageChunk:
        """Counts, once all is said. A stream yields text, so these are counts of the text, without its end token."""
        generator: Generator = self.generator
        try:
            tokens_in = len(generator.prompt_ids(prompt))
        except EndpointError:
            tokens_in = sum(generator.count_tokens(message["content"]) for message in prompt)
        tokens_out = generator.count_tokens(text)
        return AIMessageChunk(
            content="",
            chunk_position="last",
            usage_metadata={
                "input_tokens": tokens_in,
                "output_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
            },
            response_metadata={"model_name": generator.name, "model_provider": "ragtune"},
        )


_ROLES = {"system": "system", "human": "user", "ai": "assistant", "user": "user", "assistant": "assistant"}


def from_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain messages as ours. UsageError for roles or contents that our generators do not take."""
    converted: list[Message] = []
    for message in messages:
        kind = message.role if isinstance(message, ChatMessage) else message.type.removesuffix("MessageChunk").lower()
        if kind not in _ROLES:
            raise UsageError(
                f"a message has the role {kind!r}; ragtune generators take system, user and assistant messages"
            )
        converted.append({"role": _ROLES[kind], "content": _text_of(message)})
    return converted


def _text_of(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block.get("text", "")))
        else:
            raise UsageError(
                f"a message contains a block of type {block.get('type')!r}; ragtune generators read text only"
            )
    return "".join(parts)
