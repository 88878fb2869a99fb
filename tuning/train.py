"""Training rows in, adapter folder out: one function, a config, a report.

A run works in a hidden folder beside `out`; `out` appears whole, at the end. A killed or interrupted run leaves its
checkpoints there, and the same call goes on from the last one to the weights an uninterrupted run has.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rag.errors import ConfigError, TrainingError, UsageError
from rag.prompt import PROMPT_VERSION
from rag.protocols import is_begun
from rag.starters import quiet
from tuning import checkpoint
from tuning.added import added_tokens, encode_row, with_rows
from tuning.interrupt import gentle_interrupt
from tuning.record import RECORD, library_versions, read_record, write_record
from tuning.rows import Row, data_hash

if TYPE_CHECKING:
    from rag.tokens import ChatTokens
    from tuning.trainer import AnswerTrainer, Encoded, Run

Method = Literal["lora", "qlora", "dora", "full"]
Base: TypeAlias = "tuple[Any, Any, str]"  # model, tokenizer, fingerprint
Progress: TypeAlias = Callable[[str, int, int, str], None]

METHODS = ("lora", "qlora", "dora", "full")
SCHEDULES = ("linear", "cosine", "constant")
_FREE = ("save_steps", "max_minutes")  # may change between the parts of a resumed run


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of a run; names as in TrainingArguments and LoraConfig.

    `upper_layers`: adapters (or, with "full", training) on this upper fraction of the layers; the layers below run
    forward only, without keeping activations.
    `tokens_per_step`: tokens of one optimizer step, prompts included.
    `tokens_per_forward`: most padded tokens of one forward; 0 picks by device.
    `packing`: rows share a forward with block-diagonal attention (`tuning.packing`) instead of padding.
    `dtype`: of the frozen weights, "auto" by the probe; trained weights are always fp32.
    `added_tokens`: tokens that the vocabulary gets where it lacks them; completions may hold them, and what stands
    between `<paragraph>` and `</paragraph>` is then not trained on (see `rag.reflection`).
    `added_rate`: learning rate of their rows as a multiple of `learning_rate` (methods with adapters): a row begins as
    the mean of all, which Adam's steps of the size of an adapter's rate leave too slowly.
    `max_minutes`: after a few steps the schedule is shortened to what this time allows.
    """

    method: Method = "lora"
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    upper_layers: float = 1.0
    learning_rate: float = 5e-4
    num_train_epochs: float = 1.0
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    tokens_per_step: int = 4096
    tokens_per_forward: int = 0
    max_seq_length: int = 2048
    dtype: str = "auto"
    seed: int = 0
    save_steps: int = 10
    added_tokens: tuple[str, ...] = ()
    added_rate: float = 10.0
    packing: bool = False
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method is {self.method!r}; allowed: {', '.join(METHODS)}")
        if self.lr_scheduler_type not in SCHEDULES:
            problems.append(f"lr_scheduler_type is {self.lr_scheduler_type!r}; allowed: {', '.join(SCHEDULES)}")
        for name in ("r", "lora_alpha", "tokens_per_step", "max_seq_length", "save_steps"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "num_train_epochs", "added_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                problems.append(f"{name} is {getattr(self, name)}; it must be a number above 0")
        if not 0 < self.upper_layers <= 1:
            problems.append(f"upper_layers is {self.upper_layers}; it is a fraction, above 0 and up to 1")
        for name in ("lora_dropout", "warmup_ratio"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; allowed is 0 up to, but not including, 1")
        if self.max_minutes is not None and self.max_minutes <= 0:
            problems.append(f"max_minutes is {self.max_minutes}; give minutes above 0, or none for no limit")
        if problems:
            raise ConfigError("; ".join(problems) + ".")

    def factor(self, step: int, horizon: int) -> float:
        """The learning rate at `step` (from 0) of a run of `horizon` steps, as a share of `learning_rate`."""
        warm = math.ceil(self.warmup_ratio * horizon)
        if step < warm:
            return (step + 1) / warm
        left = max(0, horizon - step) / max(1, horizon - warm)
        if self.lr_scheduler_type == "constant":
            return 1.0
        return left if self.lr_scheduler_type == "linear" else 0.5 * (1 - math.cos(math.pi * left))


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run did. `loss` is the mean per answer token of each step (nats); `tokens` and `seconds` are of all parts.

    `resumed` is the step the run went on from (None: from the beginning); `reused` says that the adapter was there.
    """

    adapter: Path
    rows: int
    dropped: int
    tokens: int
    seconds: float
    loss: tuple[float, ...]
    steps: int
    planned_steps: int
    resumed: int | None = None
    reused: bool = False
    passed_over: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    rows: Sequence[Row],
    *,
    base: str | Base = "starter",
    out: Path | str,
    config: TrainConfig = TrainConfig(),
    recipe: str = "rag",
    progress: Progress | None = None,
    resume: bool = True,
    record: Mapping[str, Any] | None = None,
) -> TrainReport:
    """Train `base` on `rows` and leave PEFT's files, the record and the model card in `out`.

    With `resume`, an unfinished run of the same data and settings is continued, a finished one returned as it is.
    `record` is added to `ragtune.json`. Ctrl-C ends after the current step and leaves a run that can be resumed.

    Raises:
        TrainingError: no usable rows; a loss or gradient that is not finite (the last good checkpoint is kept).
        ConfigError: an unfinished run beside `out` has other data or settings; the differing fields are named.
        UsageError: `out` is a folder that was not made by training.
    """
    out = Path(out)
    if not rows:
        raise TrainingError("There are no training rows. Give questions whose answers stand in the indexed documents.")
    _check_out(out)
    model, tokenizer, fingerprint = _load(base, config)
    made, added = added_tokens(tokenizer, config)
    encoded, dropped = encode_rows(rows, tokenizer, max_seq_length=config.max_seq_length, added=added)
    identity = _identity(rows, fingerprint, tokenizer, recipe, config)
    if resume and (finished := _finished(out, identity, len(encoded), dropped)):
        return finished
    run_folder = out.with_name(f".{out.name}.run")
    if not resume:
        shutil.rmtree(run_folder, ignore_errors=True)
    last, passed_over = checkpoint.latest(run_folder)
    if last is not None:
        checkpoint.check_same(last.state.get("identity", {}), identity, run_folder)
    with quiet():
        if added:
            model = with_rows(model, len(tokenizer), added)
        trainer = _trainer(model, tokenizer, encoded, config, run_folder, identity, progress, added)
        _run(trainer, last)
    done = {
        "base": base if isinstance(base, str) else getattr(model, "name_or_path", "") or type(model).__name__,
        **identity, "config": asdict(config), "rows": len(encoded), "dropped": dropped,
        "sources": len({s for row in rows for s in row.sources}),
        "tokens": trainer.run.tokens, "seconds": round(trainer.run.seconds, 3), "steps": len(trainer.run.losses),
        "planned_steps": len(trainer.steps), "loss": trainer.run.losses, "versions": library_versions(),
        **({"added_tokens": added} if added else {}), **(record or {}),
    }  # fmt: skip
    checkpoint.publish(out, lambda folder: _write(folder, trainer, made, done, config))
    shutil.rmtree(run_folder, ignore_errors=True)
    return _report(out, done, resumed=last.step if last else None, passed_over=tuple(passed_over))


def _report(out: Path, done: Mapping[str, Any], **more: Any) -> TrainReport:
    return TrainReport(
        out, done["rows"], done["dropped"], done["tokens"], done["seconds"], tuple(done["loss"]), done["steps"],
        done["planned_steps"], **more,
    )  # fmt: skip


# ------------------------------------------------------------------ before training


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Give a folder that the adapter can be written to.")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UsageError(f"{out} holds other files and no {RECORD}. Give a new folder: training would replace it.")


def _load(base: str | Base, config: TrainConfig) -> Base:
    if not isinstance(base, str):
        return base
    from rag.generator import base_model

    dtype = "fp32" if config.method == "full" else None if config.dtype == "auto" else config.dtype
    return base_model(base, dtype=dtype, quantize="nf4" if config.method == "qlora" else None)


def _identity(
    rows: Sequence[Row], fingerprint: str, tokenizer: Any, recipe: str, config: TrainConfig
) -> dict[str, Any]:
    from rag.tokens import tokenizer_hash

    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items() if k not in _FREE}
    if not config.added_tokens:  # runs from before there were any are the same runs
        del settings["added_tokens"], settings["added_rate"]
    if not config.packing:
        del settings["packing"]
    return {
        "base_fingerprint": fingerprint,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "prompt_version": PROMPT_VERSION,
        "data_hash": data_hash(rows),
        "recipe": recipe,
        "method": config.method,
        "settings": settings,
    }


def _finished(out: Path, identity: Mapping[str, Any], rows: int, dropped: int) -> TrainReport | None:
    if not (out / RECORD).is_file():
        return None
    record = read_record(out)
    if any(record.get(key) != value for key, value in identity.items()):
        return None
    return _report(out, record, reused=True)


def encode_rows(
    rows: Sequence[Row], tokenizer: Any, *, max_seq_length: int, added: Mapping[str, int] | None = None
) -> tuple[list[Encoded], int]:
    """Token ids of the rows, and how many were left out (too long, with an empty answer, or a passage without its
    closing tag).

    Prompt and answer get their ids from `rag.tokens`, as in serving; the end of the turn is trained on. Only `added`
    tokens (with their ids) in completions become tokens.
    Raises TrainingError when no row is left, naming why.
    """
    from rag.tokens import ChatTokens
    from tuning.trainer import Encoded

    tokens = ChatTokens(tokenizer)
    kept: list[Encoded] = []
    long = empty = cut = 0
    for row in rows:
        lead = " " if is_begun(row.prompt) and not row.completion[:1].isspace() else ""
        prompt, answer = tokens.prompt_ids(row.prompt), tokens.completion_ids(lead + row.completion)
        if added:
            made = encode_row(row, prompt, tokens, added, max_seq_length)
            cut, long = cut + (made == "cut"), long + (made == "long")
            kept += [made] if isinstance(made, Encoded) else []
        elif not row.completion.strip():
            empty += 1
        elif len(prompt) + len(answer) > max_seq_length:
            long += 1
        else:
            ids = (*prompt, *answer)
            trained = _earlier_turns(row, ids, tokens)
            trained += range(len(prompt), len(ids)) if trained else ()
            kept.append(Encoded(row.id, ids, len(trained) or len(answer), tuple(trained), row.kind == "own"))
    if not kept:
        raise TrainingError(
            f"None of the {len(rows)} rows can be trained on: {long} have more than {max_seq_length} tokens, {empty} "
            f"have an empty answer, {cut} a passage without its closing tag. Raise max_seq_length, show fewer "
            "passages, or check the answers."
        )
    return kept, long + empty + cut


def _earlier_turns(row: Row, ids: tuple[int, ...], tokens: ChatTokens) -> list[int]:
    """Places in `ids` of the tokens of the assistant's earlier turns that are trained on, their ends included."""
    places: list[int] = []
    for turn in row.also:
        head = tokens.prompt_ids(row.prompt[:turn])
        said = [*head, *tokens.completion_ids(row.prompt[turn]["content"])]
        if tuple(said) != ids[: len(said)]:
            raise TrainingError(
                f"The chat template of this model writes earlier turns in another way than the last (row {row.id}), "
                "so that a whole conversation cannot be trained on at once. Take another base model."
            )
        places += range(len(head), len(said))
    return places


# ------------------------------------------------------------------------- training


def _trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    config: TrainConfig,
    run_folder: Path,
    identity: Mapping[str, Any],
    progress: Progress | None,
    added: Mapping[str, int],
) -> AnswerTrainer:
    import torch
    from transformers import set_seed
    from trl import SFTConfig

    from tuning import kernels
    from tuning.adapt import autocast, prepare
    from tuning.trainer import AnswerTrainer, plan_steps

    set_seed(config.seed)
    model = prepare(model, config, added)
    kernels.install(model)
    device = next(model.parameters()).device
    steps = plan_steps([len(r.ids) for r in rows], config.tokens_per_step, config.num_train_epochs, config.seed)
    args = SFTConfig(
        output_dir=str(run_folder), max_steps=len(steps), learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, max_grad_norm=0.0, seed=config.seed, save_strategy="steps",
        save_steps=config.save_steps, logging_strategy="no",
        report_to="none", disable_tqdm=True, bf16=False, fp16=False, gradient_checkpointing=False, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, logging_nan_inf_filter=False, use_cpu=device.type == "cpu",
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = AnswerTrainer(
        model, args, rows=rows, steps=steps, tokenizer=tokenizer, clip=config.max_grad_norm, schedule=config.factor,
        added_rate=config.added_rate,
        forward_tokens=config.tokens_per_forward or (512 if device.type == "cpu" else 8192),
        autocast=autocast(config, device), identity=identity, on_step=_reporter(progress),
        max_seconds=None if config.max_minutes is None else 60 * config.max_minutes, packing=config.packing,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    return trainer


def _reporter(progress: Progress | None) -> Callable[[Run, int, int], None] | None:
    if progress is None:
        return None

    def report(run: Run, step: int, horizon: int) -> None:
        speed = run.tokens / run.seconds if run.seconds else 0.0
        progress("train", step, horizon, f"loss {run.losses[-1]:.3f}, {speed:.0f} tokens/s")

    return report


def _run(trainer: AnswerTrainer, last: checkpoint.Checkpoint | None) -> None:
    """Train to the end; Ctrl-C or an interrupt from progress saves a checkpoint and goes on as KeyboardInterrupt."""
    with gentle_interrupt(trainer):
        try:
            trainer.train(resume_from_checkpoint=str(last.folder) if last else None)
        except KeyboardInterrupt:
            trainer.stop_asked = True
        if trainer.stop_asked and len(trainer.run.losses) < trainer.run.horizon:
            step = trainer.state.global_step
            if step == len(trainer.run.losses) and step > 0:  # between two steps: weights and losses agree
                trainer.save_checkpoint()
            raise KeyboardInterrupt


# ------------------------------------------------------------------- after training


def _write(folder: Path, trainer: AnswerTrainer, tokenizer: Any, done: Mapping[str, Any], config: TrainConfig) -> None:
    # Of grown embeddings only the new rows are trained, and those PEFT saves as the adapter's own.
    grown = {"save_embedding_layers": False} if config.added_tokens and config.method != "full" else {}
    trainer.model.save_pretrained(str(folder), safe_serialization=True, **grown)
    if config.method == "full" or config.added_tokens:
        tokenizer.save_pretrained(str(folder))
    write_record(folder, done)
