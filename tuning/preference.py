"""Which passages help the language model: teacher-forced probabilities of the right answer after each passage.

The teacher of retriever training (REPLUG-LSR, RA-DIT, Atlas's PDist): how likely the model finds the answer y when
passage c stands in front of question x. Scores are kept on disk, so that a second run costs no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from rag.errors import ConfigError, NumericalError, UsageError
from rag.marginal_prompt import Template, lead, plain_passage, single
from rag.prompt import PROMPT_VERSION
from rag.protocols import Generator, Message, Progress
from rag.types import Passage, content_hash

Score: TypeAlias = Literal["probability", "mean-probability", "mean-logprob"]
"""probability: p(y|c,x) itself, as the papers print it; it underflows for long answers. mean-probability: its geometric
mean per token. mean-logprob: log-probability divided by the tokens, as Atlas's code has it."""

BLOCK = 256
"""Rows that are scored between two writes of the cache."""


def lm_preference(
    generator: Generator,
    questions: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    passages: Sequence[Sequence[Passage | str]],
    *,
    cache: Path | None = None,
    score: Score = "mean-logprob",
    template: Template = "examples",
    adapter: str | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """For each question a float64 array [passages, 2]: log p(y|c,x) in total, and its mean per token (natural log).

    The end of the turn counts as a token of the answer (not with template "continue", whose texts do not end). Where a
    question has several answers, the best one for each passage counts, by `score`. `cache` is a file of JSON lines
    keyed by (model, adapter, prompt layout, question, passage, answer); what stands there is not run again, and a run
    that was killed goes on. Passages are shortened where a prompt is too long for the model, answers never.

    Raises:
        ConfigError: an unknown `score` or `template`.
        UsageError: numbers of questions, answers and passages differ, or a question has no answer.
        EndpointError: the endpoint returns no log-probabilities.
        NumericalError: the model returned NaN.
    """
    _check(questions, answers, passages, score)
    rows = [
        _Row(q, given, p if isinstance(p, Passage) else plain_passage(p))
        for q, refs, found in zip(questions, answers, passages, strict=True)
        for p in found
        for given in _references(refs)
    ]
    store = _Cache(cache, generator, template, adapter)
    keys = [store.key(row) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in store.known}
    with generator.adapter(adapter):
        _score_missing(generator, missing, store, template, progress)
    values = iter([store.known[key] for key in keys])
    results = []
    for refs, found in zip(answers, passages, strict=True):
        table = np.array([[next(values) for _ in _references(refs)] for _ in found], np.float64)
        results.append(_best_reference(table, score) if len(found) else np.zeros((0, 2)))
    return results


def lsr_target(values: np.ndarray, *, score: Score, temperature: float) -> np.ndarray:
    """p_LSR: softmax over the passages of s/temperature, where s is the score named, from `lm_preference`'s array.

    With "probability" this is exp(p/τ) / Σ exp(p/τ), the probability itself in the exponent (RA-DIT, REPLUG-LSR):
    p = (0.6, 0.1), τ = 0.1 gives (0.9933, 0.0067). Where all probabilities underflow, or tie, it is uniform.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0.")
    if not len(values):
        return np.zeros(0)
    scaled = measure(values, score) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def measure(values: np.ndarray, score: Score) -> np.ndarray:
    """The score named, from an array [..., 2] of total and mean log-probabilities."""
    if score not in get_args(Score):
        raise ConfigError(f"score is {score!r}; give one of {', '.join(get_args(Score))}.")
    if score == "mean-logprob":
        return np.asarray(values[..., 1])
    return np.exp(values[..., 0 if score == "probability" else 1])


def _best_reference(table: np.ndarray, score: Score) -> np.ndarray:
    """[passages, references, 2] → [passages, 2]: the reference that the model prefers, also where its
    probability underflows."""
    by = table[..., 0 if score == "probability" else 1]  # the order of logarithms is that of what they stand for
    return np.asarray(table[np.arange(len(table)), by.argmax(axis=1)])


@dataclass(frozen=True, slots=True)
class _Row:
    question: str
    answer: str
    passage: Passage


def _references(answers: str | Sequence[str]) -> list[str]:
    given = [answers] if isinstance(answers, str) else list(answers)
    return list(dict.fromkeys(a.strip() for a in given if a.strip()))


def _check(
    questions: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    passages: Sequence[Sequence[Passage | str]],
    score: Score,
) -> None:
    if score not in get_args(Score):
        raise ConfigError(f"score is {score!r}; give one of {', '.join(get_args(Score))}.")
    if not len(questions) == len(answers) == len(passages):
        raise UsageError(
            f"{len(questions)} questions, {len(answers)} answers and {len(passages)} lists of passages were given; "
            "give one of each for every question."
        )
    bare = [i for i, a in enumerate(answers) if not _references(a)]
    if bare:
        raise UsageError(f"Questions {bare[:8]} have no answer to score. Leave unanswerable questions out.")


def _score_missing(
    generator: Generator,
    missing: Mapping[str, _Row],
    store: _Cache,
    template: Template,
    progress: Progress | None,
) -> None:
    keys = sorted(missing, key=lambda key: missing[key].passage.chunk.text)  # questions on one passage share its pass
    for begin in range(0, len(keys), BLOCK):
        block = keys[begin : begin + BLOCK]
        prompts, completions = zip(*(_prompt(missing[key], generator, template) for key in block), strict=True)
        scores = generator.score(prompts, completions)
        store.add({key: _summed(values, template) for key, values in zip(block, scores, strict=True)})
        if progress is not None:
            progress(begin + len(block), len(keys))


def _prompt(row: _Row, generator: Generator, template: Template) -> tuple[list[Message], str]:
    room = generator.count_tokens(row.answer) + 8  # the end of the turn, and a space that splits a word otherwise
    messages = single(row.question, row.passage, generator, template=template, room=room)
    return messages, lead(messages) + row.answer


def _summed(values: np.ndarray, template: Template) -> tuple[float, float]:
    tokens = np.asarray(values[:-1] if template == "continue" and len(values) > 1 else values, np.float64)
    if not np.isfinite(tokens).all():
        raise NumericalError("The model gave a log-probability that is not finite. Try --dtype fp32.")
    return float(tokens.sum()), float(tokens.mean())


class _Cache:
    """Scores by key, in memory and in a file of JSON lines [key, total, mean]; a torn last line is passed over."""

    def __init__(self, path: Path | None, generator: Generator, template: Template, adapter: str | None) -> None:
        from rag.adapter_folder import read_adapter

        self.path = path
        tuned = "" if adapter is None else read_adapter(Path(adapter)).key
        window = str(getattr(generator, "context_window", ""))
        self._base = (generator.fingerprint, tuned, str(getattr(generator, "dtype", "")), window, PROMPT_VERSION)
        self._template = template
        self.known: dict[str, tuple[float, float]] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            key, total, mean = json.loads(line)
        except ValueError:
            return  # torn by a kill; it is scored again
        self.known[key] = (float(total), float(mean))

    def key(self, row: _Row) -> str:
        return content_hash(*self._base, self._template, row.question, row.passage.chunk.text, row.answer)

    def add(self, scored: Mapping[str, tuple[float, float]]) -> None:
        self.known.update(scored)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # what a kill left unfinished stays a line of its own
            file.write("".join(json.dumps([key, *value]) + "\n" for key, value in scored.items()).encode())
            file.flush()
            os.fsync(file.fileno())
