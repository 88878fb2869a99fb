"""What a model must be able to do; `rag.models` has the implementations, `tests/fakes.py` the fakes.

Kept apart from `rag.models` so that code and tests that only *use* models import neither torch nor transformers.
A message is `{"role": "system" | "user" | "assistant", "content": str}`, as a tokenizer's chat template takes it.
Where the last message is the assistant's, it is the beginning of the answer, and the model continues it.
A conversation that begins with a message of the role `TEXT` is plain text to be continued, without a chat template;
what the assistant said in it ends with the end of a turn. An endpoint gets its texts as the user's turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

Message: TypeAlias = dict[str, str]
TEXT = "text"


def as_chat(messages: Sequence[Message]) -> list[Message]:
    """The messages for models that are only reached as a chat: plain text becomes the user's turn, two texts in a row
    one of them, as roles must alternate."""
    out: list[Message] = []
    before = ""
    for message in messages:
        if before == message["role"] == TEXT:
            out[-1] = {**out[-1], "content": out[-1]["content"] + message["content"]}
        else:
            out.append({**message, "role": "user" if message["role"] == TEXT else message["role"]})
        before = message["role"]
    return out


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether the last message is continued in the same line, so that an answer begins with a space."""
    last = messages[-1]
    return last["role"] in ("assistant", TEXT) and not last["content"][-1:].isspace()


Progress: TypeAlias = Callable[[int, int], None]
"""Called as progress(done, total) from the thread that works; may raise KeyboardInterrupt to stop."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is generated. Greedy unless `temperature` > 0; `seed` matters only then.

    `copy_from` restricts the output to contiguous spans of these texts (whole words), so that nothing can be said that
    does not stand in them; `copy_options` are whole outputs allowed besides (the words for "not in the documents").
    """

    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    copy_from: tuple[str, ...] | None = None
    copy_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated text; `logprob` is the sum over its tokens (natural log), with the end token, or None."""

    text: str
    tokens_in: int
    tokens_out: int
    logprob: float | None = None


@runtime_checkable
class Encoder(Protocol):
    """Texts to unit vectors. `fingerprint` changes when the weights, the pooling or the prompts change."""

    name: str
    fingerprint: str
    dimension: int
    max_tokens: int

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as this encoder sees them, without special tokens."""
        ...

    def encode(
        self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage", progress: Progress | None = None
    ) -> np.ndarray:
        """float32 array [len(texts), dimension], rows of unit length.

        Raises NumericalError, naming the positions, when a row is not finite or has no length.
        """
        ...


@runtime_checkable
class Reranker(Protocol):
    """A cross-encoder: how well a text answers a query; higher is better."""

    name: str

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score for each text."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A chat model, local or behind an endpoint, with at most one LoRA adapter active at a time."""

    name: str
    fingerprint: str
    context_window: int

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` alone, without special tokens or template."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat template over `messages`, ready for the assistant. EndpointError where unknown."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: Decoding | Sequence[Decoding] = Decoding(),
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """One generation for each prompt, in order; batched inside. One Decoding for all, or one each."""
        ...

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        """Pieces of one generation as they come; closing the iterator stops the model."""
        ...

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        """Teacher-forced log-probability (natural log) of each token of each completion, end-of-turn token included.

        EndpointError where the endpoint returns no log-probabilities.
        """
        ...

    def adapter(self, folder: str | None) -> AbstractContextManager[None]:
        """Within the context the adapter of this folder is active (None: the base alone).

        Loaded once and kept; AdapterMismatch when it belongs to another base or tokenizer.
        """
        ...
