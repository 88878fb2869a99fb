"""Any LangChain chat model as our `Generator`; imported through `rag.langchain`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag.errors import AdapterMismatch, EndpointError, UsageError
from rag.protocols import Decoding, Generation, Message, Progress, as_chat
from rag.types import content_hash

if TYPE_CHECKING:
    import numpy as np
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage


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
            message = self.model.invoke(as_chat(prompt), **self._arguments(decoding))
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
            for chunk in self.model.stream(as_chat(messages), **self._arguments(decoding)):
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
