"""Measuring one arm: its answers and scores, the seconds of a single question, and what it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from agents.compare import ArmCost
from agents.oracle import gold_passages
from agents.rows import finished_answers, folder_hash, rows_path, write_rows, write_text
from agents.rule import DecideConfig
from rag.answer import CLOSED_BOOK, AnswerConfig, Answerer
from rag.evaluate import Evaluation, evaluate
from rag.index import Index
from rag.modes import Mode
from rag.prompt import PROMPT_VERSION
from rag.protocols import Generator
from rag.retrieve import Retriever
from rag.types import MODE_ARMS, Passage, Question, content_hash

Report: TypeAlias = Callable[[str, int, int, str], None]
"""report(stage, done, total, detail)"""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that stays the same for every arm of a run."""

    index: Index
    questions: Sequence[Question]
    out: Path
    generator: Generator
    retriever: Retriever
    answer: AnswerConfig
    config: DecideConfig
    kinds: Mapping[str, str]
    resume: bool
    report: Report
    frozen: Sequence[Sequence[Passage]] = ()
    adapters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modes: Mapping[str, Mode] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    @property
    def asked(self) -> list[str]:
        return [question.question for question in self.questions]


def weights(setup: Settings, arm: str, seed: int = 0) -> dict[str, str]:
    """The adapters that an arm answers with, by arm.

    The oracle reads with the best reader's weights: those of tuned+rag, if any; an agent asks that reader, too.
    """
    folders = setup.adapters.get("tuned+rag" if arm == "oracle" else arm, ())
    own = {arm: folders[seed]} if folders else {}
    reader = setup.adapters.get("tuned+rag", ())
    return {**own, "tuned+rag": reader[0]} if arm == "agent" and reader else own


def make_answerer(setup: Settings, arm: str, seed: int = 0) -> Answerer:
    """The answerer of one arm and seed."""
    return Answerer(
        setup.generator, setup.retriever, setup.answer, adapters=weights(setup, arm, seed), modes=setup.modes
    )


def measure(setup: Settings, arm: str) -> Iterator[Evaluation]:
    """The scores of an arm for each of its seeds, from disk where the inputs are the same."""
    shown: Sequence[Sequence[Passage]] = setup.frozen
    if arm == "oracle":
        shown = gold_passages(setup.index, setup.questions, setup.frozen)
    for seed in range(max(1, len(setup.adapters.get(arm, ())))):
        answerer = make_answerer(setup, arm, seed)
        inputs = _inputs(setup, arm, answerer, shown)
        path = rows_path(setup.out, arm, seed)
        total = len(setup.questions)
        answers = finished_answers(path, inputs, setup.questions) if setup.resume else None
        if answers is None:
            setup.report("answer", 0, total, arm)
            answers = answerer.answer_many(
                setup.asked,
                arm=arm,
                retrievals=shown,
                progress=lambda done, total: setup.report("answer", done, total, arm),
            )
        reads = arm not in CLOSED_BOOK
        evaluation = evaluate(
            answers,
            setup.questions,
            rankings=setup.frozen if reads and arm != "oracle" else None,
            kinds=setup.kinds,
            resamples=setup.config.resamples,
            alpha=setup.config.alpha,
            seed=setup.config.seed,
        )
        # Also when the answers were there: references and kinds may have been corrected since.
        write_rows(path, inputs, setup.questions, answers, evaluation)
        setup.report("answer", total, total, arm)
        yield evaluation


def _inputs(setup: Settings, arm: str, answerer: Answerer, shown: Sequence[Sequence[Passage]]) -> str:
    """Hash of all that an arm's answers depend on."""
    depth = None if arm in MODE_ARMS else setup.answer.k  # a mode may read deeper than k
    read = [[p.chunk.id for p in passages[:depth]] for passages in shown] if arm not in CLOSED_BOOK else []
    return content_hash(
        arm,
        setup.generator.fingerprint,
        "".join(map(folder_hash, answerer.adapters.values())),
        PROMPT_VERSION,
        json.dumps(asdict(setup.answer), sort_keys=True),
        json.dumps([[q.id, q.question] for q in setup.questions]),
        json.dumps(read),
    )


def time_arms(setup: Settings, arms: Sequence[str], timed: int) -> dict[str, tuple[float, ...]]:
    """Seconds of single questions, the arms taking turns on each one so that a busy machine slows all alike.

    These are the seconds a person waits, retrieval included; in a batch a question costs less. The first question only
    warms up. Kept in latency.json.
    """
    path = setup.out / "latency.json"
    count = min(timed, len(setup.questions))
    if count == 0:
        return {}
    step = len(setup.questions) / count
    picked = [int(i * step) for i in range(count)]
    answerers = {arm: make_answerer(setup, arm) for arm in arms}
    shown = gold_passages(setup.index, setup.questions, setup.frozen) if "oracle" in arms else setup.frozen
    inputs = content_hash(json.dumps(picked), *(_inputs(setup, arm, answerers[arm], shown) for arm in arms))
    if setup.resume and path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["inputs"] == inputs:
                return {arm: tuple(stored["seconds"][arm]) for arm in arms}
        except (ValueError, KeyError, TypeError):  # damaged or of another version: timed again
            path.unlink()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn, i in enumerate([picked[0], *picked]):
        setup.report("time", turn, len(picked) + 1, "")
        for arm, answerer in answerers.items():
            begin = time.perf_counter()
            if arm == "oracle":
                answerer.answer_many([setup.asked[i]], arm=arm, retrievals=[shown[i]])
            else:
                answerer.answer(setup.asked[i], arm=arm)
            if turn:
                seconds[arm].append(time.perf_counter() - begin)
    write_text(path, json.dumps({"inputs": inputs, "questions": picked, "seconds": seconds}))
    setup.report("time", len(picked) + 1, len(picked) + 1, "")
    return {arm: tuple(values) for arm, values in seconds.items()}


def arm_costs(
    setup: Settings,
    runs: Mapping[str, Sequence[Evaluation]],
    latency: Mapping[str, tuple[float, ...]],
    index_seconds: float | None,
) -> tuple[dict[str, ArmCost], list[str]]:
    """Cost of every arm; training time comes from the adapters' own records."""
    warnings = []
    if index_seconds is None:
        index_seconds = setup.index.manifest.index_seconds  # measured when it was made
    indexing = index_seconds if index_seconds is not None else estimated_indexing(setup.index)
    costs = {}
    for arm, seeds in runs.items():
        training = 0.0
        for folder in weights(setup, arm).values():
            known = training_seconds(Path(folder))
            training += known or 0.0
            if known is None and arm != "oracle":
                warnings.append(f"The training time of {arm} is not recorded in its folder and counts as 0.")
        timed = latency.get(arm, ())
        mean = sum(timed) / len(timed) if timed else float(seeds[0].scores("seconds").mean())
        costs[arm] = ArmCost(mean, training, 0.0 if arm in CLOSED_BOOK else indexing, latency=timed)
    return costs, list(dict.fromkeys(warnings))


def training_seconds(folder: Path) -> float | None:
    """What the adapter's own record says; None where it has none."""
    try:
        return float(json.loads((folder / "ragtune.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # an adapter from elsewhere has no such record
        return None


def estimated_indexing(index: Index, sample: int = 32) -> float:
    """Seconds of embedding the whole index, from embedding some of its chunks."""
    chunks = list(index.chunks)
    texts = [chunk.embedded_text for chunk in chunks[:: max(1, len(chunks) // sample)][:sample]]
    if not texts:
        return 0.0
    begin = time.perf_counter()
    index.embed_queries(texts)
    return (time.perf_counter() - begin) * len(chunks) / len(texts)
