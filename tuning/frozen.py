"""The layers below the first trained one compute the same for a row in every epoch: once is enough.

With adapters on the upper half of the layers a step costs a lower forward, an upper forward and an upper backward. The
lower one depends on frozen weights and the row alone, so its result is kept after the first time, and later epochs cost
a third less. Rows are computed one by one, whatever they are trained with, so that a resumed run sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Decoders that take input embeddings as they are, without scaling them, and whose layers stand in `.layers`.
_KNOWN = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "SmolLM3Model")
MEMORY = 4 * 2**30
"""Most bytes kept; rows beyond it are computed each time."""


class FrozenLayers:
    """States below layer `first` of a causal model, by token ids, and forwards that begin there."""

    def __init__(self, decoder: Any, first: int, memory: int = MEMORY) -> None:
        self.decoder = decoder
        self.first = first
        self.memory = memory
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._bytes = 0

    @classmethod
    def of(cls, model: Any) -> FrozenLayers | None:
        """For a model whose lowest layers hold nothing that is trained; None where there are none, or it is unknown."""
        decoder = next((m for m in model.modules() if type(m).__name__ in _KNOWN), None)
        if decoder is None or any(p.requires_grad for p in decoder.embed_tokens.parameters()):
            return None
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in decoder.layers]
        first = trained.index(True) if True in trained else 0
        return cls(decoder, first) if first else None

    def states(self, ids: tuple[int, ...]) -> torch.Tensor:
        """[len(ids), hidden]: what enters layer `first`."""
        kept = self._kept.get(ids)
        if kept is not None:
            return kept
        decoder = self.decoder
        tokens = torch.tensor([ids], device=decoder.embed_tokens.weight.device)
        norm = decoder.norm
        with torch.no_grad(), self._layers(0, self.first):
            decoder.norm = nn.Identity()
            try:
                states = decoder(input_ids=tokens, use_cache=False).last_hidden_state[0]
            finally:
                decoder.norm = norm
        if self._bytes + states.nbytes <= self.memory:
            self._kept[ids] = states
            self._bytes += states.nbytes
        return states

    def upper(self) -> Any:
        """A context in which the model's forward takes the states as `inputs_embeds` and runs the rest."""
        return self._layers(self.first, len(self.decoder.layers))

    @contextmanager
    def _layers(self, first: int, last: int) -> Iterator[None]:
        layers, count = self.decoder.layers, self.decoder.config.num_hidden_layers
        self.decoder.layers = layers[first:last]
        self.decoder.config.num_hidden_layers = last - first
        try:
            yield
        finally:
            self.decoder.layers, self.decoder.config.num_hidden_layers = layers, count
