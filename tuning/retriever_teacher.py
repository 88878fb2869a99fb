"""The language model as the retriever's teacher: what it makes of each passage that was retrieved for a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rag.errors import ConfigError, EndpointError
from rag.protocols import Generator, Progress
from rag.types import Passage
from tuning import atlas
from tuning.preference import lm_preference, lsr_target, measure
from tuning.retriever_config import RetrieverConfig
from tuning.retriever_rows import Corpus, Example
from tuning.retriever_trainer import Teacher

JOINED = "\n\n"


def make_teacher(
    generator: Generator,
    corpus: Corpus,
    config: RetrieverConfig,
    *,
    cache: Path | None,
    progress: Progress | None = None,
) -> Teacher:
    """The teacher of `config.objective`; the scores are kept in the file `cache`.

    Raises EndpointError, when asked, where an endpoint returns no log-probabilities, or for "adist", which reads the
    attention of a model on this machine.
    """
    if config.objective == "contrastive":
        raise ConfigError("The objective contrastive has no teacher; give lsr, pdist, loop, adist or emdr2.")
    if config.objective == "adist":
        return _attention_teacher(generator, corpus, config)

    def teach(examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        taught: dict[int, np.ndarray] = {}
        for halves in (False, True):
            members = [i for i, e in enumerate(examples) if (e.origin == "halves") == halves]
            shown = [_shown(corpus, rows[i], config) for i in members]
            values = lm_preference(
                generator,
                [examples[i].question for i in members],
                [examples[i].answers for i in members],
                shown,
                cache=cache,
                score=config.score,
                template="continue" if halves else "examples",
                progress=progress,
            )
            taught |= {i: _taught(v, config) for i, v in zip(members, values, strict=True)}
        return [taught[i] for i in range(len(examples))]

    return teach


def _shown(corpus: Corpus, rows: Sequence[int], config: RetrieverConfig) -> Sequence[Passage | str]:
    """What stands in front of the question: each passage by itself, or, for "loop", all the others."""
    passages = [Passage(corpus.snapshot.chunk_at(row), rank, 0.0) for rank, row in enumerate(rows, 1)]
    if config.objective != "loop":
        return passages
    texts = [p.chunk.text for p in passages]
    return [JOINED.join(t for i, t in enumerate(texts) if i != k) or " " for k in range(len(texts))]


def _taught(values: np.ndarray, config: RetrieverConfig) -> np.ndarray:
    """From `lm_preference`'s array [K, 2] to what the objective is trained on."""
    if config.objective == "emdr2":
        return np.asarray(measure(values, "mean-logprob") if config.score == "mean-logprob" else values[:, 0])
    if config.objective == "pdist":
        return atlas.pdist_target(_log(values, config), config.teacher_temperature)
    if config.objective == "loop":
        return atlas.loop_target(_log(values, config), config.teacher_temperature)
    return lsr_target(values, score=config.score, temperature=config.teacher_temperature)


def _log(values: np.ndarray, config: RetrieverConfig) -> np.ndarray:
    """Log-likelihoods: of the whole answer with score "probability", else for each token, as Atlas's code has it."""
    return np.asarray(values[:, 0 if config.score == "probability" else 1])


def _attention_teacher(generator: Generator, corpus: Corpus, config: RetrieverConfig) -> Teacher:
    from rag.generator import LocalGenerator

    if not isinstance(generator, LocalGenerator):
        raise EndpointError(
            f"The recipe atlas-adist reads the attention of the model, which {generator.name} does not show. Take a "
            "model on this machine, or the recipe atlas-pdist, which needs log-probabilities only."
        )
    from tuning.attention import AttentionReader

    reader = AttentionReader(generator.name)

    def teach(examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        taught = []
        for example, found in zip(examples, rows, strict=True):
            texts = [corpus.snapshot.chunk_at(row).text for row in found]
            read = reader.read(example.question, example.answers[0], texts)
            taught.append(
                atlas.adist_target(read.attention, read.norms, read.passages, len(texts), config.teacher_temperature)
            )
        return taught

    return teach
