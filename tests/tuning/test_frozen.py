"""The frozen lower layers are computed once, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from tests.tuning.tiny import tiny_model
from tuning.frozen import FrozenLayers
from tuning.trainer import Encoded, answer_loss

ROWS = [Encoded("a", (5, 6, 7, 8, 9, 10), 2), Encoded("b", (5, 9, 7, 11), 1), Encoded("c", (12, 6, 7, 8, 3), 3)]


def upper_only(layers: int, first: int) -> torch.nn.Module:
    model = tiny_model(layers=layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".layers.{i}." in name for i in range(first, layers)))
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_the_whole_forward() -> None:
    model = upper_only(4, 2)
    plain = answer_loss(model, ROWS)
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    frozen = FrozenLayers.of(model)
    assert frozen is not None and frozen.first == 2
    for _ in range(2):  # computed, then kept
        model.zero_grad()
        loss = answer_loss(model, ROWS, frozen)
        loss.backward()
        assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
        found = gradients(model)
        assert found.keys() == expected.keys() and found
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_a_second_epoch_runs_no_lower_layer_and_the_model_is_left_whole() -> None:
    model = upper_only(3, 1)
    frozen = FrozenLayers.of(model)
    assert frozen is not None
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    model.model.layers[0].register_forward_hook(count)
    answer_loss(model, ROWS, frozen)
    assert runs == 3  # one for each row
    answer_loss(model, ROWS, frozen)
    assert runs == 3
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"


def test_beyond_the_memory_limit_rows_are_computed_again() -> None:
    model = upper_only(3, 1)
    frozen = FrozenLayers.of(model)
    assert frozen is not None
    frozen.memory = 6 * 32 * 4  # the first row alone: 6 tokens of 32 fp32 numbers
    first, again = (answer_loss(model, ROWS, frozen) for _ in range(2))
    assert first.item() == again.item() and len(frozen._kept) == 1


def test_nothing_is_frozen_where_the_first_layer_or_the_embeddings_are_trained() -> None:
    assert FrozenLayers.of(tiny_model()) is None
    model = upper_only(3, 1)
    model.model.embed_tokens.weight.requires_grad_(True)
    assert FrozenLayers.of(model) is None
