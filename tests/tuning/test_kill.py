"""A run that is killed with signal 9 goes on to the weights of a run that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tuning.test_train import CONFIG, same
from tests.tuning.tiny import save_base, tiny_base, tiny_rows
from tuning.train import TrainConfig, train

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tests.tuning.test_train import CONFIG
from tests.tuning.tiny import tiny_base, tiny_rows
from tuning import checkpoint
from tuning.train import train

flush = checkpoint.fsync
def slow(path):  # long enough to be killed in
    print("saving", path.name, flush=True)
    time.sleep(0.02)
    flush(path)
checkpoint.fsync = slow
def progress(stage, done, total, detail):
    print("step", done, flush=True)
train(tiny_rows(), base=tiny_base(), out=Path(sys.argv[1]), config=replace(CONFIG, save_steps=1), progress=progress)
print("finished", flush=True)
"""


def killed_after(out: Path, lines: int) -> bool:
    """Start a run, kill it after so many lines of its output; whether it was killed before its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        for number, line in enumerate(child.stdout, 1):
            if line.startswith("finished"):
                return False
            if number == lines:
                time.sleep(random.Random(lines).random() * 0.02)
                child.send_signal(signal.SIGKILL)
                break
        child.wait()
    return True


def check(tmp_path: Path, points: list[int]) -> None:
    from dataclasses import replace

    config: TrainConfig = replace(CONFIG, save_steps=1)
    train(tiny_rows(), base=tiny_base(), out=tmp_path / "whole", config=config)
    for point in points:
        out = tmp_path / f"killed{point}"
        assert killed_after(out, point)
        assert not out.exists()
        report = train(tiny_rows(), base=tiny_base(), out=out, config=config)
        assert report.resumed is None or report.resumed <= report.steps
        assert same(tmp_path / "whole", out), point


def test_killed_while_saving_and_between_saves(tmp_path: Path) -> None:
    check(tmp_path, [11])


@pytest.mark.slow
def test_killed_at_many_points(tmp_path: Path) -> None:
    check(tmp_path, random.Random(0).sample(range(1, 40), 12))


@pytest.mark.slow
def test_qlora_trains_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_base(tmp_path / "base")
    config = TrainConfig(method="qlora", learning_rate=1e-2, num_train_epochs=4, tokens_per_step=200)
    report = train(tiny_rows(), base=str(tmp_path / "base"), out=tmp_path / "a", config=config)
    assert report.loss[-1] < report.loss[0]
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()


def test_an_adapter_is_served_by_name_and_refused_on_another_base(tmp_path: Path) -> None:
    from rag.errors import AdapterMismatch
    from rag.models import load_generator
    from tests.tuning.tiny import tiny_model, tiny_tokenizer

    save_base(tmp_path / "base")
    train(tiny_rows(), base=str(tmp_path / "base"), out=tmp_path / "a", config=CONFIG)
    generator = load_generator(str(tmp_path / "base"))
    prompt, completion = list(tiny_rows()[0].prompt), tiny_rows()[0].completion
    plain = generator.score([prompt], [completion])[0].sum()
    with generator.adapter(str(tmp_path / "a")):
        assert generator.score([prompt], [completion])[0].sum() > plain
    assert generator.score([prompt], [completion])[0].sum() == plain
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with (
        pytest.raises(AdapterMismatch, match="trained on"),
        load_generator(str(tmp_path / "other")).adapter(str(tmp_path / "a")),
    ):
        pass
