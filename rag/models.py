"""Models by name: the one door through which the rest of the product gets encoders, rerankers and generators.

A name is "starter", a folder, a hub id, or "openai:MODEL@BASE_URL" for an endpoint. What is behind the door:
`names` (resolve and refuse), `starters` (packaged weights), `hardware` (device, number format), `encoder`, `generator`
with `tokens`, `engine`, `decode`, `copying`, `scoring` and `adapters`.
"""

from __future__ import annotations

from typing import Any

from rag.encoder import LocalEncoder, load_encoder
from rag.generator import LocalGenerator, base_model, load_local_generator
from rag.protocols import Generator
from rag.tokens import tokenizer_hash

__all__ = [
    "LocalEncoder",
    "LocalGenerator",
    "base_model",
    "load_encoder",
    "load_generator",
    "tokenizer_hash",
]


def load_generator(name: str = "starter", *, device: str | None = None, dtype: Any = None) -> Generator:
    """The generator of this name: "starter", a folder, a hub id, or an endpoint.

    Raises:
        UnknownModel: the name resolves to nothing here; the message lists what would.
        ModelError: the model is refused or does not load.
    """
    return load_local_generator(name, device=device, dtype=dtype)
