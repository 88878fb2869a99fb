"""Streams that share a batch: the same words as alone, whoever comes, goes, or fails meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rag import packed
from rag.batching import BatchConfig, BatchedGenerator
from rag.errors import ConfigError
from rag.generator import LocalGenerator
from rag.protocols import Decoding, Message
from tests.tuning.tiny import tiny_model, tiny_tokenizer

SYSTEM = {"role": "system", "content": "a b c d e f g h i j k l m n the bridge is long a b c"}


def ask(*words: str) -> list[Message]:
    return [SYSTEM, {"role": "user", "content": " ".join(words)}]


PROMPTS = [
    ask("who", "opened", "it", "?"),
    ask("when", "was", "the", "bridge", "opened", "by", "the", "mayor", "of", "orrin", "?"),
    ask("how", "long"),
    [{"role": "user", "content": "the answer is not in the documents ."}],
    ask("who", "opened", "the", "bridge", "in", "1911", "?"),
    ask("a", "b", "c"),
    [{"role": "user", "content": "vane tessa"}],
    ask("how", "long", "is", "it"),
]
DECODING = Decoding(max_new_tokens=24)


def local() -> LocalGenerator:
    return LocalGenerator(tiny_model(), tiny_tokenizer(), name="tiny", fingerprint="f")


@pytest.fixture()
def batched() -> Iterator[BatchedGenerator]:
    yield BatchedGenerator(local(), BatchConfig(idle_seconds=0.5))


def together(generator: Any, prompts: Sequence[Sequence[Message]], decoding: Decoding = DECODING) -> list[str]:
    """All prompts streamed at once, each from its own thread."""
    said = [""] * len(prompts)

    def one(i: int) -> None:
        said[i] = "".join(generator.stream(prompts[i], decoding))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


def test_together_is_as_alone(batched: BatchedGenerator) -> None:
    assert batched.together
    alone = [g.text for g in local().generate(PROMPTS, DECODING)]
    assert together(batched, PROMPTS * 3) == alone * 3
    assert batched.load == (0, 0)


def test_prompts_longer_than_a_pass_and_slots_that_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CPU_PREFILL_TOKENS", 8)
    monkeypatch.setattr("rag.engine.CPU_SLOTS", 2)
    alone = [g.text for g in local().generate(PROMPTS, DECODING)]
    assert together(BatchedGenerator(local()), PROMPTS) == alone


def test_what_prompts_share_is_run_once(batched: BatchedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    real = packed.PackedBackend.forward

    def forward(self: Any, segments: Any, keep: Any) -> Any:
        ran.append(sum(len(s.ids) for s in segments))
        return real(self, segments, keep)

    monkeypatch.setattr(packed.PackedBackend, "forward", forward)
    prompts = [PROMPTS[i] for i in (0, 1, 4, 3, 5)]
    said = ["".join(batched.stream(prompt, DECODING)) for prompt in prompts]
    lengths = [len(batched.prompt_ids(p)) for p in prompts]
    assert ran[:2] == lengths[:2] and ran[3] == lengths[3]  # two show what is shared; the fourth begins otherwise
    assert ran[2] <= lengths[2] - 16 and ran[4] <= lengths[4] - 16
    monkeypatch.undo()
    assert said == [g.text for g in local().generate(prompts, DECODING)]


def test_a_longer_prompt_makes_longer_slots_and_waits_for_the_others(
    batched: BatchedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.batching._FIRST_CAPACITY", 64)
    monkeypatch.setattr("rag.batching._ROUND", 16)
    long = ask(*["bridge"] * 60)
    prompts = [PROMPTS[0], long, PROMPTS[2]]
    assert together(batched, prompts) == [g.text for g in local().generate(prompts, DECODING)]


def test_who_leaves_frees_the_place(batched: BatchedGenerator) -> None:
    stream = batched.stream(PROMPTS[0], Decoding(max_new_tokens=100))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 60
    while batched.load != (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    assert batched.load == (0, 0)


def test_a_failing_pass_is_told_to_all_and_the_next_one_works(
    batched: BatchedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(packed.PackedBackend, "forward", broken)
        failed = []

        def one() -> None:
            try:
                list(batched.stream(PROMPTS[0], DECODING))
            except RuntimeError as error:
                failed.append(str(error))

        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failed == ["out of memory"] * 3
    alone = local().generate(PROMPTS[:1], DECODING)[0].text
    assert "".join(batched.stream(PROMPTS[0], DECODING)) == alone


def test_nothing_is_held_when_nobody_asks(batched: BatchedGenerator) -> None:
    list(batched.stream(PROMPTS[0], DECODING))
    until = time.monotonic() + 60
    while batched._thread is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert batched._thread is None and not batched._lanes
    assert list(batched.stream(PROMPTS[0], DECODING))


def test_streams_with_and_without_an_adapter(batched: BatchedGenerator, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    made = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    made.save_pretrained(str(tmp_path / "adapter"))
    folder = str(tmp_path / "adapter")

    def said(generator: Any, adapted: bool) -> list[str]:
        class Adapted:
            def stream(self, messages: Sequence[Message], decoding: Decoding) -> Iterator[str]:
                with generator.adapter(folder if adapted else None):
                    return generator.stream(messages, decoding)

        return together(Adapted(), PROMPTS)

    plain = local()
    with plain.adapter(folder):
        expected = [g.text for g in plain.generate(PROMPTS, DECODING)]
    results: dict[bool, list[str]] = {}
    threads = [threading.Thread(target=lambda a=a: results.update({a: said(batched, a)})) for a in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[True] == expected
    assert results[False] == [g.text for g in local().generate(PROMPTS, DECODING)] != expected


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="idle_seconds"):
        BatchConfig(idle_seconds=0)
