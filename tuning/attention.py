"""How much an answer looks at each passage: attention weights and value vectors of a language model, for ADist.

Atlas reads the cross-attention of an encoder-decoder. A decoder-only model has self-attention: here the rows of the
answer's tokens over the tokens of the passages, all passages in one prompt, in rank order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag.errors import ModelError

LIMIT = 1536
"""Tokens of one pass: attention weights of all layers take layers · heads · tokens² · 4 bytes."""


@dataclass(frozen=True, slots=True)
class Read:
    """`attention` [layers, heads, answer tokens, tokens], `norms` [layers, heads, tokens] of the value vectors, and the
    number of the passage that each token belongs to (−1: none)."""

    attention: np.ndarray
    norms: np.ndarray
    passages: np.ndarray


class AttentionReader:
    """A copy of a local model whose attention can be read. ModelError where its layers are of another make."""

    def __init__(self, name: str = "starter", *, base: tuple[Any, Any, str] | None = None) -> None:
        from rag.generator import base_model

        self.model, self.tokenizer, _ = base or base_model(name, dtype="fp32")
        self.model.set_attn_implementation("eager")
        self.model.eval()
        self._values = [m for n, m in self.model.named_modules() if n.endswith("v_proj")]
        self._layers = int(self.model.config.get_text_config().num_hidden_layers)
        if len(self._values) != self._layers:
            raise ModelError(
                f"The attention of '{name}' cannot be read: {len(self._values)} value projections in {self._layers} "
                "layers. Take the recipe atlas-pdist, which needs log-probabilities only."
            )

    def read(self, question: str, answer: str, passages: Sequence[str]) -> Read:
        """One forward over passages, question and answer; the last passages go where all do not fit."""
        import torch

        asked = self._ids(f"\nQuestion: {question}\nAnswer:")
        said = self._ids(f" {answer}") or self._ids(".")
        ids: list[int] = []
        belongs: list[int] = []
        for k, text in enumerate(passages):
            piece = self._ids(f"{text}\n")
            if len(ids) + len(piece) + len(asked) + len(said) > LIMIT:
                piece = piece[: max(0, LIMIT - len(ids) - len(asked) - len(said))]
            ids += piece
            belongs += [k] * len(piece)
        belongs += [-1] * (len(asked) + len(said))
        ids += [*asked, *said]
        norms: list[np.ndarray] = []
        heads = self.model.config.get_text_config()
        width = getattr(heads, "head_dim", None) or heads.hidden_size // heads.num_attention_heads
        groups = heads.num_attention_heads // heads.num_key_value_heads

        def keep(module: Any, given: Any, output: torch.Tensor) -> None:
            lengths = output[0].float().view(len(ids), -1, width).norm(dim=-1).T  # [key heads, tokens]
            norms.append(lengths.repeat_interleave(groups, dim=0).cpu().numpy())

        hooks = [m.register_forward_hook(keep) for m in self._values]
        try:
            with torch.inference_mode():
                given = torch.tensor([ids], device=self.model.device)
                weights = self.model(input_ids=given, output_attentions=True, use_cache=False).attentions
        finally:
            for hook in hooks:
                hook.remove()
        # a row predicts the next token: the answer is predicted from the token before it on
        rows = slice(len(ids) - len(said) - 1, len(ids) - 1)
        attention = np.stack([w[0, :, rows].float().cpu().numpy() for w in weights])
        return Read(attention, np.stack(norms), np.asarray(belongs))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
