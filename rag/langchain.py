"""Adapters to LangChain; needs only `langchain-core` (`pip install "ragtune[langchain]"`).

RagtuneRetriever(retriever=ours)      our Retriever as a LangChain BaseRetriever
RagtuneChatModel(generator=ours)      our Generator as a LangChain BaseChatModel
LangChainGenerator(theirs)            any LangChain chat model as our Generator
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from rag.errors import AdapterMismatch, EndpointError, UsageError
from rag.protocols import Decoding, Generation, Generator, Message, Progress
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

if TYPE_CHECKING:
    import numpy as np


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


def default_options(decoding: Decoding) -> dict[str, Any]:
    """What LangChain's chat models commonly take per call."""
    return {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}


class LangChainGenerator:
    """A LangChain chat model as our `Generator`.

    Args:
        model: any `BaseChatModel`.
        name: how it is called in answers and reports; by default class and model name.
        context_window: tokens it takes; by default its profile's `max_input_tokens`, else 8192.
        count_tokens: its token counter. By default an estimate on the safe side (one token for 3 characters, or for one
            CJK character): LangChain's own default would download a tokenizer.
        options: from a `Decoding` to the keyword arguments of a call; by default `max_tokens` and `temperature`.
        workers: calls made at the same time by `generate`.

    Does not: restrict the output to `copy_from` (chat endpoints cannot), give log-probabilities or token ids (`score`
    and `prompt_ids` raise EndpointError), or take our adapters.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        name: str | None = None,
        context_window: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        options: Callable[[Decoding], Mapping[str, Any]] = default_options,
        workers: int = 4,
    ) -> None:
        self.model = model
        identity = dict(model._get_ls_params())
        kind = type(model).__name__
        self.name = name or f"langchain:{identity.get('ls_model_name') or kind}"
        # Names only: parameters may hold keys or addresses, and a remote model may change behind its name anyway.
        self.fingerprint = content_hash(
            "langchain", kind, str(identity.get("ls_provider")), str(identity.get("ls_model_name"))
        )
        profile = model.profile or {}
        self.context_window = int(context_window or profile.get("max_input_tokens") or 8192)
        self._count = count_tokens or _estimate_tokens
        self._options = options
        self._workers = max(1, workers)

    def count_tokens(self, text: str) -> int:
        """Tokens of the text, by the counter given at the start or an estimate on the safe side."""
        return self._count(text)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Always EndpointError: a LangChain chat model does not show its template."""
        raise EndpointError(
            f"{self.name} is a LangChain chat model, which gives no token ids; use a local model for this"
        )

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: Decoding | Sequence[Decoding] = Decoding(),
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """One generation for each prompt, in order; several calls at a time. EndpointError when a call fails."""
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        if len(decodings) != len(prompts):
            raise UsageError(
                f"{len(prompts)} prompts came with {len(decodings)} decodings; give one for all or one each"
            )
        done: list[Generation] = []
        with ThreadPoolExecutor(min(self._workers, max(1, len(prompts)))) as pool:
            futures = [pool.submit(self._one, p, d) for p, d in zip(prompts, decodings, strict=True)]
            try:
                for future in futures:
                    done.append(future.result())
                    if progress is not None:
                        progress(len(done), len(prompts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # no call that has not begun yet
                raise
        return done

    def _one(self, prompt: Sequence[Message], decoding: Decoding) -> Generation:
        try:
            message = self.model.invoke(list(prompt), **self._arguments(decoding))
        except Exception as error:  # each provider raises its own kind
            raise self._failed(error) from error
        text = _cut_at_stop(_plain(message), decoding.stop)
        usage = message.usage_metadata or {}
        tokens_in = usage.get("input_tokens") or sum(self.count_tokens(m["content"]) for m in prompt)
        return Generation(text, int(tokens_in), int(usage.get("output_tokens") or self.count_tokens(text)))

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        """Pieces of one generation as they come. EndpointError when the model fails."""
        held = ""
        longest = max((len(stop) for stop in decoding.stop), default=1)
        try:
            for chunk in self.model.stream(list(messages), **self._arguments(decoding)):
                held += _plain(chunk)
                if (cut := _cut_at_stop(held, decoding.stop)) != held:
                    held = cut
                    break
                # The last characters may be the beginning of a stop sequence.
                ready = len(held) - (longest - 1)
                if ready > 0:
                    piece, held = held[:ready], held[ready:]
                    yield piece
        except Exception as error:  # each provider raises its own kind
            raise self._failed(error) from error
        if held:
            yield held

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        """Always EndpointError: a LangChain chat model scores no given text."""
        raise EndpointError(
            f"{self.name} is a LangChain chat model, which scores no given answers; use a local model for this"
        )

    def adapter(self, folder: str | None) -> AbstractContextManager[None]:
        """A context that does nothing for None. AdapterMismatch for a folder: these models take no adapters of ours."""
        if folder is not None:
            raise AdapterMismatch(
                f"{self.name} cannot load the adapter {folder}; adapters need the local model they were made for"
            )
        return nullcontext()

    def _arguments(self, decoding: Decoding) -> dict[str, Any]:
        arguments = dict(self._options(replace(decoding, copy_from=None, copy_options=())))
        if decoding.stop:
            arguments["stop"] = list(decoding.stop)
        return arguments

    def _failed(self, error: Exception) -> EndpointError:
        return EndpointError(f"{self.name} failed: {type(error).__name__}: {str(error)[:300]}")


def _plain(message: BaseMessage) -> str:
    """The text of an answer; reasoning and other blocks are left out."""
    if isinstance(message.content, str):
        return message.content
    blocks = message.content
    return "".join(
        b if isinstance(b, str) else str(b.get("text", "")) if b.get("type") == "text" else "" for b in blocks
    )


def _cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Some models ignore `stop`, others end with it: here nothing from the first one on is kept."""
    places = [at for at in (text.find(word) for word in stop if word) if at >= 0]
    return text[: min(places)] if places else text


def _estimate_tokens(text: str) -> int:
    if text.isascii():
        return math.ceil(len(text) / 3)
    wide = sum(1 for character in text if ord(character) > 0x2E7F)
    return wide + math.ceil((len(text) - wide) / 2)
