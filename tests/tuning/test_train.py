"""Training: the loss of a plain loop, resumed equals uninterrupted, and every refusal with its sentence."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rag.errors import ConfigError, TrainingError, UsageError
from tests.tuning.tiny import tiny_base, tiny_model, tiny_rows, tiny_tokenizer
from tuning import checkpoint
from tuning.record import amend_record, read_record
from tuning.rows import Row
from tuning.train import TrainConfig, encode_rows, train
from tuning.trainer import Encoded, answer_loss, group_rows, plan_steps

CONFIG = TrainConfig(learning_rate=1e-2, num_train_epochs=2, tokens_per_step=90, tokens_per_forward=60, save_steps=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "adapter_model.safetensors"))


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def configured(**changes: Any) -> TrainConfig:
    from dataclasses import replace

    return replace(CONFIG, **changes)


# ----------------------------------------------------------------------------- the plan


def test_each_epoch_has_every_row_once_in_steps_of_about_equal_tokens() -> None:
    lengths = [10 + 7 * (i % 9) for i in range(50)]
    steps = plan_steps(lengths, 200, 2, seed=3)
    half = len(steps) // 2
    assert half == round(sum(lengths) / 200)
    for part in (steps[:half], steps[half:]):
        assert sorted(r for s in part for r in s) == list(range(50))
        sizes = [sum(lengths[r] for r in s) for s in part]
        assert max(sizes) <= 200 + max(lengths) and min(sizes) >= 200 - max(lengths)
    assert steps[:half] != steps[half:]
    assert steps == plan_steps(lengths, 200, 2, seed=3)
    assert steps != plan_steps(lengths, 200, 2, seed=4)


def test_half_an_epoch_is_the_first_half_of_its_steps() -> None:
    lengths = [10] * 40
    assert plan_steps(lengths, 40, 1.5, 0) == plan_steps(lengths, 40, 2, 0)[:15]


def test_a_row_longer_than_a_step_is_a_step() -> None:
    assert plan_steps([500], 100, 1, 0) == [[0]]


def test_rows_are_grouped_by_length_within_the_budget() -> None:
    rows = [Encoded(str(i), tuple(range(n)), 1) for i, n in enumerate((90, 10, 12, 11, 200))]
    groups = list(group_rows(rows, 40))
    assert [[len(r.ids) for r in g] for g in groups] == [[10, 11, 12], [90], [200]]


# ----------------------------------------------------------------------------- the loss


def test_loss_of_a_padded_group_is_the_sum_of_the_single_rows() -> None:
    rows, _ = encode_rows(tiny_rows(6), tiny_tokenizer(), max_seq_length=128)
    model = tiny_model()
    together = answer_loss(model, rows)
    assert torch.allclose(together, sum(answer_loss(model, [r]) for r in rows), atol=1e-4)
    by_hand = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].detach().log_softmax(-1)
        by_hand -= sum(float(logits[i - 1, row.ids[i]]) for i in range(len(row.ids) - row.answer, len(row.ids)))
    assert float(together.detach()) == pytest.approx(by_hand, abs=1e-4)


def plain_loop(rows: list[Row], config: TrainConfig) -> list[float]:
    """The same run written down plainly: PEFT model, full logits, one row at a time, no kernels, no Trainer."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    encoded, _ = encode_rows(rows, tiny_tokenizer(), max_seq_length=config.max_seq_length)
    steps = plan_steps([len(r.ids) for r in encoded], config.tokens_per_step, config.num_train_epochs, config.seed)
    model = tiny_model()
    set_seed(config.seed)
    model = get_peft_model(
        model, LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    losses = []
    for number, step in enumerate(steps):
        batch = [encoded[i] for i in step]
        total = sum(r.answer for r in batch)
        loss = torch.zeros(())
        for row in batch:
            labels = [-100] * (len(row.ids) - row.answer) + list(row.ids[len(row.ids) - row.answer :])
            mean = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
            loss = loss + mean * row.answer / total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.factor(number, len(steps))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_loss_curve_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG)
    assert report.loss == pytest.approx(plain_loop(tiny_rows(), CONFIG), abs=1e-5)
    assert report.loss[-1] < report.loss[0]


def test_loss_curve_is_that_of_the_sft_trainer_with_padding(tmp_path: Path) -> None:
    """TRL's own trainer and collator, all rows in one padded batch: what its users get."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = tiny_rows(5)
    config = TrainConfig(
        learning_rate=1e-2, num_train_epochs=6, tokens_per_step=10_000, lr_scheduler_type="constant", warmup_ratio=0.0
    )
    report = train(rows, base=tiny_base(), out=tmp_path / "a", config=config)
    encoded, _ = encode_rows(rows, tiny_tokenizer(), max_seq_length=128)
    data = Dataset.from_list(
        [
            {
                "input_ids": list(r.ids),
                "labels": [-100] * (len(r.ids) - r.answer) + list(r.ids[len(r.ids) - r.answer :]),
            }
            for r in encoded
        ]
    )
    losses: list[float] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=6,
            per_device_train_batch_size=5,
            learning_rate=1e-2,
            logging_steps=1,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            seed=0,
        ),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Keep()],
    )
    trainer.train()
    assert report.loss == pytest.approx(losses, abs=2e-4)  # TRL rounds what it logs


# ------------------------------------------------------------------- what is left behind


def test_folder_holds_adapter_record_and_card(tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    report = train(
        tiny_rows(), base=tiny_base(), out=out, config=CONFIG, recipe="rag", record={"counts": {"answer": 12}}
    )
    assert {p.name for p in out.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "ragtune.json",
        "README.md",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    record = read_record(out)
    assert record["base_fingerprint"] == "tiny-0-3" and record["prompt_version"] and record["tokenizer_hash"]
    assert (record["recipe"], record["method"], record["rows"]) == ("rag", "lora", 12)
    assert record["config"]["seed"] == 0 and record["loss"] == list(report.loss) and record["sources"] == 12
    card = (out / "README.md").read_text()
    assert "Not evaluated yet" in card and "Licence" in card and "tiny-0-3" in card and "12 with an answer" in card
    amend_record(
        out,
        before={"f1": {"mean": 0.1, "low": 0.05, "high": 0.15}},
        after={"f1": {"mean": 0.4, "low": 0.3, "high": 0.5}},
    )
    assert read_record(out)["after"]["f1"]["mean"] == 0.4
    assert "| f1 | 0.100 (0.050 to 0.150) | 0.400 (0.300 to 0.500) |" in (out / "README.md").read_text()


def test_adapter_loads_with_peft_and_lowers_the_loss(tmp_path: Path) -> None:
    from peft import PeftModel

    train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(num_train_epochs=15))
    encoded, _ = encode_rows(tiny_rows(), tiny_tokenizer(), max_seq_length=128)
    with torch.no_grad():
        before = answer_loss(tiny_model(), encoded)
        tuned = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "a")).eval()
        assert answer_loss(tuned, encoded) < 0.97 * before
        with tuned.disable_adapter():
            assert torch.allclose(answer_loss(tuned, encoded), before)


def test_upper_layers_alone_get_adapters(tmp_path: Path) -> None:
    train(tiny_rows(), base=tiny_base(layers=4), out=tmp_path / "a", config=configured(upper_layers=0.5))
    assert {k.split(".layers.")[1][0] for k in weights(tmp_path / "a")} == {"2", "3"}


@pytest.mark.parametrize("method", ["dora", "full"])
def test_methods_train(tmp_path: Path, method: str) -> None:
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(method=method, dtype="fp32"))
    assert report.loss[-1] < report.loss[0]
    assert (tmp_path / "a" / ("model.safetensors" if method == "full" else "adapter_model.safetensors")).is_file()


def test_full_training_of_the_upper_half_leaves_the_rest_alone(tmp_path: Path) -> None:
    train(
        tiny_rows(),
        base=tiny_base(layers=4),
        out=tmp_path / "a",
        config=configured(method="full", upper_layers=0.5, dtype="fp32"),
    )
    before = tiny_model(layers=4).state_dict()
    changed = {
        k for k, v in load_file(str(tmp_path / "a" / "model.safetensors")).items() if not torch.equal(v, before[k])
    }
    assert changed and all(".layers.2." in k or ".layers.3." in k for k in changed)


# ----------------------------------------------------------------------- stop and go on


def interrupt_at(step: int) -> Any:
    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("step", [1, 4, 5])
def test_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, step: int, dropout: float) -> None:
    config = configured(lora_dropout=dropout)
    whole = train(tiny_rows(), base=tiny_base(), out=tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "parts", config=config, progress=interrupt_at(step))
    assert not (tmp_path / "parts").exists()
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "parts", config=config)
    assert report.resumed == step
    assert report.loss == whole.loss and report.tokens == whole.tokens
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]


def test_half_written_and_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    train(tiny_rows(), base=tiny_base(), out=tmp_path / "whole", config=CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "parts", config=CONFIG, progress=interrupt_at(5))
    run = tmp_path / ".parts.run"
    assert [p.name for p in checkpoint.complete(run)] == ["checkpoint-5", "checkpoint-4"]
    tensors = run / "checkpoint-5" / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    (run / ".checkpoint-6.1.tmp").mkdir()
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "parts", config=CONFIG)
    assert report.resumed == 4
    assert set(report.passed_over) == {"checkpoint-5", ".checkpoint-6.1.tmp"}
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_resume_with_other_settings_or_data_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG, progress=interrupt_at(3))
    with pytest.raises(ConfigError, match=r"learning_rate \(was 0.01, is 0.02\)"):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(learning_rate=0.02))
    with pytest.raises(ConfigError, match="data_hash"):
        train(tiny_rows(11), base=tiny_base(), out=tmp_path / "a", config=CONFIG)
    with pytest.raises(ConfigError, match="base_fingerprint"):
        train(tiny_rows(), base=tiny_base(seed=1), out=tmp_path / "a", config=CONFIG)
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(save_steps=7))
    assert report.resumed == 3  # how often to save is no part of the run


def test_without_resume_a_run_begins_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG, progress=interrupt_at(3))
    assert train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG, resume=False).resumed is None


def test_a_finished_run_is_returned_and_other_settings_replace_it(tmp_path: Path) -> None:
    first = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG)
    again = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=CONFIG)
    assert again.reused and again.loss == first.loss
    other = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(seed=1))
    assert not other.reused and other.loss != first.loss


def test_time_limit_shortens_the_schedule(tmp_path: Path) -> None:
    report = train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=configured(max_minutes=1e-9))
    assert report.steps < report.planned_steps


# ------------------------------------------------------------------------------ bad input


def test_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path: Path) -> None:
    model, tokenizer, fingerprint = tiny_base()
    steps = plan_steps(
        [len(r.ids) for r in encode_rows(tiny_rows(), tokenizer, max_seq_length=128)[0]], CONFIG.tokens_per_step, 2, 0
    )
    bad = steps[3][0]
    rows = tiny_rows()
    prompt = ({"role": "user", "content": "vane ?"},)
    rows[bad] = Row(rows[bad].id, "answer", prompt, rows[bad].completion)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("vane")] = math.nan
    model.lm_head.weight = torch.nn.Parameter(tiny_model().lm_head.weight.detach().clone())
    with pytest.raises(TrainingError, match=rf"step \d+: the loss is nan \(rows .*q{bad}\b.*learning rate"):
        train(rows, base=(model, tokenizer, fingerprint), out=tmp_path / "a", config=configured(save_steps=1))
    last, _ = checkpoint.latest(tmp_path / ".a.run")
    if last is not None:
        assert all(torch.isfinite(t.float()).all() for t in last.tensors().values())
    assert not (tmp_path / "a").exists()


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training rows"):
        train([], base=tiny_base(), out=tmp_path / "a")


def test_rows_without_answer_tokens_are_refused(tmp_path: Path) -> None:
    rows = [Row("q", "answer", ({"role": "user", "content": "who ?"},), " ")]
    with pytest.raises(TrainingError, match="1 have an empty answer"):
        train(rows, base=tiny_base(), out=tmp_path / "a")


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = tiny_rows()
    sizes = [len(r.ids) for r in encode_rows(rows, tiny_tokenizer(), max_seq_length=128)[0]]
    report = train(rows, base=tiny_base(), out=tmp_path / "a", config=configured(max_seq_length=max(sizes) - 1))
    assert report.dropped == sizes.count(max(sizes)) and report.rows == len(rows) - report.dropped
    with pytest.raises(TrainingError, match="12 have more than 5 tokens"):
        train(rows, base=tiny_base(), out=tmp_path / "b", config=configured(max_seq_length=5))


def test_one_row_is_enough(tmp_path: Path) -> None:
    report = train(tiny_rows(1), base=tiny_base(), out=tmp_path / "a", config=configured(num_train_epochs=3))
    assert report.steps == 3 and report.rows == 1


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="other files"):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        train(tiny_rows(), base=tiny_base(), out=tmp_path / "file")


def test_config_names_every_bad_field_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(method="lorra", r=0, upper_layers=0.0, learning_rate=math.nan)  # type: ignore[arg-type]
    for name in ("method is 'lorra'", "r is 0", "upper_layers is 0.0", "learning_rate is nan"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("linear", [0.5, 1.0, 0.75, 0.5, 0.25]), ("constant", [0.5, 1.0, 1.0, 1.0, 1.0])],
)
def test_schedule_by_hand(kind: str, values: list[float]) -> None:
    config = TrainConfig(lr_scheduler_type=kind, warmup_ratio=0.2)
    assert [config.factor(s, 6) for s in (0, 1, 3, 4, 5)] == pytest.approx(values)


def test_a_checkpoint_is_whole_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, rename = [], os.replace

    def renamed(one: Path, two: Path) -> None:
        if "checkpoint-" in Path(two).name:
            named.append(sorted(path.name for path in Path(one).iterdir()))
        rename(one, two)

    monkeypatch.setattr(os, "replace", renamed)
    train(tiny_rows(), base=tiny_base(), out=tmp_path / "a", config=replace(CONFIG, save_steps=1))
    assert len(named) >= 2
    assert all(files == ["state.json", "tensors.safetensors", "trainer_state.json"] for files in named)


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, {"x": torch.ones(2)}, {})

    def full(_: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 4, {"x": torch.zeros(2)}, {}, full)
    found, passed = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 3 and len(passed) == 1


def test_checkpoint_state_is_json(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, 3, {"x": torch.ones(2)}, {"a": 1})
    assert json.loads((saved.folder / "state.json").read_text())["step"] == 3
    found, passed = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 3 and torch.equal(found.tensors()["x"], torch.ones(2)) and not passed
