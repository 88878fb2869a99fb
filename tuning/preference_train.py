"""Training on what people preferred: KTO on single ratings (Ethayarajh et al. 2024, arXiv 2402.01306), DPO on pairs
(Rafailov et al. 2023, arXiv 2305.18290), both by TRL's trainers.

The rows are TRL's own forms: {"prompt", "completion", "label"} or {"prompt", "chosen", "rejected"}, with messages. The
reference is the model as it was: the base, or the adapter that training begins from, which stays frozen beside it.
Prompts and answers become token ids as in serving (`rag.tokens`). A run takes minutes and is not resumed: what is in
`out` appears whole, at the end.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rag.errors import ConfigError, TrainingError
from rag.prompt import PROMPT_VERSION
from rag.protocols import TEXT, Message, is_begun
from rag.starters import quiet
from rag.types import content_hash
from tuning import checkpoint
from tuning.record import library_versions, write_record

if TYPE_CHECKING:
    from tuning.train import Base

Loss = Literal["kto", "dpo"]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class PreferenceConfig:
    """Settings of a run; names as in KTOConfig, DPOConfig and LoraConfig.

    `learning_rate`: the papers' 5e-6 for full weights, times ten for LoRA, as TRL's guide to PEFT has it.
    `beta`: how far the model may leave the reference; higher is closer. `per_device_train_batch_size`: KTO compares an
    answer with those of its batch, so at least 2. `max_minutes`: no new step begins after this time.
    """

    r: int = 16
    lora_alpha: int = 32
    beta: float = 0.1
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 4
    max_length: int = 2048
    seed: int = 0
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("r", "lora_alpha", "gradient_accumulation_steps", "max_length"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("beta", "learning_rate", "num_train_epochs"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                problems.append(f"{name} is {getattr(self, name)}; it must be a number above 0")
        if self.per_device_train_batch_size < 2:
            problems.append(f"per_device_train_batch_size is {self.per_device_train_batch_size}; KTO needs at least 2")
        if self.max_minutes is not None and self.max_minutes <= 0:
            problems.append(f"max_minutes is {self.max_minutes}; give minutes above 0, or none for no limit")
        if problems:
            raise ConfigError("; ".join(problems) + ".")


@dataclass(frozen=True, slots=True)
class Preference:
    """One row: a prompt with an answer that was found good or bad, or (`rejected`) with a better and a worse one."""

    prompt: tuple[Message, ...]
    completion: str
    good: bool = True
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """What a run did; `loss` is TRL's own by step, `dropped` rows were too long or empty."""

    adapter: Path
    objective: Loss
    rows: int
    dropped: int
    tokens: int
    seconds: float
    loss: tuple[float, ...]
    steps: int
    reused: bool = False


def read_preferences(path: Path) -> list[Preference]:
    """Rows of a JSON lines file in either form. TrainingError names the first line that is neither."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}). Export the ratings on the page first.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_preference(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise TrainingError(
                    f"{path}, line {number} is no rating ({type(error).__name__}: {error}). Each line must hold "
                    "prompt, completion and label, or prompt, chosen and rejected, as the page exports them."
                ) from None
    return rows


def _preference(data: Mapping[str, Any]) -> Preference:
    given = data["prompt"]
    if isinstance(given, str):
        given = [{"role": TEXT, "content": given}]
    prompt = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in given)
    if "chosen" in data:
        return Preference(prompt, _text(data["chosen"]), True, _text(data["rejected"]))
    if not isinstance(data["label"], bool):
        raise ValueError(f"label is {data['label']!r}, not true or false")
    return Preference(prompt, _text(data["completion"]), data["label"])


def _text(said: Any) -> str:
    return said.strip() if isinstance(said, str) else str(said[-1]["content"])


def objective(rows: Sequence[Preference]) -> Loss:
    """What to train by: DPO where every row is a pair, else KTO (pairs then count as a good and a bad row)."""
    return "dpo" if rows and all(row.rejected is not None for row in rows) else "kto"


def singles(rows: Sequence[Preference]) -> list[Preference]:
    """Pairs taken apart: each becomes a good and a bad row."""
    out = []
    for row in rows:
        out.append(Preference(row.prompt, row.completion, row.good))
        if row.rejected is not None:
            out.append(Preference(row.prompt, row.rejected, False))
    return out


def split(rows: Sequence[Preference], share: float = 0.2) -> tuple[list[Preference], list[Preference]]:
    """(train, held out): about this share of the prompts, the same ones in every run; none of fewer than ten rows."""
    if len(rows) < 10:
        return list(rows), []
    train: list[Preference] = []
    held: list[Preference] = []
    for row in rows:
        place = int(content_hash(json.dumps(row.prompt, sort_keys=True))[:8], 16) / 2**32
        (held if place < share else train).append(row)
    return (train, held) if train else (held, [])


def separation(good: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that a good answer is likelier to the model than a bad one (area under the ROC curve, ties half)."""
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad)) if good and bad else float("nan")


def train_preference(
    rows: Sequence[Preference],
    *,
    base: str | Base = "starter",
    out: Path | str,
    adapter: Path | None = None,
    config: PreferenceConfig = PreferenceConfig(),
    progress: Progress | None = None,
    resume: bool = True,
    record: Mapping[str, Any] | None = None,
) -> PreferenceReport:
    """Train and leave PEFT's files, the record and the model card in `out`; `adapter` is what to begin from.

    With `resume`, a finished run with the same rows and settings is returned as it is.

    Raises:
        TrainingError: no usable rows, only good or only bad ones (KTO), or a loss that is not finite.
        AdapterMismatch: `adapter` belongs to another base.
        UsageError: `out` is a folder that was not made by training.
    """
    from rag.generator import base_model
    from rag.tokens import tokenizer_hash
    from tuning.train import _check_out

    out = Path(out)
    _check_out(out)
    by = objective(rows)
    used = list(rows) if by == "dpo" else singles(rows)
    kinds = {row.good for row in used}
    if by == "kto" and len(kinds) < 2:
        which = "good" if kinds == {True} else "bad"
        raise TrainingError(
            f"All {len(used)} ratings are {which}: tuning needs both kinds to compare. Rate more answers."
            if used
            else "There are no ratings to train on. Rate some answers in the chat first."
        )
    began = time.perf_counter()
    model, tokenizer, fingerprint = base_model(base) if isinstance(base, str) else base
    identity = {
        "base_fingerprint": fingerprint, "tokenizer_hash": tokenizer_hash(tokenizer), "prompt_version": PROMPT_VERSION,
        "recipe": "preference", "started_from": _key(adapter), "settings": asdict(config),
        "data_hash": content_hash(*(json.dumps(asdict(row), sort_keys=True) for row in rows)),
    }  # fmt: skip
    if resume and (found := _finished(out, identity, by)):
        return found
    encoded, dropped = _encode(used, tokenizer, by, config)
    model = _policy(model, adapter, fingerprint, config)
    with quiet():
        losses = _run(model, tokenizer, encoded, by, config, out, progress)
    tokens = sum(len(e["prompt_ids"]) + max(len(v) for k, v in e.items() if k.endswith("_ids")) for e in encoded)
    done = {
        "base": base if isinstance(base, str) else getattr(model, "name_or_path", "") or "model",
        **identity, "method": "lora", "objective": by, "start": str(adapter) if adapter else None,
        "config": asdict(config), "rows": len(encoded), "dropped": dropped,
        "tokens": int(tokens * config.num_train_epochs), "seconds": round(time.perf_counter() - began, 3),
        "steps": len(losses), "planned_steps": len(losses), "loss": losses, "versions": library_versions(),
        **(record or {}),
    }  # fmt: skip
    checkpoint.publish(out, lambda folder: _write(folder, model, done))
    return PreferenceReport(
        out, by, len(encoded), dropped, int(done["tokens"]), float(done["seconds"]), tuple(losses), len(losses)
    )


def _key(adapter: Path | None) -> str | None:
    """Identity of the adapter that training begins from."""
    from rag.adapter_folder import read_adapter

    return read_adapter(adapter).key if adapter else None


def _finished(out: Path, identity: Mapping[str, Any], by: Loss) -> PreferenceReport | None:
    from tuning.record import RECORD, read_record

    if not (out / RECORD).is_file():
        return None
    record = read_record(out)
    if any(record.get(key) != value for key, value in identity.items()):
        return None
    losses = tuple(record["loss"])
    return PreferenceReport(
        out, by, record["rows"], record["dropped"], record["tokens"], record["seconds"], losses, len(losses), True
    )


def _encode(
    rows: Sequence[Preference], tokenizer: Any, by: Loss, config: PreferenceConfig
) -> tuple[list[dict[str, Any]], int]:
    """Token ids as serving has them, shuffled with the seed; without rows that are too long or empty."""
    from rag.tokens import ChatTokens

    tokens = ChatTokens(tokenizer)
    made: list[dict[str, Any]] = []
    for row in rows:
        prompt = tokens.prompt_ids(row.prompt)
        answers = [row.completion] if row.rejected is None else [row.completion, row.rejected]
        ids = [tokens.completion_ids(" " * is_begun(row.prompt) + text) for text in answers]
        if all(text.strip() for text in answers) and len(prompt) + max(map(len, ids)) <= config.max_length:
            kept: dict[str, Any] = {"prompt_ids": prompt}
            names = ("completion_ids",) if by == "kto" else ("chosen_ids", "rejected_ids")
            kept |= dict(zip(names, ids, strict=True))
            made.append({**kept, "label": row.good} if by == "kto" else kept)
    if len(made) < 2 or (by == "kto" and len({m["label"] for m in made}) < 2):
        raise TrainingError(
            f"Of {len(rows)} ratings {len(made)} can be trained on (not empty, at most {config.max_length} tokens): "
            "too few, or all of one kind. Rate more answers."
        )
    random.Random(config.seed).shuffle(made)
    size = config.per_device_train_batch_size
    if len(made) % size == 1 and by == "kto":
        made.append(made[0])  # an answer alone in its batch has none to be compared with
    return made, len(rows) - len(made)


def _policy(model: Any, adapter: Path | None, fingerprint: str, config: PreferenceConfig) -> Any:
    """The model with trainable LoRA weights: new ones, or those of `adapter`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    from rag.adapter_folder import read_adapter
    from rag.errors import AdapterMismatch

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if adapter is None:
        lora = LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )  # fmt: skip
        return get_peft_model(model, lora)
    found = read_adapter(adapter)
    if found.full:
        raise AdapterMismatch(f"{adapter} is a whole model, not an adapter; preferences are trained on adapters.")
    if found.record.get("base_fingerprint") not in (None, fingerprint):
        raise AdapterMismatch(f"{adapter} was trained on another base than the generator; name its base.")
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=True)


def _run(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], by: Loss, config: PreferenceConfig, out: Path,
    progress: Progress | None,
) -> list[float]:  # fmt: skip
    """Train in place; the loss of each step."""
    from datasets import Dataset
    from transformers import TrainerCallback

    device = next(model.parameters()).device
    steps = max(1, math.ceil(len(rows) * config.num_train_epochs / _step_rows(config)))
    options: dict[str, Any] = {
        "output_dir": str(out.with_name(f".{out.name}.run")), "beta": config.beta,
        "learning_rate": config.learning_rate, "max_steps": steps, "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps, "max_length": config.max_length,
        "seed": config.seed, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "bf16": False, "fp16": False, "gradient_checkpointing": False, "use_cpu": device.type == "cpu",
        "remove_unused_columns": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    losses: list[float] = []
    began = time.monotonic()
    total = sum(len(row["prompt_ids"]) for row in rows) * config.num_train_epochs

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if not math.isfinite(loss):
                raise TrainingError(f"The loss is {loss} at step {state.global_step}. Lower the learning rate.")
            losses.append(float(loss))
            seconds = time.monotonic() - began
            if progress is not None:
                speed = total * state.global_step / steps / max(seconds, 1e-6)
                progress("train", state.global_step, steps, f"loss {loss:.3f}, {speed:.0f} tokens/s")
            if config.max_minutes is not None and seconds > 60 * config.max_minutes:
                control.should_training_stop = True

    trainer = _trainer_class(by, config)
    made = trainer(
        model=model, args=_arguments(by, options), train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[Watch()],
    )  # fmt: skip
    made.train()
    shutil.rmtree(options["output_dir"], ignore_errors=True)
    if not losses:
        raise TrainingError("No step was made. Give more ratings, or more minutes.")
    return losses


def _step_rows(config: PreferenceConfig) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps


def _arguments(by: Loss, options: dict[str, Any]) -> Any:
    if by == "kto":
        from trl import KTOConfig

        return KTOConfig(**options)
    from trl import DPOConfig

    return DPOConfig(**options)


def _trainer_class(by: Loss, config: PreferenceConfig) -> Any:
    """TRL's trainer, taking our token ids instead of making its own from the messages."""
    if by == "dpo":
        from trl import DPOTrainer

        class Pairs(DPOTrainer):  # type: ignore[misc]
            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

        return Pairs
    from trl import KTOTrainer

    class Ratings(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset.map(
                mismatched, batched=True, batch_size=config.per_device_train_batch_size, load_from_cache_file=False
            )

    return Ratings


def mismatched(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Each prompt of a batch with the answer of its neighbour: KTO estimates from these how far the model has moved."""
    answers = batch["completion_ids"]
    return {**batch, "KL_completion_ids": [answers[-1], *answers[:-1]]}


def _write(folder: Path, model: Any, record: Mapping[str, Any]) -> None:
    model.save_pretrained(str(folder), safe_serialization=True, selected_adapters=["default"])
    write_record(folder, record)
