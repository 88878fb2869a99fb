"""Settings of retriever training, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rag.errors import ConfigError
from tuning.atlas import Direction
from tuning.preference import Score

Objective: TypeAlias = Literal["contrastive", "lsr", "pdist", "loop", "adist", "emdr2"]
Sides: TypeAlias = Literal["query", "both"]
Task: TypeAlias = Literal["cloze", "halves", "statements", "none"]
FREE = ("save_steps", "max_minutes")  # may change between the parts of a resumed run


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """How a retriever is trained.

    `objective`: "contrastive" needs evidence; the others take a language model's preference for a teacher: "lsr"
    (REPLUG, RA-DIT), and the four of Atlas.
    `sides`: "query" leaves the documents' side, and so the index, as it is; "both" trains one encoder for both.
    `temperature` divides the retriever's cosines (θ), `teacher_temperature` the teacher's scores (τ); `score` says
    what the teacher's score is; `direction` the order of the divergence.
    `corpus_task`, `corpus_examples`, `corpus_share`: questions from the corpus itself, at most so many, and their share
    of all examples. With "contrastive" every labelled question is used and the share is the most that is mixed in;
    with a teacher, who costs more, it is exact, and labelled questions are repeated or left out for it.
    `candidates`: passages of each question that the teacher judges. `over_retrieve`: with both sides trained, so many
    are found with the vectors of the last refresh and ranked again by the encoder as it is now.
    `refresh_steps`: retrieve candidates again after so many steps (and embed all documents again, where their side is
    trained); 0: never.
    `hard_negatives` for each question; `margin` tells the doubtful ones where no answer is known (`mine_negatives`).
    `average`: the weights that come out are so much of the trained ones, and the rest of those that training began with
    (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): most of the gain, and far less lost on other documents.
    `train_embeddings`: the word vectors too; they are half of a small encoder, and few questions see few words.
    """

    objective: Objective = "contrastive"
    sides: Sides = "query"
    learning_rate: float = 5e-5
    num_train_epochs: float = 1.0
    batch_size: int = 32
    temperature: float = 0.05
    teacher_temperature: float = 0.1
    score: Score = "mean-probability"
    direction: Direction = "forward"
    corpus_task: Task = "none"
    corpus_examples: int = 0
    corpus_share: float = 0.0
    candidates: int = 10
    over_retrieve: int = 64
    refresh_steps: int = 0
    hard_negatives: int = 20
    margin: float = 0.05
    average: float = 1.0
    train_embeddings: bool = False
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: str = "auto"
    seed: int = 0
    save_steps: int = 50
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        problems = []
        for name, kind in (
            ("objective", Objective), ("sides", Sides), ("score", Score), ("direction", Direction),
            ("corpus_task", Task),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                problems.append(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(kind))}")
        for name in ("learning_rate", "num_train_epochs", "temperature", "teacher_temperature", "max_grad_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                problems.append(f"{name} is {getattr(self, name)}; it must be a number above 0")
        for name, least in (
            ("batch_size", 1), ("candidates", 2), ("over_retrieve", 2), ("save_steps", 1), ("hard_negatives", 0),
            ("corpus_examples", 0), ("refresh_steps", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                problems.append(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("corpus_share", "warmup_ratio", "margin"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; allowed is 0 up to, but not including, 1")
        if not 0 < self.average <= 1:
            problems.append(f"average is {self.average}; it is a share, above 0 and up to 1")
        if self.max_minutes is not None and self.max_minutes <= 0:
            problems.append(f"max_minutes is {self.max_minutes}; give minutes above 0, or none for no limit")
        if self.corpus_task in ("halves", "statements") and self.objective == "contrastive":
            problems.append(f"corpus_task {self.corpus_task!r} needs a language model as teacher; give 'cloze'")
        if problems:
            raise ConfigError("; ".join(problems) + ".")

    def factor(self, step: int, horizon: int) -> float:
        """The learning rate at `step` (from 0) of `horizon` steps, as a share: linear warm-up, then linear decay."""
        warm = math.ceil(self.warmup_ratio * horizon)
        if step < warm:
            return (step + 1) / warm
        return max(0, horizon - step) / max(1, horizon - warm)
