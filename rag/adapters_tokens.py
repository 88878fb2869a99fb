"""Adapters that bring tokens of their own: what they bring, and a model with room for them beside the untouched base.

Such an adapter is PEFT's own folder with the tokenizer it was trained with: `trainable_token_indices` in its
configuration, one row for each token in its weights. It is served by a second module tree whose tensors are the base's
own, but for the embeddings, which are a copy with the new rows: the base stays as it is, to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.errors import AdapterMismatch, ModelError

if TYPE_CHECKING:
    import torch

TOKENIZER = "tokenizer.json"


def token_indices(config: Mapping[str, Any]) -> list[int]:
    """Ids of the trained token rows that an adapter configuration names; empty where it trains none."""
    found = config.get("trainable_token_indices") or []
    values = found.values() if isinstance(found, Mapping) else [found]
    return sorted({int(token) for tokens in values for token in tokens})


def brought(folder: Path, indices: list[int], read: Callable[[Path], dict[str, Any]]) -> dict[str, int]:
    """Token → id of the trained rows, by the tokenizer in the adapter folder; `read` gives a JSON object.

    Raises ModelError where the folder has no tokenizer that names them: nobody could say what they mean.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ModelError(f"{folder} trains rows for tokens {indices[:5]} and has no {TOKENIZER} that names them.")
    added = {int(token["id"]): str(token["content"]) for token in read(path).get("added_tokens", ())}
    missing = [token for token in indices if token not in added]
    if missing:
        raise ModelError(f"{path} does not name the tokens {missing[:5]} whose rows the adapter {folder} trains.")
    return {added[token]: token for token in indices}


def check_ids(folder: Path, tokens: Mapping[str, int], tokenizer: Any, name: str) -> None:
    """Raises AdapterMismatch where the adapter's tokens have ids that mean something else in this tokenizer."""
    vocabulary = tokenizer.get_vocab()
    taken = {number: token for token, number in vocabulary.items()}
    new = [token for token in tokens if token not in vocabulary]
    for token, number in tokens.items():
        mine = vocabulary.get(token)
        if mine is not None and mine != number:
            problem = f"there it is {mine}"
        elif mine is None and number in taken:
            problem = f"there this is {taken[number]!r}"
        elif mine is None and number >= len(tokenizer) + len(new):
            problem = f"there the next free ones are {len(tokenizer)} to {len(tokenizer) + len(new) - 1}"
        else:
            continue
        raise AdapterMismatch(
            f"The adapter {folder} was trained with other token ids: {token!r} is {number}, and in the tokenizer of "
            f"'{name}' {problem}. Load the base it was trained on with --generator, or tune anew."
        )


def second_tree(model: Any, peft: Any, rows: int) -> Any:
    """A model that shares the weights of `model`, with its own embeddings of at least `rows` rows.

    `peft` is the PeftModel around it with every adapter switched off, where there is one; the copy has none of them.
    """
    import torch

    source = model if peft is None else peft
    memo: dict[int, Any] = {id(p): torch.nn.Parameter(p.data, requires_grad=False) for p in source.parameters()}
    memo.update({id(b): b for b in source.buffers()})
    tree = copy.deepcopy(source, memo)
    if peft is not None:
        tree = tree.unload()
    before = tree.get_input_embeddings().weight.shape[0]
    if rows > before:
        tree.resize_token_embeddings(rows, mean_resizing=False)
    else:
        tied = tree.get_input_embeddings().weight is getattr(tree.get_output_embeddings(), "weight", None)
        own = tree.get_input_embeddings()
        own.weight = torch.nn.Parameter(own.weight.data.clone(), requires_grad=False)
        head = tree.get_output_embeddings()
        if head is not None:
            head.weight = own.weight if tied else torch.nn.Parameter(head.weight.data.clone(), requires_grad=False)
    return tree.eval()


def load_onto(tree: Any, folder: Path) -> Any:
    """The tree with the adapter on it: its token rows written into the embeddings, its LoRA layers attached."""
    from peft import PeftModel
    from peft.utils.other import TrainableTokensWrapper

    loaded = PeftModel.from_pretrained(tree, str(folder), adapter_name="default", is_trainable=False)
    model = loaded.get_base_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, TrainableTokensWrapper):
            parent, _, leaf = name.rpartition(".")
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), leaf, plain)
    model.tie_weights()
    return loaded.eval()


def fold(model: Any, limit: int) -> Callable[[], None] | None:
    """Write the LoRA products of `load_onto`'s model into copies of the weights; returns what undoes it.

    None where that is not possible, or takes more than `limit` bytes: then nothing was changed.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    simple = all(type(base) is torch.nn.Linear for base in bases)
    if not layers or not simple or sum(base.weight.nbytes for base in bases) > limit:
        return None
    if any(getattr(layer, "lora_variant", None) for layer in layers):
        return None
    own: list[torch.Tensor] = []
    with torch.no_grad():
        for layer, base in zip(layers, bases, strict=True):
            own.append(base.weight.data)
            base.weight.data = base.weight.data.clone()
            layer.merge()

    def undo() -> None:
        for layer, base, weight in zip(layers, bases, own, strict=True):
            base.weight.data = weight
            layer.merged_adapters.clear()

    return undo
