"""What tests of `rag` share."""

from __future__ import annotations

import pytest


@pytest.fixture()
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's kernels for laid out weights, said to pay; without them the test is skipped."""
    torch = pytest.importorskip("torch")
    from rag import prepacked

    try:
        prepacked.product(torch.ones(1, 16).bfloat16(), prepacked.laid_out(torch.ones(16, 16).bfloat16()))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        pytest.skip(f"no such kernel here: {error}")
    monkeypatch.setattr(prepacked, "pays", lambda: True)
