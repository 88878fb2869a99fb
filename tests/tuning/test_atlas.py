"""The losses and targets of retriever training on values worked out by hand, and against the library's own losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rag.errors import ConfigError, NumericalError
from tuning import atlas
from tuning.preference import lsr_target


def test_lsr_target_and_both_divergences_of_the_card() -> None:
    """p = (0.6, 0.1), τ = 0.1; s = (2, 0): p_R = (.8808, .1192)."""
    values = np.log(np.array([[0.6, 0.6], [0.1, 0.1]]))
    target = lsr_target(values, score="probability", temperature=0.1)
    assert target == pytest.approx([0.9933, 0.0067], abs=1e-4)
    scores = torch.tensor([[2.0, 0.0]])
    given = torch.tensor(target)[None]
    forward = atlas.kl_loss(scores, given, temperature=1.0)
    reverse = atlas.kl_loss(scores, given, temperature=1.0, direction="reverse")
    assert float(forward) == pytest.approx(0.1001, abs=1e-4)
    assert float(reverse) == pytest.approx(0.2374, abs=1e-4)


def test_gradient_of_forward_divergence_is_difference_over_temperature() -> None:
    scores = torch.tensor([[0.3, -0.1, 0.2]], requires_grad=True)
    target = torch.tensor([[0.7, 0.2, 0.1]])
    atlas.kl_loss(scores, target, temperature=0.5).backward()
    expected = (torch.softmax(scores.detach() / 0.5, -1) - target) / 0.5
    assert torch.allclose(scores.grad, expected, atol=1e-6)


def test_pdist_is_uniform_for_equal_likelihoods_and_the_posterior_otherwise() -> None:
    assert atlas.pdist_target(np.full(4, -3.0)) == pytest.approx([0.25] * 4)
    assert atlas.pdist_target(np.log([0.6, 0.3, 0.1])) == pytest.approx([0.6, 0.3, 0.1])


def test_loop_is_largest_where_removal_costs_most() -> None:
    without = np.array([-1.0, -5.0, -1.5])  # without the second passage the answer is least likely
    target = atlas.loop_target(without)
    assert target.argmax() == 1
    assert target == pytest.approx(np.exp([1, 5, 1.5]) / np.exp([1, 5, 1.5]).sum())


def test_emdr2_with_one_passage_is_the_likelihood() -> None:
    loss = atlas.emdr2_loss(torch.tensor([[0.4]]), torch.tensor([[-2.5]]), temperature=0.1)
    assert float(loss) == pytest.approx(2.5)


def test_emdr2_by_hand_and_its_gradient_is_prior_minus_posterior() -> None:
    scores = torch.tensor([[2.0, 0.0]], requires_grad=True)
    logprobs = torch.tensor([[math.log(0.6), math.log(0.1)]])
    loss = atlas.emdr2_loss(scores, logprobs, temperature=1.0)
    assert float(loss.detach()) == pytest.approx(-math.log(0.5404), abs=1e-4)  # the ensemble of the card
    loss.backward()
    prior = torch.softmax(scores.detach(), -1)
    joint = prior * torch.tensor([[0.6, 0.1]])
    assert torch.allclose(scores.grad, prior - joint / joint.sum(), atol=1e-6)


def test_emdr2_bears_probabilities_that_underflow() -> None:
    scores = torch.tensor([[0.1, 0.2]], requires_grad=True)
    loss = atlas.emdr2_loss(scores, torch.tensor([[-2000.0, -2010.0]]), temperature=0.1)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(scores.grad).all()


def test_adist_by_hand() -> None:
    """One layer, one head, two answer tokens, four context tokens of passages 0, 0, 1 and none."""
    attention = np.array([[[[0.4, 0.2, 0.3, 0.1], [0.2, 0.2, 0.5, 0.1]]]])
    norms = np.array([[[1.0, 2.0, 1.0, 9.0]]])
    weighed = np.array([(0.3 * 1 + 0.2 * 2) / 2, 0.4])  # mean of the passage's tokens
    target = atlas.adist_target(attention, norms, np.array([0, 0, 1, -1]), 2)
    assert target == pytest.approx(np.exp(weighed) / np.exp(weighed).sum())
    assert atlas.adist_target(attention, norms, np.array([0, 0, 1, -1]), 3)[2] == 0  # it did not fit


def test_a_masked_passage_changes_nothing() -> None:
    scores, target = torch.tensor([[0.5, 0.1]]), torch.tensor([[0.8, 0.2]])
    wide, taught = torch.tensor([[0.5, 0.1, 7.0]]), torch.tensor([[0.8, 0.2, 0.0]])
    mask = torch.tensor([[True, True, False]])
    for direction in ("forward", "reverse"):
        narrow = atlas.kl_loss(scores, target, temperature=0.3, direction=direction)  # type: ignore[arg-type]
        padded = atlas.kl_loss(wide, taught, temperature=0.3, direction=direction, mask=mask)  # type: ignore[arg-type]
        assert float(narrow) == pytest.approx(float(padded), abs=1e-6)
    logprobs = torch.tensor([[-1.0, -2.0]])
    narrow = atlas.emdr2_loss(scores, logprobs, temperature=0.3)
    padded = atlas.emdr2_loss(wide, torch.tensor([[-1.0, -2.0, 0.0]]), temperature=0.3, mask=mask)
    assert float(narrow) == pytest.approx(float(padded), abs=1e-6)


def test_contrast_by_hand_with_an_ignored_passage_and_two_right_ones() -> None:
    scores = torch.tensor([[0.2, 0.1, 0.9, 0.0]])
    positive = torch.tensor([[True, True, False, False]])
    ignored = torch.tensor([[True, False, True, False]])  # a right passage stays right
    e = [math.exp(s / 0.1) for s in (0.2, 0.1, 0.0)]
    loss = atlas.contrastive_loss(scores, positive, temperature=0.1, ignored=ignored)
    assert float(loss) == pytest.approx(-math.log((e[0] + e[1]) / sum(e)), abs=1e-5)


def test_contrast_equals_multiple_negatives_ranking_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    generator = torch.Generator().manual_seed(0)
    queries, passages, wrong = (
        torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=1) for _ in range(3)
    )
    theirs = MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=20.0)  # type: ignore[arg-type]
    expected = theirs.compute_loss_from_embeddings([queries, passages, wrong], None)
    scores = queries @ torch.cat([passages, wrong]).T
    positive = torch.zeros(4, 8, dtype=torch.bool)
    positive[torch.arange(4), torch.arange(4)] = True
    ours = atlas.contrastive_loss(scores, positive, temperature=0.05)
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_divergence_equals_distill_kl_div_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    generator = torch.Generator().manual_seed(1)
    queries, first, second = (torch.randn(5, 8, generator=generator) for _ in range(3))
    teacher = torch.randn(5, 2, generator=generator)
    theirs = DistillKLDivLoss(model=torch.nn.Identity(), temperature=1.0)  # type: ignore[arg-type]
    expected = theirs.compute_loss_from_embeddings([queries, first, second], teacher)
    scores = torch.stack([(queries * first).sum(1), (queries * second).sum(1)], dim=1)
    ours = atlas.kl_loss(scores, torch.softmax(teacher, -1), temperature=1.0)
    assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_targets_of_odd_scores() -> None:
    assert atlas.softmax(np.array([-math.inf, -math.inf])) == pytest.approx([0.5, 0.5])
    assert atlas.softmax(np.array([-math.inf, -2.0])) == pytest.approx([0.0, 1.0])
    assert len(atlas.softmax(np.zeros(0))) == 0
    with pytest.raises(NumericalError):
        atlas.softmax(np.array([0.0, math.nan]))
    with pytest.raises(ConfigError, match="temperature"):
        atlas.softmax(np.zeros(2), 0.0)
    with pytest.raises(ConfigError, match="direction"):
        atlas.kl_loss(torch.zeros(1, 2), torch.full((1, 2), 0.5), temperature=1.0, direction="up")  # type: ignore[arg-type]
