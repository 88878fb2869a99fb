"""Fakes of the model protocols: no weights, no torch, the same output on every machine.

`FakeEncoder` is a hashed bag of words, so texts that share words are near each other; `FakeGenerator` answers from a
queue or a function and records every call. Both pass the conformance suites of the protocols.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rag.errors import AdapterMismatch, ModelError
from rag.protocols import Decoding, Generation, Message, Progress

Reply: TypeAlias = "str | Sequence[str] | Callable[[Sequence[Message]], str]"
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-cased words; each CJK character is a word."""
    return [w.lower() for w in _TOKEN.findall(text)]


def _bucket(word: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") % size


class FakeEncoder:
    """Counts of hashed words in `dimension` buckets, scaled to unit length. Texts without a word share one direction."""

    def __init__(
        self, name: str = "fake-encoder", *, dimension: int = 64, max_tokens: int = 256, salt: str = ""
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.salt = salt  # another salt: another encoder of the same dimension
        self.fingerprint = hashlib.sha256(f"{name}:{dimension}:{salt}".encode()).hexdigest()[:32]
        self.encoded: list[str] = []  # every text ever embedded, for "0 chunks embedded" assertions

    def count_tokens(self, text: str) -> int:
        return len(words(text))

    def encode(
        self, texts: Sequence[str], *, kind: Literal["query", "passage"] = "passage", progress: Progress | None = None
    ) -> np.ndarray:
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in words(text):
                rows[i, _bucket(self.salt + word, self.dimension)] += 1.0
            if not rows[i].any():
                rows[i, 0] = 1.0
            if progress is not None:
                progress(i + 1, len(texts))
        self.encoded.extend(texts)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if len(texts) else rows


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt that a FakeGenerator was asked to continue, and the adapter that was active."""

    messages: tuple[Message, ...]
    decoding: Decoding
    adapter: str | None
    reply: str
    streamed: bool = False


@dataclass
class FakeGenerator:
    """Answers with `reply`: a text, a list used up one after another (then repeated from its end), or a function.

    `adapters` gives other replies while that adapter folder is active; with it set, any other folder is refused as an
    adapter of another base. Without it every folder is taken, and answers as the base does.
    """

    reply: Reply = "forty-two [1]"
    name: str = "fake-generator"
    context_window: int = 2048
    adapters: Mapping[str, Reply] | None = None
    calls: list[Call] = field(default_factory=list)
    active: str | None = None
    activated: list[str | None] = field(default_factory=list)
    piece: int = 4
    _taken: dict[str | None, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]

    def count_tokens(self, text: str) -> int:
        return len(words(text))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [_bucket(w, 50_000) for m in messages for w in (f"<{m['role']}>", *words(m["content"]))]

    def _answer(self, messages: Sequence[Message], decoding: Decoding, *, streamed: bool = False) -> str:
        reply = (self.adapters or {}).get(self.active, self.reply) if self.active is not None else self.reply
        if isinstance(reply, str):
            text = reply
        elif callable(reply):
            text = reply(messages)
        elif not reply:
            raise ModelError("The fake generator has an empty queue of replies.")
        else:
            n = self._taken.get(self.active, 0)
            self._taken[self.active] = n + 1
            text = reply[min(n, len(reply) - 1)]
        for stop in decoding.stop:
            text = text.split(stop)[0]
        text = " ".join(text.split(" ")[: decoding.max_new_tokens])
        self.calls.append(Call(tuple(dict(m) for m in messages), decoding, self.active, text, streamed))
        return text

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: Decoding | Sequence[Decoding] = Decoding(),
        *,
        progress: Progress | None = None,
    ) -> list[Generation]:
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        out = []
        for i, (messages, d) in enumerate(zip(prompts, each, strict=True)):
            text = self._answer(messages, d)
            out.append(Generation(text, len(self.prompt_ids(messages)), len(words(text)) + 1, _total(text)))
            if progress is not None:
                progress(i + 1, len(prompts))
        return out

    def stream(self, messages: Sequence[Message], decoding: Decoding = Decoding()) -> Iterator[str]:
        text = self._answer(messages, decoding, streamed=True)
        for i in range(0, len(text), self.piece):
            yield text[i : i + self.piece]

    def score(self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]) -> list[np.ndarray]:
        return [_logprobs(text) for _, text in zip(prompts, completions, strict=True)]

    @contextmanager
    def adapter(self, folder: str | None) -> Iterator[None]:
        folder = None if folder is None else str(folder)
        if folder is not None and self.adapters is not None and folder not in self.adapters:
            raise AdapterMismatch(f"The adapter {folder} was trained on another base than {self.name}.")
        before, self.active = self.active, folder
        self.activated.append(folder)
        try:
            yield
        finally:
            self.active = before


def _logprobs(text: str) -> np.ndarray:
    """One value in [-1, -0.1] for each word and one for the end of the turn: a hash of the word, nothing else."""
    return np.array([-0.1 - 0.9 * _bucket(w, 1000) / 1000 for w in (*words(text), "<end>")], dtype=np.float32)


def _total(text: str) -> float:
    return float(_logprobs(text).sum())


class FakeReranker:
    """Shared words divided by the words of the query."""

    name = "fake-reranker"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        asked = set(words(query))
        return [len(asked & set(words(text))) / max(1, len(asked)) for text in texts]
