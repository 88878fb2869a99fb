"""Several sequences fed by the caller: whatever way tokens came in, the logits are those of the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rag.engine import PlainBackend
from rag.errors import ConfigError
from rag.models import load_generator
from rag.stepping import Stepper


@pytest.fixture(scope="module")
def generator() -> Any:
    return load_generator("starter", dtype="fp32")


def alone(generator: Any, ids: Sequence[int]) -> torch.Tensor:
    with generator.hold()():
        return PlainBackend(generator.model, slots=1).admit([(0, ids)])[0]


def prompts(generator: Any) -> list[list[int]]:
    head = "The handbook says the following about ferries, lighthouses and harbours in the northern district: "
    texts = ("the ferry carries 96 people.", "no lamp burns at noon.", "boats moor on the left")
    return [generator.tokens.ids(head + text) for text in texts]


@pytest.mark.parametrize("packed", [True, False])
def test_every_way_of_adding_tokens_gives_the_logits_of_the_whole_sequence(generator: Any, packed: bool) -> None:
    stepper = Stepper(generator, rows=4, capacity=80)
    assert stepper._packed
    if not packed:
        stepper._packed, stepper._backend = False, PlainBackend(generator.model, slots=4)
    ids = prompts(generator)
    logits = stepper.start(dict(enumerate(ids)))
    expected = [list(row) for row in ids]
    for row in range(3):
        torch.testing.assert_close(logits[row], alone(generator, expected[row]), rtol=1e-3, atol=2e-3)

    logits = stepper.step({2: 40, 0: 50})  # row 1 is parked
    expected[2].append(40)
    expected[0].append(50)
    torch.testing.assert_close(logits[0], alone(generator, expected[2]), rtol=1e-3, atol=2e-3)

    logits = stepper.step({1: 60})
    expected[1].append(60)
    torch.testing.assert_close(logits[0], alone(generator, expected[1]), rtol=1e-3, atol=2e-3)

    stepper.copy(0, 3)
    more = generator.tokens.ids(" And then the storm came.")
    logits = stepper.extend({3: more, 2: more[:2]})
    torch.testing.assert_close(logits[0], alone(generator, [*expected[0], *more]), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(logits[1], alone(generator, [*expected[2], *more[:2]]), rtol=1e-3, atol=2e-3)

    logits = stepper.step({0: 70})  # the copy did not change its original
    torch.testing.assert_close(logits[0], alone(generator, [*expected[0], 70]), rtol=1e-3, atol=2e-3)

    stepper.cut(3, len(expected[0]))
    logits = stepper.step({3: 70})
    torch.testing.assert_close(logits[0], alone(generator, [*expected[0], 70]), rtol=1e-3, atol=2e-3)
    assert stepper.tokens[3] == stepper.tokens[0] == [*expected[0], 70]


def test_what_does_not_fit_is_refused_before_anything_is_run(generator: Any) -> None:
    stepper = Stepper(generator, rows=1, capacity=8)
    with pytest.raises(ConfigError, match="no row 1"):
        stepper.start({1: [1, 2]})
    with pytest.raises(ConfigError, match="would have 9 tokens; at most 8"):
        stepper.start({0: list(range(9))})
    stepper.start({0: list(range(7))})
    assert stepper.room(0) == 1
    with pytest.raises(ConfigError, match="at most 8"):
        stepper.extend({0: [1, 2]})
    with pytest.raises(ConfigError, match="cannot be cut to 9"):
        stepper.cut(0, 9)
