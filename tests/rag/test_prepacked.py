"""Weights in a second layout: the same products, whatever happens to the weights, and training as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rag import prepacked
from rag.starters import read_cache

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("kernels")


def made(*, bias: bool = True, dtype: Any = None) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 80, bias=bias), torch.nn.SiLU(), torch.nn.Linear(80, 32, bias=bias))
    return model.to(dtype or torch.bfloat16).eval()


def close(a: Any, b: Any) -> bool:
    return bool(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (3, 48), (1, 70, 48), (2, 5, 48), (0, 48)])
def test_products_are_those_of_the_plain_model(shape: tuple[int, ...], bias: bool) -> None:
    plain = made(bias=bias)
    model = copy.deepcopy(plain)
    assert prepacked.prepack(model)
    x = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        assert model(x).shape == plain(x).shape
        assert close(model(x), plain(x))
        assert close(model(x.transpose(0, -1).contiguous().transpose(0, -1)), plain(x))
    assert len(model[0].kept) == (1 if x.numel() else 0)


def test_another_weight_and_a_changed_one_are_seen() -> None:
    model = made()
    assert prepacked.prepack(model)
    x, own, other = torch.randn(2, 48).bfloat16(), model[0].weight.data, torch.randn(80, 48).bfloat16()
    with torch.no_grad():
        first = model(x)
        model[0].weight.data = other
        assert close(model[0](x), torch.nn.functional.linear(x, other, model[0].bias))
        model[0].weight.data = own
        assert torch.equal(model(x), first)
        model[0].weight.mul_(2)
        assert close(model[0](x), torch.nn.functional.linear(x, own, model[0].bias)), "own was changed in place"
        before = len(model[0].kept)
        model[0].weight.data = other
        model(x)
        prepacked.forget(model[0], other)
        assert len(model[0].kept) == before - 1, "other had been kept since its first turn"
        prepacked.forget(torch.nn.Linear(2, 2), other)  # a layer that keeps nothing
        for _ in range(prepacked.KEPT + 3):
            model[0].weight.data = torch.randn(80, 48).bfloat16()
            model(x)
    assert len(model[0].kept) == prepacked.KEPT


def test_gradients_go_the_ordinary_way() -> None:
    plain = made()
    model = copy.deepcopy(plain)
    assert prepacked.prepack(model)
    x = torch.randn(4, 48).bfloat16()
    for each in (model, plain):
        each(x).float().square().mean().backward()
    assert torch.equal(model[0].weight.grad, plain[0].weight.grad) and not model[0].kept


def test_a_copy_lays_out_its_own_weights() -> None:
    model = made()
    assert prepacked.prepack(model)
    x = torch.randn(2, 48).bfloat16()
    with torch.inference_mode():
        before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.data = torch.zeros_like(twin[0].weight)
        twin[0].bias.data.zero_()
        assert not twin[0](x).any()
        assert torch.equal(model(x), before)


def test_what_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not prepacked.prepack(made(dtype=torch.float32))
    monkeypatch.setattr(prepacked, "MOST_BYTES", 100)
    assert not prepacked.prepack(made())
    monkeypatch.setattr(prepacked, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(prepacked, "pays", lambda: False)
    assert not prepacked.prepack(made())


def test_the_probe_is_asked_once_and_decides_by_its_margin(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.undo()  # the real `pays`
    asked = []

    def probe(seconds: float) -> Any:
        def told(**_: Any) -> dict[str, float]:
            asked.append(seconds)
            return {"plain": 1.0, "packed": seconds}

        return told

    for seconds, expected in ((0.5, True), (0.95, False)):
        monkeypatch.setenv("RAGTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setattr(prepacked, "probe", probe(seconds))
        assert prepacked.pays() is expected and prepacked.pays() is expected
        stored = read_cache("prepacked", prepacked.machine_key(torch.device("cpu")))
        assert stored is not None and stored["seconds"]["packed"] == seconds
    assert asked == [0.5, 0.95]
    monkeypatch.undo()
    assert set(prepacked.probe(layers=2, rounds=1)) == {"plain", "packed"}
