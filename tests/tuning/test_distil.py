"""The model's own answers are trained towards all it might have said: losses by hand, and where the gradient goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tuning.tiny import tiny_model
from tuning import kernels
from tuning.frozen import FrozenLayers
from tuning.packing import packed_loss
from tuning.trainer import Encoded, answer_loss

OWN = Encoded("o", (5, 6, 7, 8, 9, 10), 2, own=True)
OTHER = Encoded("t", (12, 6, 7, 8), 1)


def adapted(*, moved: bool, upper: bool = False, fast: bool = False) -> Any:
    torch.manual_seed(0)
    where = r".*layers\.1\..*_proj" if upper else "all-linear"
    model = get_peft_model(tiny_model(layers=2), LoraConfig(r=2, target_modules=where))
    if moved:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
    if fast:
        assert kernels.install(model)
    return model


def predicted(model: Any, row: Encoded) -> torch.Tensor:
    """[answer, vocabulary] log-probabilities at the places that predict the row's answer."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row.ids])).logits[0, -row.answer - 1 : -1].float().log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("loss_of", [answer_loss, packed_loss])
def test_the_loss_is_the_cross_entropy_against_the_untouched_model(loss_of: Any, fast: bool) -> None:
    model = adapted(moved=True, fast=fast)
    with model.disable_adapter():
        teacher = predicted(model, OWN)
    student = predicted(model, OWN)
    by_hand = -float((teacher.exp() * student).sum())
    assert by_hand > -float((teacher.exp() * teacher).sum()) + 0.01  # above the entropy, its lowest value
    assert loss_of(model, [OWN]).item() == pytest.approx(by_hand, rel=1e-4)
    hard = -float(predicted(model, OTHER)[0, OTHER.ids[-1]])
    assert loss_of(model, [OWN, OTHER]).item() == pytest.approx(by_hand + hard, rel=1e-4)


def test_an_untouched_adapter_has_nothing_to_learn_from_its_own_answers() -> None:
    """Towards the text alone it would: that is what it learns by heart."""
    sizes = []
    for row in (OWN, replace(OWN, own=False)):
        model = adapted(moved=False)
        answer_loss(model, [row]).backward()
        sizes.append(max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None))
    assert sizes[0] < 1e-6 < 1e-3 < sizes[1]


def test_the_gradient_reaches_the_adapter_alone_and_it_stays_on() -> None:
    model = adapted(moved=True, upper=True, fast=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = FrozenLayers.of(model)
    assert frozen is not None and frozen.first == 1
    loss = answer_loss(model, [OWN, OTHER], frozen)
    assert loss.item() == pytest.approx(answer_loss(model, [OWN, OTHER]).item(), rel=1e-4)
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters() if p.grad is not None)


def test_a_model_without_adapters_learns_its_answers_as_text() -> None:
    model = tiny_model()
    assert answer_loss(model, [OWN]).item() == pytest.approx(
        answer_loss(model, [replace(OWN, own=False)]).item(), rel=1e-6
    )
