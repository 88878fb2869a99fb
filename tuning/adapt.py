"""A base model made trainable: adapters put on, or layers unfrozen, and the number format it is trained in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.train import TrainConfig


def prepare(model: Any, config: TrainConfig, tokens: Mapping[str, int] | None = None) -> Any:
    """The model with trainable parameters: an adapter put on, or the upper layers of the model itself.

    `tokens` (with their ids) are trained too: of the embeddings only their rows, but for "full".
    """
    layers = int(model.config.get_text_config().num_hidden_layers)
    first = layers - math.ceil(config.upper_layers * layers)
    if config.method == "full":
        return _unfreeze(model, first, embeddings=bool(tokens))
    from peft import LoraConfig, get_peft_model

    from tuning.added import trained_rows

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config),
        layers_to_transform=list(range(first, layers)) if first else None,
        use_dora=config.method == "dora",
        trainable_token_indices=trained_rows(model, tokens) if tokens else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _targets(model: Any, config: TrainConfig) -> str | list[str]:
    """What PEFT is to adapt; the linear layers by name where only some layers are, which PEFT wants then."""
    if isinstance(config.target_modules, tuple):
        return list(config.target_modules)
    if config.target_modules != "all-linear" or config.upper_layers == 1:
        return config.target_modules
    from torch import nn

    head = model.get_output_embeddings()
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return sorted(found)


def _unfreeze(model: Any, first: int, *, embeddings: bool = False) -> Any:
    """Train every layer from `first` on; embeddings and head too when all layers are trained, or where asked."""
    import re

    outer = (model.get_input_embeddings(), model.get_output_embeddings()) if embeddings else ()
    also = {id(layer.weight) for layer in outer if layer is not None}
    for name, parameter in model.named_parameters():
        at = re.search(r"\.layers\.(\d+)\.", f".{name}")
        parameter.requires_grad_(first == 0 or id(parameter) in also or (at is not None and int(at[1]) >= first))
    return model


def autocast(config: TrainConfig, device: Any) -> Callable[[], AbstractContextManager[Any]]:
    """bf16 products over fp32 weights for "full", where bf16 is asked for or faster; adapters need none."""
    if config.method != "full":
        return nullcontext
    import torch

    from rag.hardware import pick_dtype

    dtype = pick_dtype(device, config.dtype)
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)
