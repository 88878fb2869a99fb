"""Adapters: off is the base, attached is PEFT, merged answers like attached, and a foreign one never half loads."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag import adapters
from rag.errors import AdapterMismatch, ModelError, UnknownModel
from rag.models import base_model, load_generator
from rag.protocols import Decoding
from tests.conformance import ask, starter_generator, tiny_folder, tiny_model

PROMPTS = [ask("Where is the ferry?"), ask("What does a return ticket cost?"), ask("Why?")]
DECODING = Decoding(max_new_tokens=8)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of these adapters stay out of the real cache; the starter is found in it, so it is loaded before."""
    starter_generator()
    monkeypatch.setenv("RAGTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "m", starter_generator().tokenizer)


@pytest.fixture()
def generator(base_folder: Path) -> Any:
    return load_generator(str(base_folder), device="cpu", dtype="fp32")


def make_adapter(base: Path, folder: Path, *, seed: int = 0, record: Any = True, **options: Any) -> Path:
    """A LoRA adapter with random weights on both sides, saved by PEFT, with ragtune.json beside it."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer, fingerprint = base_model(str(base), device="cpu", dtype="fp32")
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    peft = get_peft_model(model, LoraConfig(**settings | options))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(folder)
    if record:
        from rag.models import tokenizer_hash

        content = {"base": str(base), "base_fingerprint": fingerprint, "tokenizer_hash": tokenizer_hash(tokenizer)}
        (folder / "ragtune.json").write_text(json.dumps(content | (record if isinstance(record, dict) else {})))
    return folder


def texts(generator: Any, folder: Path | None) -> list[str]:
    with generator.adapter(None if folder is None else str(folder)):
        return [g.text for g in generator.generate(PROMPTS, DECODING)]


def scores(generator: Any, folder: Path | None) -> np.ndarray:
    with generator.adapter(None if folder is None else str(folder)):
        return np.concatenate(generator.score(PROMPTS, ["Korr", "18 crowns", "Because."]))


def peft_scores(base: Path, folder: Path, generator: Any) -> np.ndarray:
    """What PEFT itself says, attached."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(base_model(str(base), device="cpu", dtype="fp32")[0], str(folder)).eval()
    out = []
    for prompt, text in zip(PROMPTS, ["Korr", "18 crowns", "Because."], strict=True):
        ids, more = generator.prompt_ids(prompt), generator.completion_ids(text)
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *more]])).logits[0].log_softmax(-1)
        out += [float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(more)]
    return np.array(out)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"layers_to_transform": [1]}])
def test_an_adapter_answers_as_peft_does_and_off_is_exactly_the_base(
    generator: Any, base_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", **options)
    before, said = scores(generator, None), texts(generator, None)
    weights = {name: p.clone() for name, p in generator.model.named_parameters()}
    with_adapter = scores(generator, adapter)
    np.testing.assert_allclose(with_adapter, peft_scores(base_folder, adapter, generator), atol=2e-4)
    assert np.abs(with_adapter - before).max() > 0.1
    assert np.array_equal(scores(generator, None), before) and texts(generator, None) == said
    named = {n.replace(".base_layer", ""): p for n, p in generator.model.named_parameters() if "lora_" not in n}
    assert all(np.array_equal(named[name].detach(), p.detach()) for name, p in weights.items())


def test_merged_attached_and_a_merged_copy_agree(
    generator: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a")
    verdict = generator.parity_check(adapter)
    assert verdict.equal and verdict.prompts == 16 and verdict.different == 0
    assert 0 < verdict.largest <= verdict.tolerance
    served = scores(generator, adapter)
    assert generator._adapters._merged, "with parity it is served merged"
    monkeypatch.setattr(adapters, "MERGED_BYTES", 0)
    attached_only: Any = load_generator(str(base_folder), device="cpu", dtype="fp32")
    np.testing.assert_allclose(scores(attached_only, adapter), served, atol=1e-4)
    assert not attached_only._adapters._merged
    copy = generator.merge(adapter)
    np.testing.assert_allclose(scores(copy, None), served, atol=1e-4)
    assert texts(copy, None) == texts(generator, adapter)
    assert copy.fingerprint != generator.fingerprint
    assert not any("lora" in name for name, _ in copy.model.named_parameters())


def test_a_failed_parity_check_serves_attached_and_is_remembered(
    generator: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a")
    real = adapters._compare
    calls: list[int] = []

    def unequal(*sides: Any, **options: Any) -> Any:
        calls.append(1)
        verdict = real(*sides, **options)
        return adapters.Parity(False, verdict.prompts, 3, verdict.largest, verdict.tolerance)

    monkeypatch.setattr(adapters, "_compare", unequal)
    expected = peft_scores(base_folder, adapter, generator)
    for fresh in (generator, load_generator(str(base_folder), device="cpu", dtype="fp32")):
        np.testing.assert_allclose(scores(fresh, adapter), expected, atol=2e-4)
        assert not fresh._adapters._merged  # type: ignore[attr-defined]
    assert len(calls) == 1, "the second generator reads the verdict from the cache"
    assert not (adapter / "parity.json").exists() and "parity" not in "".join(p.name for p in adapter.iterdir())


def test_adapters_switch_nest_and_load_once(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    first = make_adapter(base_folder, tmp_path / "a", seed=1)
    second = make_adapter(base_folder, tmp_path / "b", seed=2)
    expected = {None: scores(generator, None), first: scores(generator, first), second: scores(generator, second)}
    assert not np.allclose(expected[first], expected[second])
    for folder in (second, None, first, first, second, None):
        assert np.array_equal(scores(generator, folder), expected[folder])
    with generator.adapter(str(first)):
        assert np.array_equal(scores(generator, second), expected[second])
        np.testing.assert_array_equal(
            np.concatenate(generator.score(PROMPTS, ["Korr", "18 crowns", "Because."])), expected[first]
        )
    assert generator.attach(first) == generator.attach(str(first)) != generator.attach(second)
    copied = shutil.copytree(first, tmp_path / "c")
    assert generator.attach(copied) == generator.attach(first), "the same bytes are the same adapter"


def test_an_error_inside_switches_back(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a")
    before = scores(generator, None)
    with pytest.raises(ZeroDivisionError), generator.adapter(str(adapter)):
        raise ZeroDivisionError
    assert np.array_equal(np.concatenate(generator.score(PROMPTS, ["Korr", "18 crowns", "Because."])), before)


def test_a_stream_keeps_its_adapter_while_others_come_and_go(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    first = make_adapter(base_folder, tmp_path / "a", seed=1)
    second = make_adapter(base_folder, tmp_path / "b", seed=2)
    expected = {folder: texts(generator, folder)[0] for folder in (None, first, second)}

    def begin(folder: Path | None) -> Any:
        with generator.adapter(None if folder is None else str(folder)):
            return generator.stream(PROMPTS[0], DECODING)

    streams = {folder: begin(folder) for folder in (None, first, second)}
    pieces: dict[Path | None, str] = dict.fromkeys(streams, "")
    open_streams = dict(streams)
    while open_streams:
        for folder in list(open_streams):
            piece = next(open_streams[folder], None)
            if piece is None:
                del open_streams[folder]
            else:
                pieces[folder] += piece
    assert pieces == expected


def test_threads_do_not_see_each_others_adapters(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    folders = [
        None,
        make_adapter(base_folder, tmp_path / "a", seed=1),
        make_adapter(base_folder, tmp_path / "b", seed=2),
    ]
    expected = [texts(generator, folder) for folder in folders]
    found: dict[int, list[list[str]]] = {i: [] for i in range(3)}

    def work(i: int) -> None:
        for _ in range(3):
            found[i].append(texts(generator, folders[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == [expected[i]] * 3 for i in range(3))


def test_an_adapter_of_another_base_or_tokenizer_is_refused_naming_both(
    generator: Any, base_folder: Path, tmp_path: Path
) -> None:
    other = tiny_folder(tmp_path / "other", starter_generator().tokenizer, seed=9)
    for adapter, field in (
        (make_adapter(other, tmp_path / "a"), "base_fingerprint"),
        (make_adapter(base_folder, tmp_path / "b", record={"tokenizer_hash": "0" * 32}), "tokenizer_hash"),
    ):
        recorded = json.loads((adapter / "ragtune.json").read_text())
        with pytest.raises(AdapterMismatch, match=field) as caught:
            generator.attach(adapter)
        assert recorded[field] in str(caught.value) and str(generator.name) in str(caught.value)
        assert caught.value.exit_code == 2
    assert generator._adapters._peft is None, "nothing was attached"


@pytest.mark.parametrize("changes", [{"hidden_size": 48}, {"layers": 3}, {"intermediate_size": 96}])
def test_an_adapter_of_another_shape_never_half_loads(
    generator: Any, tmp_path: Path, changes: dict[str, Any], base_folder: Path
) -> None:
    other = tiny_folder(tmp_path / "other", starter_generator().tokenizer, **changes)
    adapter = make_adapter(other, tmp_path / "a", record=False)
    config = adapter / "adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": str(base_folder)}
    config.write_text(json.dumps(named))
    before = scores(generator, None)
    with pytest.raises(AdapterMismatch, match="does not fit"):
        generator.attach(adapter)
    assert np.array_equal(scores(generator, None), before) and generator._adapters._peft is None


def test_a_plain_peft_adapter_is_taken_by_its_base_name_or_with_a_warning(
    generator: Any, base_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", record=False)
    generator.attach(adapter)
    assert not [w for w in recwarn.list if "ragtune.json" in str(w.message)]
    other = make_adapter(base_folder, tmp_path / "b", seed=4, record=False)
    config = other / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "someone/else"}))
    with pytest.warns(UserWarning, match="someone/else"):
        generator.attach(other)


def test_broken_adapter_folders_are_sentences(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no adapter folder"):
        generator.attach(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownModel, match=r"neither adapter_config\.json nor config\.json"):
        generator.attach(tmp_path / "empty")
    pickled = make_adapter(base_folder, tmp_path / "a")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters"):
        generator.attach(pickled)
    for name in ("ragtune.json", "adapter_config.json", "adapter_model.safetensors"):
        broken = make_adapter(base_folder, tmp_path / f"broken-{name}")
        (broken / name).write_text("{half")
        with pytest.raises(ModelError, match="damaged"):
            generator.attach(broken)
    code = make_adapter(base_folder, tmp_path / "code")
    config = code / "adapter_config.json"
    mapping = {"auto_mapping": {"base_model_class": "X", "parent_library": "evil.module"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | mapping))
    with pytest.raises(ModelError, match="evil"):
        generator.attach(code)


def test_nan_in_an_adapter_is_found_before_it_is_attached(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = make_adapter(base_folder, tmp_path / "a")
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="NaN"):
        generator.attach(adapter)


def test_a_whole_tuned_model_is_an_adapter_too(generator: Any, base_folder: Path, tmp_path: Path) -> None:
    tokenizer = starter_generator().tokenizer
    folder = tiny_folder(tmp_path / "full", tokenizer, seed=8)
    record = {"method": "full", "base_fingerprint": generator.fingerprint, "tokenizer_hash": generator.tokenizer_hash}
    (folder / "ragtune.json").write_text(json.dumps(record))
    own: Any = load_generator(str(folder), device="cpu", dtype="fp32")
    before = scores(generator, None)
    assert np.array_equal(scores(generator, folder), scores(own, None))
    assert texts(generator, folder) == texts(own, None)
    assert np.array_equal(scores(generator, None), before)
    np.testing.assert_array_equal(scores(generator.merge(folder), None), scores(own, None))


def test_nf4_weights_load_and_take_an_adapter(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    sizes = {"hidden_size": 64, "intermediate_size": 128}  # NF4 comes in blocks of 64
    base_folder = tiny_folder(tmp_path / "m", starter_generator().tokenizer, **sizes)
    model, _, fingerprint = base_model(str(base_folder), device="cpu", dtype="fp32", quantize="nf4")
    assert fingerprint == base_model(str(base_folder), device="cpu", dtype="fp32")[2]
    kinds = {type(m).__name__ for m in model.modules()}
    assert "Linear4bit" in kinds
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    loss = peft(torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_tied_embeddings_are_never_swapped(tmp_path: Path, base_folder: Path, generator: Any) -> None:
    adapter = make_adapter(base_folder, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    expected = peft_scores(base_folder, adapter, generator)
    np.testing.assert_allclose(scores(generator, adapter), expected, atol=2e-4)
    assert not generator._adapters._merged
    assert tiny_model(50).config.tie_word_embeddings
