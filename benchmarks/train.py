"""LoRA on retrieved-context rows: this package's trainer against TRL's SFTTrainer as it comes, and a plain loop.

The same XQuAD rows with three passages each go to every side: SmolLM2-135M, LoRA r=16 on all linear layers, one epoch.
Each side runs in a process of its own, turn by turn, so that its peak memory is its own and a slow minute of the machine
hits all; loading is not counted in the time, but in the memory. `trl` has the defaults of SFTConfig with batches of 2,
`trl-fp32` the same without bf16. `ours-upper` puts the adapters on the upper half of the layers, as the recipe does.
`loop` is written down plainly in fp32 (full logits, one row at a time, no Trainer): its losses are compared with ours.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.bench import shared_folder

ARMS = ("trl", "trl-fp32", "ours", "ours-upper", "loop")
PASSAGES = 3


def make_rows(shared: Path, count: int) -> list[Any]:
    """XQuAD questions with their paragraph and the two others that share most words with the question, in seeded order."""
    from rag.prompt import render
    from rag.types import Chunk, Passage
    from tuning.rows import Row

    folder = shared / "data/qa/xquad"
    corpus = {d["_id"]: d["text"] for d in map(json.loads, (folder / "corpus.en.jsonl").open(encoding="utf-8"))}
    asked = [json.loads(line) for line in (folder / "qa.en.jsonl").open(encoding="utf-8")]
    chance = random.Random(0)
    words = {k: Counter(re.findall(r"\w+", t.lower())) for k, t in corpus.items()}
    rows = []
    for q in chance.sample(asked, count):
        tokens = set(re.findall(r"\w{4,}", q["question"].lower()))
        gold = q["doc_ids"][0]
        others = sorted((d for d in corpus if d != gold), key=lambda d: (-sum(t in words[d] for t in tokens), d))
        shown = [gold, *others[: PASSAGES - 1]]
        chance.shuffle(shown)
        passages = [Passage(Chunk(d, d, d, 0, len(corpus[d]), corpus[d]), i, 1.0) for i, d in enumerate(shown, 1)]
        rendered = render(q["question"], passages, count_tokens=lambda text: len(text) // 4, budget=4096)
        rows.append(Row(q["id"], "answer", tuple(rendered.messages), q["answers"][0]))
    return rows


def run_trl(rows: list[Any], folder: Path, *, bf16: bool) -> dict[str, Any]:
    """TRL's trainer with its defaults."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from rag.generator import base_model

    model, tokenizer, _ = base_model("starter", dtype="fp32")
    losses: list[float] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        max_length=None,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),  # bf16 is refused otherwise
        **({} if bf16 else {"bf16": False}),
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([row.to_trl() for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Keep()],
    )
    began = time.perf_counter()
    trainer.train()
    return {"seconds": time.perf_counter() - began, "losses": losses}


def configuration(upper: float = 1.0, dtype: str = "auto") -> Any:
    from tuning.train import TrainConfig

    return TrainConfig(learning_rate=3e-4, upper_layers=upper, dtype=dtype, save_steps=10_000)


def run_ours(rows: list[Any], folder: Path, *, upper: float, dtype: str) -> dict[str, Any]:
    """This package's `train`; the time is that of its steps."""
    from tuning.train import train

    report = train(rows, base="starter", out=folder / "adapter", config=configuration(upper, dtype))
    return {"seconds": report.seconds, "losses": list(report.loss)}


def run_loop(rows: list[Any]) -> dict[str, Any]:
    """The same run as `ours`, written down plainly in fp32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from rag.generator import base_model
    from tuning.train import encode_rows
    from tuning.trainer import plan_steps

    config = configuration()
    model, tokenizer, _ = base_model("starter", dtype="fp32")
    encoded, _ = encode_rows(rows, tokenizer, max_seq_length=config.max_seq_length)
    steps = plan_steps([len(r.ids) for r in encoded], config.tokens_per_step, 1, config.seed)
    set_seed(config.seed)
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    losses = []
    began = time.perf_counter()
    for number, step in enumerate(steps):
        total, value = sum(encoded[i].answer for i in step), 0.0
        for row in (encoded[i] for i in step):
            labels = [-100] * (len(row.ids) - row.answer) + list(row.ids[-row.answer :])
            loss = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss * row.answer / total
            loss.backward()
            value += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.factor(number, len(steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value)
    return {"seconds": time.perf_counter() - began, "losses": losses}


def child(arm: str, rows_file: Path, dtype: str) -> None:
    """One side, in its own process; prints a JSON line."""
    from tuning.rows import read_rows

    rows = read_rows(rows_file)
    with tempfile.TemporaryDirectory() as folder:
        if arm.startswith("trl"):
            found = run_trl(rows, Path(folder), bf16=arm == "trl")
        elif arm == "loop":
            found = run_loop(rows)
        else:
            found = run_ours(rows, Path(folder), upper=0.5 if arm == "ours-upper" else 1.0, dtype=dtype)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps(found), flush=True)


def run(arm: str, rows_file: Path, dtype: str = "auto") -> dict[str, Any]:
    """Start a child and read its result."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train",
        "--child",
        arm,
        "--rows-file",
        str(rows_file),
        "--dtype",
        dtype,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-4000:]}")
    found = json.loads(lines[-1].removeprefix("RESULT "))
    print(f"{arm}: {found['seconds']:.0f} s, {found['peak'] / 2**30:.2f} GiB", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=["trl", "trl-fp32", "ours", "ours-upper"], choices=ARMS)
    parser.add_argument("--loss-rows", type=int, default=24, help="rows of the comparison with the plain loop; 0: none")
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--rows-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="auto", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.rows_file, given.dtype)
        return 0
    shared = shared_folder()
    if shared is None:
        print("shared data not found: set RAGTUNE_SHARED or put `shared` beside the checkout", file=sys.stderr)
        return 1
    from rag.generator import base_model
    from tuning.rows import write_rows
    from tuning.train import encode_rows

    rows = make_rows(shared, given.rows)
    encoded, _ = encode_rows(rows, base_model("starter")[1], max_seq_length=8192)
    tokens, answers = sum(len(r.ids) for r in encoded), sum(r.answer for r in encoded)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, rows)
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in given.arms}
        for _ in range(given.rounds):
            for arm in given.arms:
                found[arm].append(run(arm, file))
        few = Path(folder) / "few.jsonl"
        write_rows(few, rows[: given.loss_rows])
        curves = [run(arm, few, "fp32")["losses"] for arm in ("loop", "ours")] if given.loss_rows else []
    print(f"<!-- results -->\n## Training: {len(rows)} XQuAD rows, {tokens} tokens, {answers} of them answers\n")
    print("| | tokens/s (median) | of each turn | peak memory | against trl |\n|---|---|---|---|---|")
    reference = found.get("trl") or next(iter(found.values()))
    base = statistics.median(r["seconds"] for r in reference)
    least = min(r["peak"] for r in reference)
    for arm, runs in found.items():
        speeds = [tokens / r["seconds"] for r in runs]
        peak = max(r["peak"] for r in runs)
        faster = base / statistics.median(r["seconds"] for r in runs)
        print(
            f"| {arm} | {statistics.median(speeds):.0f} | {', '.join(f'{s:.0f}' for s in speeds)} | "
            f"{peak / 2**30:.2f} GiB | {faster:.2f}× tokens/s, {peak / least:.0%} of the memory |"
        )
    if curves:
        worst = max(abs(a - b) for a, b in zip(*curves, strict=True))
        print(
            f"\nLoss of each of {len(curves[0])} steps ({given.loss_rows} rows, fp32), ours against a plain loop: largest "
            f"difference {worst:.1e} nats per answer token (from {curves[0][0]:.3f} to {curves[0][-1]:.3f})."
        )
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
