"""Rows whose completions hold added tokens, and embeddings with a row for each of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rag.errors import ModelError
from rag.reflection_stream import masked_spans
from rag.reflection_tokens import TokenIds, extended

if TYPE_CHECKING:
    from rag.tokens import ChatTokens
    from tuning.rows import Row
    from tuning.train import TrainConfig
    from tuning.trainer import Encoded


def added_tokens(tokenizer: Any, config: TrainConfig) -> tuple[Any, dict[str, int]]:
    """The tokenizer that is saved with the weights, and the ids of the tokens that the configuration adds."""
    return extended(tokenizer, config.added_tokens) if config.added_tokens else (tokenizer, {})


def encode_row(row: Row, prompt: list[int], tokens: ChatTokens, added: Mapping[str, int], limit: int) -> Encoded | str:
    """A row whose completion holds added tokens; of its passages nothing is trained on, of the rest everything.

    "long" for one of more than `limit` tokens, "cut" for one with a passage that lacks its closing tag.
    """
    from tuning.trainer import Encoded

    ids = TokenIds(added)
    answer = [*ids.encode(row.completion, tokens), tokens.end_of_turn]
    if len(prompt) + len(answer) > limit:
        return "long"
    try:
        spans = masked_spans(answer, ids.opening, ids.closing)
    except ModelError:
        return "cut"
    masked = {place for start, end in spans for place in range(start, end)}
    places = tuple(len(prompt) + place for place in range(len(answer)) if place not in masked)
    return Encoded(row.id, (*prompt, *answer), len(places), places)


def with_rows(model: Any, known: int, tokens: Mapping[str, int]) -> Any:
    """The model with a row for each of these tokens in its embeddings, in and out.

    Rows beyond the `known` first ones, those of the tokenizer, are new: they begin as the mean of the known ones.
    """
    import torch

    rows = max(tokens.values()) + 1
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    new = sorted(token for token in tokens.values() if token >= known)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and new:
                layer.weight[new] = layer.weight[:known].float().mean(dim=0).to(layer.weight.dtype)
    return model


def trained_rows(model: Any, tokens: Mapping[str, int]) -> list[int] | dict[str, list[int]]:
    """What PEFT calls trainable_token_indices: of the embeddings, and of the head where it has rows of its own."""
    ids = sorted(tokens.values())
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embeddings.weight:
        return ids
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[id(embeddings)]: ids, names[id(head)]: ids}
