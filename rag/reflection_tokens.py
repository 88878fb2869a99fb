"""Added tokens: which ids they have in a tokenizer, which they get, and a text with tokens in it as ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag.errors import ModelError
from rag.reflection import CLOSE, OPEN, REFLECTION, TOKENS, within
from rag.reflection_stream import pieces

if TYPE_CHECKING:
    import torch

    from rag.tokens import ChatTokens


def extended(tokenizer: Any, tokens: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """A copy of the tokenizer that knows these tokens, and their ids.

    Tokens that it holds already keep their ids; the others get the next free ones, in order.
    Raises ModelError where the tokenizer does not take them as single tokens.
    """
    made = copy.deepcopy(tokenizer)
    from transformers import AddedToken

    known = set(made.get_vocab())
    made.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens if token not in known],
        special_tokens=True,
    )
    ids = {token: made.convert_tokens_to_ids(token) for token in tokens}
    wrong = [token for token, found in ids.items() if found is None or found == made.unk_token_id]
    if wrong:
        raise ModelError(f"The tokenizer does not take {', '.join(wrong)} as tokens; use a model with a fast one.")
    return made, {token: int(found) for token, found in ids.items()}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The ids of the 15 tokens in one model."""

    ids: Mapping[str, int]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int]) -> TokenIds | None:
        """Those of a vocabulary; None unless it holds all of them."""
        if any(token not in vocabulary for token in TOKENS):
            return None
        return cls({token: int(vocabulary[token]) for token in TOKENS})

    def __getitem__(self, token: str) -> int:
        return self.ids[token]

    @property
    def opening(self) -> int:
        return self.ids[OPEN]

    @property
    def closing(self) -> int:
        return self.ids[CLOSE]

    def read(self, logits: torch.Tensor) -> list[dict[str, float]]:
        """The logits of the 13 reflection tokens, and of nothing else, for each row of [rows, vocabulary]."""
        import torch

        index = torch.tensor([self.ids[token] for token in REFLECTION], device=logits.device)
        return [dict(zip(REFLECTION, row, strict=True)) for row in logits.index_select(-1, index).tolist()]

    def encode(self, text: str, tokens: ChatTokens) -> list[int]:
        """A stream as ids: its tokens by their ids, and everything between them as ordinary text."""
        out: list[int] = []
        for piece in pieces(text):
            out += [self.ids[piece]] if piece in self.ids else tokens.ids(piece)
        return out


def family(logits: Mapping[str, float], tokens: Sequence[str]) -> tuple[dict[str, float], str]:
    """Probabilities within a family, and its likeliest token."""
    p = within(logits, tokens)
    return p, max(tokens, key=lambda token: p[token])
