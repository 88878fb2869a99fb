"""TRL's SFTTrainer with the parts overridden that cost time or memory for rows of long prompts and short answers.

- `lm_head` and loss only where an answer token is predicted (1-3 % of the tokens of a retrieved-context row);
- an optimizer step is a fixed amount of tokens, not of rows, and every answer token of a step has the same weight;
- no padding: a forward takes one long row, or several short ones of nearly equal length;
- layers below the first trained one run once for each row, not once for each epoch;
- checkpoints without pickle, from which a run goes on to the same weights;
- a loss or gradient that is not finite stops the run with the step and the rows, before the weights change.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig, SFTTrainer

from rag.errors import TrainingError
from tuning import checkpoint
from tuning.distil import token_loss
from tuning.frozen import FrozenLayers
from tuning.packing import pack_rows, packed_loss

WARM_STEPS = 3  # steps after which the time of a step is believed


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a row, of which `answer` are trained on: the last, or those at the places `trained` (sorted).

    `own`: the answer is the untouched model's; see `tuning.distil`.
    """

    id: str
    ids: tuple[int, ...]
    answer: int
    trained: tuple[int, ...] = ()
    own: bool = False

    def targets(self) -> Sequence[int]:
        """Places in `ids` of the trained tokens; none is the first token, which nothing predicts."""
        return self.trained or range(len(self.ids) - self.answer, len(self.ids))


def plan_steps(lengths: Sequence[int], tokens_per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Row numbers of each optimizer step of the whole run: shuffled anew each epoch, about equal in tokens.

    A row is in exactly one step of each whole epoch. The last, partial epoch takes the first steps of its order.
    """
    steps: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = list(range(len(lengths)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        total = sum(lengths)
        count = min(len(order), max(1, round(total / tokens_per_step)))
        parts: list[list[int]] = [[] for _ in range(count)]
        done = 0
        for row in order:
            middle = done + lengths[row] / 2
            parts[min(count - 1, int(middle * count / total))].append(row)
            done += lengths[row]
        parts = [p for p in parts if p]
        steps += parts[: math.ceil(len(parts) * min(1.0, epochs - epoch))]
    return steps


def group_rows(rows: Sequence[Encoded], budget: int) -> Iterator[list[Encoded]]:
    """Rows of one step in forwards: sorted by length, at most `budget` tokens each with padding, at least one row."""
    group: list[Encoded] = []
    for row in sorted(rows, key=lambda r: (len(r.ids), r.id)):
        if group and len(row.ids) * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def answer_loss(model: Any, rows: Sequence[Encoded], frozen: FrozenLayers | None = None) -> torch.Tensor:
    """Summed loss (nats) of the answer tokens of these rows, their negative log-likelihood; `lm_head` runs at no other
    place. Rows that are the model's own answers: see `tuning.distil`.

    Rows are padded on the right, which a causal model does not see. With `frozen`, it begins at the first trained
    layer.
    """
    width = max(len(r.ids) for r in rows)
    device = next(model.parameters()).device
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        mask[i, : len(row.ids)] = 1
    if frozen is None:
        given = {"input_ids": _padded([torch.tensor(r.ids) for r in rows]).to(device)}
    else:
        given = {"inputs_embeds": _padded([frozen.states(r.ids) for r in rows])}
    spots = [(i, p - 1) for i, r in enumerate(rows) for p in r.targets()]
    keep = sorted({p for _, p in spots})  # positions whose next token is an answer token of some row
    column = {p: j for j, p in enumerate(keep)}
    padded = any(len(r.ids) != width for r in rows)

    def logits() -> torch.Tensor:
        with frozen.upper() if frozen else nullcontext():
            made = model(
                **given,
                attention_mask=mask.to(device) if padded else None,
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=device),
            ).logits
        return made[[i for i, _ in spots], [column[p] for _, p in spots]]  # type: ignore[no-any-return]

    return token_loss(model, rows, logits)


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[rows, widest, ...] with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


@dataclass
class Run:
    """What happened so far in a run, over all its parts; stored in every checkpoint."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    horizon: int = 0  # steps of the learning-rate schedule; fewer than planned when the time allows no more

    def to_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("losses", "norms", "tokens", "seconds", "horizon")}


class AnswerTrainer(SFTTrainer):
    """SFTTrainer over steps of `Encoded` rows; see the module's docstring for what differs.

    `schedule(step, horizon)` is the factor on the learning rate, `added_rate` one more on that of added tokens' rows;
    `on_step(run, step, horizon)` is called after each step and may raise KeyboardInterrupt; `identity` is stored in
    checkpoints.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        rows: Sequence[Encoded],
        steps: Sequence[Sequence[int]],
        tokenizer: Any,
        forward_tokens: int,
        clip: float,
        schedule: Callable[[int, int], float],
        added_rate: float = 1.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        max_seconds: float | None = None,
        packing: bool = False,
        on_step: Callable[[Run, int, int], None] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        from datasets import Dataset

        self.rows = rows
        self.steps = [list(s) for s in steps]
        self.forward_tokens = forward_tokens
        self.clip = clip
        self.schedule = schedule
        self.added_rate = added_rate
        self.autocast = autocast
        self.max_seconds = max_seconds
        self.packing = packing
        self.on_step = on_step
        self.identity = dict(identity or {})
        self.run = Run(horizon=len(steps))
        self.stop_asked = False
        placeholder = Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
        super().__init__(
            model=model, args=args, train_dataset=placeholder, processing_class=tokenizer, callbacks=[_Pace(self)]
        )
        self.remove_callback(PrinterCallback)  # standard output is for results
        self.frozen = FrozenLayers.of(model)

    # ---------------------------------------------------------------- data

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """One item is one optimizer step: the numbers of its rows."""
        return torch.utils.data.DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=itemgetter(0))  # type: ignore[arg-type]

    # ------------------------------------------------------------- a step

    def training_step(self, model: Any, inputs: Sequence[int], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimizer step, clipped: the mean over its answer tokens."""
        started = time.perf_counter()
        model.train()
        rows = [self.rows[int(i)] for i in inputs]
        total = sum(r.answer for r in rows)
        loss = 0.0
        groups = pack_rows(rows, self.forward_tokens) if self.packing else group_rows(rows, self.forward_tokens)
        loss_of = packed_loss if self.packing else answer_loss
        for group in groups:
            with self.autocast():
                part = loss_of(model, group, self.frozen) / total
            if not torch.isfinite(part):
                raise self._not_finite("loss", float(part), group)
            part.backward()
            loss += float(part)
        trained = [p for p in model.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.clip or math.inf))
        if not math.isfinite(norm):
            raise self._not_finite("gradient", norm, rows)
        self.run.losses.append(loss)
        self.run.norms.append(norm)
        self.run.tokens += sum(len(r.ids) for r in rows)
        self._started = started
        return torch.tensor(loss)

    def _not_finite(self, what: str, value: float, rows: Sequence[Encoded]) -> TrainingError:
        names = ", ".join(r.id for r in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        return TrainingError(
            f"Training stopped at step {self.state.global_step + 1}: the {what} is {value} (rows {names}). "
            "The weights before this step are kept. Look at these rows, or lower the learning rate."
        )

    # -------------------------------------- what the parent would spend time on

    def floating_point_ops(self, inputs: Any) -> float:
        return 0.0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return grad_norm

    # ------------------------------------------------- optimizer and schedule

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            rate, trained = self.args.learning_rate, self.trained()
            added = [p for name, p in trained.items() if "trainable_tokens" in name]
            groups = [{"params": [p for name, p in trained.items() if "trainable_tokens" not in name]}]
            groups += [{"params": added, "lr": rate * self.added_rate}] if added else []
            self.optimizer: Any = torch.optim.AdamW(
                groups, lr=rate, weight_decay=self.args.weight_decay, betas=(0.9, 0.999), eps=1e-8
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: self.schedule(step, self.run.horizon)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ------------------------------------------------------------ checkpoints

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Everything needed to go on: weights, optimizer moments, random state, losses so far."""
        tensors: dict[str, torch.Tensor] = {"rng": torch.random.get_rng_state()}
        for name, parameter in self.trained().items():
            tensors[f"model/{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        state = {"identity": self.identity, "run": self.run.to_state()}

        def also(folder: Path) -> None:
            self.state.save_to_json(str(folder / "trainer_state.json"))

        checkpoint.save(Path(self.args.output_dir), self.state.global_step, tensors, state, also)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._resumed = _open(resume_from_checkpoint)
        self._tensors = self._resumed.tensors()
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(self._tensors[f"model/{name}"])
        self.run = Run(**self._resumed.state["run"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = self.optimizer.state
        for name, parameter in self.trained().items():
            keys = [k for k in self._tensors if k.startswith("optimizer/") and k.endswith(f"/{name}")]
            state[parameter] = {k.split("/")[1]: self._tensors[k].clone() for k in keys}
        step = self._resumed.step
        self.lr_scheduler.last_epoch = step
        rates = [base * self.schedule(step, self.run.horizon) for base in self.lr_scheduler.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.lr_scheduler._last_lr = rates

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            torch.random.set_rng_state(self._tensors["rng"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        return


def _open(folder: str) -> checkpoint.Checkpoint:
    import json

    state = json.loads((Path(folder) / "state.json").read_text(encoding="utf-8"))
    return checkpoint.Checkpoint(Path(folder), int(state["step"]), state)


class _Pace(TrainerCallback):
    """Keeps time: shortens the schedule to what the time allows, stops when asked to, and reports."""

    def __init__(self, trainer: AnswerTrainer) -> None:
        self.trainer = trainer
        self.here = 0  # steps of this part of the run
        self.began = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        run, limit = self.trainer.run, self.trainer.max_seconds
        took = time.perf_counter() - self.began
        run.seconds += took
        self.here += 1
        if limit is not None:
            if state.global_step == WARM_STEPS and run.horizon == len(self.trainer.steps):
                each = run.seconds / WARM_STEPS
                run.horizon = max(WARM_STEPS, min(run.horizon, int(limit / each)))
            if run.seconds >= limit:
                control.should_training_stop = True
        if state.global_step >= run.horizon or self.trainer.stop_asked:
            control.should_training_stop = True
        if self.trainer.on_step is not None:
            self.trainer.on_step(run, state.global_step, run.horizon)
