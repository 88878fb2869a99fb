"""The loop of retriever training: an encoder from sentence-transformers, and documents that stand still or move.

With the query side alone a step runs short questions only: the documents' vectors are those of the index, so that
training costs a fraction of what the library's trainer takes, which embeds every passage again in every step. The
losses are in `tuning.atlas`; with one positive they are those of the library (MultipleNegativesRankingLoss,
DistillKLDivLoss).
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rag.encoder import LocalEncoder
from rag.errors import TrainingError
from tuning import atlas, checkpoint
from tuning.retriever_config import RetrieverConfig
from tuning.retriever_rows import Corpus, Example, mine_negatives

WARM_STEPS = 3  # steps after which the time of a step is believed
_WORDS = re.compile(r"(^|\.)embeddings\.")
_UNUSED = re.compile(r"(^|\.)pooler\.")  # BERT's head for sentence pairs, which no sentence vector comes through


class Teacher(Protocol):
    """What a language model prefers, for examples and rows of the index that were retrieved for each."""

    def __call__(self, examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """For each example float64 [rows]: a distribution over them, or log p_LM for the objective emdr2."""
        ...


@dataclass
class Run:
    """What happened so far, over all parts of a run; stored in every checkpoint."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    horizon: int = 0
    refreshed: int = 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """Passages retrieved for one example, and what the teacher says of them."""

    rows: tuple[int, ...]
    taught: np.ndarray


def plan_batches(count: int, size: int, epochs: float, seed: int) -> list[list[int]]:
    """Example numbers of every step: shuffled anew each epoch, each once; a partial epoch takes its first batches."""
    steps: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        batches = [order[i : i + size] for i in range(0, count, size)]
        steps += batches[: math.ceil(len(batches) * min(1.0, epochs - epoch))]
    return steps


def make_trainable(encoder: LocalEncoder, config: RetrieverConfig) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; all others are frozen. Raises TrainingError where there are none."""
    trained = {}
    for name, parameter in encoder.model.named_parameters():
        wanted = (config.train_embeddings or not _WORDS.search(name)) and not _UNUSED.search(name)
        parameter.requires_grad_(wanted)
        if wanted:
            trained[name] = parameter
    if not trained:  # static embeddings: the word vectors are all there is
        trained = {name: p.requires_grad_(True) for name, p in encoder.model.named_parameters()}
    if not trained:
        raise TrainingError(f"The encoder {encoder.name} has no parameters to train.")
    return trained


class RetrieverTrainer:
    """Trains `encoder` in place; see `RetrieverConfig`. `vectors` [rows, d] are the documents as the index has them.

    A labelled question is opposed to passages of documents that have labelled questions themselves, never to others:
    those would be wrong in every example, and the encoder would learn to avoid documents nobody has asked about yet.
    """

    def __init__(
        self,
        encoder: LocalEncoder,
        corpus: Corpus,
        vectors: np.ndarray,
        examples: Sequence[Example],
        config: RetrieverConfig,
        *,
        run_folder: Path,
        identity: dict[str, Any],
        teacher: Teacher | None = None,
        on_step: Callable[[Run, int, int], None] | None = None,
    ) -> None:
        self.encoder = encoder
        self.corpus = corpus
        self.examples = list(examples)
        self.config = config
        self.teacher = teacher
        self.run_folder = run_folder
        self.identity = identity
        self.on_step = on_step
        self.stop_asked = False
        self.matrix = torch.tensor(np.asarray(vectors), dtype=torch.float32, device=encoder.device)
        self.trained = make_trainable(encoder, config)
        self.untouched = {name: p.detach().clone() for name, p in self.trained.items()} if config.average < 1 else {}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.steps = plan_batches(len(self.examples), config.batch_size, config.num_train_epochs, config.seed)
        self.run = Run(horizon=len(self.steps))
        self.known: dict[int, Candidates] = {}
        self.asked_about = frozenset(
            row for e in self.examples if e.origin == "question" for p in e.positive for row in corpus.siblings(p)
        )
        encoder.model.eval()  # no dropout: the teacher is the same each time, and few steps are to count

    # ------------------------------------------------------------------ the run

    def train(self, last: checkpoint.Checkpoint | None = None) -> Run:
        """All steps from the checkpoint on, then `average`. KeyboardInterrupt, once asked to stop: a checkpoint."""
        step = 0
        if last is not None:
            step = self._restore(last)
        else:
            self._prepare(first=True)
        while step < self.run.horizon:
            started = time.perf_counter()
            if self._due(step):
                self._prepare(first=False)
                self.run.refreshed = step
                self.save(step)  # what was prepared took longer than a step
            self._step(step)
            step += 1
            self.run.seconds += time.perf_counter() - started
            self._pace(step)
            if self.stop_asked and step < self.run.horizon:
                self.save(step)
                raise KeyboardInterrupt
            if step % self.config.save_steps == 0 and step < self.run.horizon:
                self.save(step)
            self._report(step)
        with torch.no_grad():
            for name, start in self.untouched.items():
                self.trained[name].copy_(start.lerp(self.trained[name], self.config.average))
        return self.run

    def _report(self, step: int) -> None:
        if self.on_step is None:
            return
        try:
            self.on_step(self.run, step, self.run.horizon)
        except KeyboardInterrupt:
            if step < self.run.horizon:
                self.save(step)
            raise

    def _due(self, step: int) -> bool:
        every = self.config.refresh_steps
        return bool(every) and step > 0 and step % every == 0 and self.run.refreshed != step

    def _pace(self, step: int) -> None:
        """Shorten the schedule to what the time allows, and end where it is over."""
        if self.config.max_minutes is None:
            return
        limit = 60 * self.config.max_minutes
        if step == WARM_STEPS and self.run.horizon == len(self.steps):
            self.run.horizon = max(WARM_STEPS, min(self.run.horizon, int(limit / (self.run.seconds / WARM_STEPS))))
        if self.run.seconds >= limit:
            self.run.horizon = min(self.run.horizon, step)

    def _step(self, step: int) -> None:
        batch = self.steps[step]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.config.factor(step, self.run.horizon)
        with self._autocast():
            loss = self.loss(batch)
        if not bool(torch.isfinite(loss)):
            raise self._not_finite("loss", float(loss), batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise self._not_finite("gradient", norm, batch, step)
        self.optimizer.step()
        self.run.losses.append(float(loss))

    def _not_finite(self, what: str, value: float, batch: Sequence[int], step: int) -> TrainingError:
        names = ", ".join(self.examples[i].id for i in batch[:8])
        return TrainingError(
            f"Training stopped at step {step + 1}: the {what} is {value} (questions {names}). The last checkpoint is "
            "kept. Look at these questions, or lower the learning rate."
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        from rag.hardware import pick_dtype

        named = None if self.config.dtype == "auto" else self.config.dtype
        dtype = pick_dtype(self.encoder.device, named)
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.encoder.device.type, dtype=dtype)

    # ------------------------------------------------------------------ losses

    def loss(self, batch: Sequence[int]) -> torch.Tensor:
        """The objective over the examples of one batch; gradients reach the trained parameters alone."""
        examples = [self.examples[i] for i in batch]
        queries = self.encoder.embed([e.question for e in examples], kind="query")
        if self.config.objective == "contrastive":
            return self._contrastive(examples, queries)
        return self._taught(batch, queries)

    def _contrastive(self, examples: Sequence[Example], queries: torch.Tensor) -> torch.Tensor:
        """Against the mined negatives of the batch and the positives of its other questions."""
        rows = sorted({row for e in examples for row in (*e.positive, *e.negative)})
        scores = queries @ self._documents(rows).T
        positive = _membership(rows, [e.positive for e in examples])
        ignored = _membership(rows, [e.ignored for e in examples])
        foreign = torch.tensor([row not in self.asked_about for row in rows])
        labelled = torch.tensor([e.origin == "question" for e in examples])
        ignored |= labelled[:, None] & foreign[None, :]
        return atlas.contrastive_loss(
            scores,
            positive.to(scores.device),
            temperature=self.config.temperature,
            ignored=ignored.to(scores.device),
        )

    def _taught(self, batch: Sequence[int], queries: torch.Tensor) -> torch.Tensor:
        """Against what the language model prefers among the passages retrieved for each question."""
        found = self._candidates(batch, queries)
        rows = sorted({row for c in found for row in c.rows})
        place = {row: i for i, row in enumerate(rows)}
        width = max(len(c.rows) for c in found)
        columns = torch.zeros((len(found), width), dtype=torch.long)
        mask = torch.zeros((len(found), width), dtype=torch.bool)
        taught = torch.zeros((len(found), width))
        for i, c in enumerate(found):
            columns[i, : len(c.rows)] = torch.tensor([place[row] for row in c.rows])
            mask[i, : len(c.rows)] = True
            taught[i, : len(c.rows)] = torch.tensor(c.taught, dtype=torch.float32)
        device = queries.device
        scores = (queries @ self._documents(rows).T).gather(1, columns.to(device))
        options: dict[str, Any] = {"temperature": self.config.temperature, "mask": mask.to(device)}
        if self.config.objective == "emdr2":
            return atlas.emdr2_loss(scores, taught.to(device), **options)
        return atlas.kl_loss(scores, taught.to(device), direction=self.config.direction, **options)

    def _documents(self, rows: Sequence[int]) -> torch.Tensor:
        """Vectors of rows: from the index, or through the encoder where that side is trained."""
        if self.config.sides == "query":
            return self.matrix[list(rows)]
        return self.encoder.embed([self.corpus.embedded(row) for row in rows], kind="passage")

    # -------------------------------------------------------------- candidates

    def _prepare(self, *, first: bool) -> None:
        """Negatives or candidates for the encoder as it is now; with both sides, all vectors anew after the first."""
        if self.config.sides == "both" and not first:
            texts = [self.corpus.embedded(row) for row in range(len(self.corpus))]
            self.matrix = torch.tensor(self.encoder.encode(texts, kind="passage"), device=self.encoder.device)
        if self.config.objective == "contrastive":
            if first or self.config.refresh_steps:
                self._mine()
        elif self.config.sides == "query":
            self._judge_all()

    def _mine(self) -> None:
        queries = self.encoder.encode([e.question for e in self.examples], kind="query")
        fresh = [replace(e, negative=(), ignored=()) for e in self.examples]
        self.examples = mine_negatives(
            self.corpus,
            fresh,
            queries,
            self.matrix.cpu().numpy(),
            count=self.config.hard_negatives,
            margin=self.config.margin,
            among=self.asked_about,
        )

    def _judge_all(self) -> None:
        """Candidates of all examples at once, which is cheapest for the teacher; the documents stand still."""
        queries = self.encoder.encode([e.question for e in self.examples], kind="query")
        rows = [
            self._nearest(torch.tensor(q, device=self.matrix.device), e, self.config.candidates)
            for q, e in zip(queries, self.examples, strict=True)
        ]
        self.known = {
            i: Candidates(tuple(r), t)
            for i, (r, t) in enumerate(zip(rows, self._ask(self.examples, rows), strict=True))
        }

    def _candidates(self, batch: Sequence[int], queries: torch.Tensor) -> list[Candidates]:
        """What is compared for each example of the batch."""
        if self.config.sides == "query":
            return [self.known[i] for i in batch]
        examples = [self.examples[i] for i in batch]
        stale = [
            self._nearest(q, e, self.config.over_retrieve)
            for q, e in zip(queries.detach().float(), examples, strict=True)
        ]
        rows = sorted({row for found in stale for row in found})
        fresh = self.encoder.encode([self.corpus.embedded(row) for row in rows], kind="passage")
        place = {row: i for i, row in enumerate(rows)}
        ranked = []
        for query, found in zip(queries.detach().float().cpu().numpy(), stale, strict=True):
            scores = fresh[[place[row] for row in found]] @ query
            ranked.append([found[i] for i in np.argsort(-scores, kind="stable")[: self.config.candidates]])
        return [Candidates(tuple(r), t) for r, t in zip(ranked, self._ask(examples, ranked), strict=True)]

    def _nearest(self, query: torch.Tensor, example: Example, count: int) -> list[int]:
        """The best rows by the vectors at hand, those that the example ignores left out."""
        ignored = set(example.ignored)
        wanted = min(len(self.matrix), count + len(ignored))
        top = torch.topk(self.matrix @ query, wanted).indices.tolist()
        return [row for row in top if row not in ignored][:count]

    def _ask(self, examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        assert self.teacher is not None, "objectives other than contrastive have a teacher"
        return self.teacher(examples, rows)

    # ------------------------------------------------------------- checkpoints

    def save(self, step: int) -> checkpoint.Checkpoint:
        """Everything needed to go on: weights, optimizer moments, losses, candidates or negatives."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.trained.items():
            tensors[f"model/{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        if self.config.sides == "both":
            tensors["documents"] = self.matrix
        chosen = [[e.negative, e.ignored] for e in self.examples]
        known = {str(i): [c.rows, c.taught.tolist()] for i, c in self.known.items()}
        run = {name: getattr(self.run, name) for name in ("losses", "seconds", "horizon", "refreshed")}
        state = {"identity": self.identity, "run": run, "chosen": chosen, "known": known}
        return checkpoint.save(self.run_folder, step, tensors, state)

    def _restore(self, last: checkpoint.Checkpoint) -> int:
        tensors = last.tensors()
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"model/{name}"])
                keys = [k for k in tensors if k.startswith("optimizer/") and k.endswith(f"/{name}")]
                if keys:
                    self.optimizer.state[parameter] = {k.split("/")[1]: tensors[k].clone() for k in keys}
        if "documents" in tensors:
            self.matrix = tensors["documents"].to(self.matrix.device)
        self.run = Run(**last.state["run"])
        self.examples = [
            replace(e, negative=tuple(negative), ignored=tuple(ignored))
            for e, (negative, ignored) in zip(self.examples, last.state["chosen"], strict=True)
        ]
        self.known = {int(i): Candidates(tuple(r), np.array(t)) for i, (r, t) in last.state["known"].items()}
        return last.step


def _membership(columns: Sequence[int], rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[len(rows), len(columns)]: whether the column's row number is among those of the example."""
    place = {row: i for i, row in enumerate(columns)}
    mask = torch.zeros((len(rows), len(columns)), dtype=torch.bool)
    for i, members in enumerate(rows):
        for row in members:
            if row in place:
                mask[i, place[row]] = True
    return mask
