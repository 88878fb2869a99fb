"""Training on ratings: what is read, what is trained on, and that good answers become likelier than bad ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import AdapterMismatch, ConfigError, TrainingError
from rag.tokens import ChatTokens
from tests.tuning.tiny import tiny_model, tiny_tokenizer
from tuning.preference_train import (
    Preference,
    PreferenceConfig,
    _encode,
    mismatched,
    objective,
    read_preferences,
    separation,
    singles,
    split,
    train_preference,
)
from tuning.record import read_record

PROMPT = ({"role": "user", "content": "who opened the bridge ?"},)
QUICK = PreferenceConfig(
    learning_rate=2e-2, num_train_epochs=6, per_device_train_batch_size=4, gradient_accumulation_steps=1, r=4
)


def rows(n: int = 8) -> list[Preference]:
    """Answers with "mayor" are good, with "metres" bad; prompts differ."""
    made = []
    for i in range(n):
        prompt = ({"role": "user", "content": f"who opened the bridge {'abcdefghijklmn'[i % 14]} ?"},)
        made.append(Preference(prompt, "the mayor" if i % 2 else "metres long", bool(i % 2)))
    return made


def base() -> Any:
    return tiny_model(), tiny_tokenizer(), "f"


def test_both_forms_are_read(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    prompt = [{"role": "user", "content": "q"}]
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    lines = [
        {"prompt": prompt, "completion": say("a"), "label": False},
        {"prompt": prompt, "chosen": say("b"), "rejected": say("c")},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_preferences(file) == [
        Preference(tuple(prompt), "a", False),
        Preference(tuple(prompt), "b", True, "c"),
    ]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"prompt": []}', '{"prompt": [{"role": "user"}], "completion": [], "label": true}']
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "votes.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(TrainingError, match="line 1 is no rating"):
        read_preferences(file)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_preferences(tmp_path / "none.jsonl")


def test_pairs_alone_are_trained_as_pairs() -> None:
    pair = Preference(PROMPT, "good", True, "bad")
    assert objective([pair, pair]) == "dpo" and objective([pair, Preference(PROMPT, "x")]) == "kto" == objective([])
    assert [(r.completion, r.good) for r in singles([pair])] == [("good", True), ("bad", False)]


def test_separation_is_the_area_under_the_curve() -> None:
    assert separation([2, 3], [1, 0]) == 1.0 and separation([0], [1]) == 0.0
    assert separation([1, 2], [1, 3]) == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert math.isnan(separation([], [1]))


def test_the_same_prompts_are_held_out_every_time_and_never_trained_on() -> None:
    made = rows(14) * 3
    learn, held = split(made)
    assert (learn, held) == split(list(made)) and learn and held
    assert not {str(r.prompt) for r in learn} & {str(r.prompt) for r in held}
    assert split(rows(8)) == (rows(8), [])


def test_neighbours_swap_answers() -> None:
    batch = {"prompt_ids": [[1], [2], [3]], "completion_ids": [[10], [20], [30]]}
    assert mismatched(batch)["KL_completion_ids"] == [[30], [10], [20]]


def test_rows_have_the_token_ids_of_serving() -> None:
    tokenizer = tiny_tokenizer()
    tokens = ChatTokens(tokenizer)
    made, dropped = _encode([*rows(4), Preference(PROMPT, "  ", True)], tokenizer, "kto", QUICK)
    assert dropped == 1 and len(made) == 4
    wanted = {(tuple(tokens.prompt_ids(r.prompt)), tuple(tokens.completion_ids(r.completion)), r.good) for r in rows(4)}
    assert {(tuple(m["prompt_ids"]), tuple(m["completion_ids"]), m["label"]) for m in made} == wanted


@pytest.mark.parametrize(
    ("change", "named"),
    [({"beta": 0}, "beta"), ({"per_device_train_batch_size": 1}, "per_device"), ({"max_minutes": 0}, "max_minutes")],
)
def test_impossible_settings(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PreferenceConfig(**change)


def test_one_kind_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    for made, told in (([r for r in rows() if r.good], "All 4 ratings are good"), ([], "no ratings")):
        with pytest.raises(TrainingError, match=told):
            train_preference(made, base=base(), out=tmp_path / "out", config=QUICK)
    assert not (tmp_path / "out").exists()


def weigh(folder: Path | None) -> tuple[float, float]:
    """Mean log-probability per token of the good and the bad answer under an adapter."""
    from rag.generator import LocalGenerator

    generator = LocalGenerator(tiny_model(), tiny_tokenizer(), name="tiny", fingerprint="f")
    prompt = [{"role": "user", "content": "who opened the bridge n ?"}]
    with generator.adapter(str(folder) if folder else None):
        good, bad = generator.score([prompt, prompt], ["the mayor", "metres long"])
    return float(good.mean()), float(bad.mean())


@pytest.mark.parametrize("by", ["kto", "dpo"])
def test_good_answers_become_likelier_than_bad_ones(tmp_path: Path, by: str) -> None:
    made = rows(12)
    if by == "dpo":
        made = [Preference(r.prompt, "the mayor", True, "metres long") for r in made]
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "adapter"
    report = train_preference(
        made, base=base(), out=out, config=QUICK, progress=lambda _, done, total, text: seen.append((done, total, text))
    )
    before, after = weigh(None), weigh(out)
    assert report.objective == by and report.steps == 18 and len(report.loss) == 18
    assert after[0] - after[1] > before[0] - before[1] + 0.2
    assert seen[-1][0] == seen[-1][1] == 18 and "loss" in seen[-1][2] and "tokens/s" in seen[-1][2]
    record = read_record(out)
    assert record["recipe"] == "preference" and record["objective"] == by and record["rows"] == report.rows
    assert (out / "README.md").is_file() and not list(tmp_path.glob(".adapter*"))


def test_training_goes_on_from_an_adapter_and_checks_its_base(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train_preference(rows(12), base=base(), out=first, config=QUICK)
    still = replace(QUICK, learning_rate=1e-9, num_train_epochs=1)
    train_preference(rows(12), base=base(), out=second, adapter=first, config=still)
    assert weigh(second) == pytest.approx(weigh(first), abs=1e-4)  # it begins where the first one ended
    assert read_record(second)["start"] == str(first) and read_record(second)["started_from"]
    again = train_preference(rows(12), base=base(), out=second, adapter=first, config=still)
    assert again.reused and again.loss == tuple(read_record(second)["loss"])
    assert sorted(p.name for p in second.iterdir()) == sorted(p.name for p in first.iterdir())
    with pytest.raises(AdapterMismatch, match="another base"):
        train_preference(rows(12), base=(*base()[:2], "g"), out=tmp_path / "third", adapter=first, config=QUICK)
