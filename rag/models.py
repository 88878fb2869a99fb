"""Models by name: the one door through which the rest of the product gets encoders, rerankers and generators.

A name is "starter", a folder, a hub id, or "openai:MODEL@BASE_URL" for an endpoint. What is behind the door:
`names` (resolve and refuse), `starters` (packaged weights), `hardware` (device, number format), `encoder`, `generator`
with `tokens`, `engine`, `packed`, `decode`, `copying`, `scoring` and `adapters`; `endpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rag.encoder import LocalEncoder, load_encoder
from rag.errors import ModelError, NumericalError, UnknownModel
from rag.generator import LocalGenerator, base_model, load_local_generator
from rag.hardware import pick_device, pick_dtype
from rag.names import ENDPOINT_PREFIX, STARTER, alternatives, resolve
from rag.protocols import Generator, Reranker
from rag.starters import quiet
from rag.tokens import tokenizer_hash

__all__ = [
    "LocalEncoder",
    "LocalGenerator",
    "LocalReranker",
    "base_model",
    "load_encoder",
    "load_generator",
    "load_reranker",
    "tokenizer_hash",
]


def load_generator(name: str = "starter", *, device: str | None = None, dtype: Any = None) -> Generator:
    """The generator of this name: "starter", a folder, a hub id, or an endpoint.

    Raises:
        UnknownModel: the name resolves to nothing here; the message lists what would.
        ModelError: the model is refused or does not load.
    """
    if name.startswith(ENDPOINT_PREFIX):
        from rag.endpoint import EndpointGenerator

        return EndpointGenerator(name)
    return load_local_generator(name, device=device, dtype=dtype)


class LocalReranker:
    """A sentence-transformers CrossEncoder; implements `rag.protocols.Reranker`."""

    def __init__(self, model: Any, name: str) -> None:
        self._model, self.name = model, name

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score for each text, higher is better.

        Raises:
            NumericalError: a score is not finite, named by position.
        """
        if not texts:
            return []
        values = self._model.predict([(query, text) for text in texts], show_progress_bar=False, convert_to_numpy=True)
        scores = [float(value) for value in np.asarray(values, dtype=np.float64).reshape(len(texts), -1)[:, -1]]
        bad = [i for i, score in enumerate(scores) if not np.isfinite(score)]
        if bad:
            raise NumericalError(f"The reranker '{self.name}' gave no finite score for texts {bad[:10]}.")
        return scores


def load_reranker(name: str, *, device: str | None = None, dtype: Any = None) -> Reranker:
    """The cross-encoder of this name (a folder or a hub id), for retrieval's last stage.

    Raises:
        UnknownModel: the name resolves to nothing here.
        ModelError: it is refused or does not load.
    """
    if name == STARTER:
        raise UnknownModel(f"There is no starter reranker. {alternatives('reranker', starter=False)}")
    found = resolve(name, "reranker")
    place = pick_device(device)
    with quiet():
        from sentence_transformers import CrossEncoder

        try:
            model = CrossEncoder(
                str(found.folder),
                device=str(place),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": pick_dtype(place, dtype), "use_safetensors": True},
            )
        except Exception as error:  # a damaged folder makes the libraries raise nearly anything
            raise ModelError(f"The reranker '{name}' in {found.folder} does not load: {error}") from error
    return LocalReranker(model, name)
