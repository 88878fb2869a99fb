"""Runs the arms on the same held-out questions, from one set of frozen retrievals, and writes down what was decided.

A run folder holds `retrievals/` (frozen), `rows-<arm>.jsonl` (answers and scores of each question), `latency.json`,
`general.json` (general questions with and without adapters), `halves/` (where a tuned query encoder asks),
`decision.json` and `report.html`. What is finished is found again by a hash of all that went into it, so that a run
that was stopped goes on where it was. Trained arms come from a callback: this package never imports the trainers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from agents.checks import Forgetting, GeneralSuite, leakage
from agents.halves import measure_halves
from agents.measure import Report, Settings, arm_costs, measure, time_arms
from agents.record import write_decision
from agents.rule import DecideConfig, Decision, decide
from rag.answer import AnswerConfig, check_question
from rag.errors import QuestionsError, UsageError
from rag.evaluate import evaluate_retrieval
from rag.index import Index
from rag.modes import Mode
from rag.protocols import Generator, Reranker
from rag.retrieve import RetrievalConfig, Retriever, freeze
from rag.types import ARMS, MODE_ARMS, Question

Train: TypeAlias = Callable[[str], "str | os.PathLike[str]"]
"""train(recipe) -> adapter folder; recipe is "closed-book" or "rag". Called again on resume: it may return at once."""
Adapters: TypeAlias = "Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]]"

RECIPES = {
    "tuned": "closed-book",
    "tuned+rag": "rag",
    "self-rag": "self-rag",
    "ra-dit": "ra-dit",
    "agent": "agent",
}
"""The recipe that makes an arm's own adapter. Other arms that read passages answer with the weights of tuned+rag."""
FROM_QUESTIONS = ("tuned", "tuned+rag", "self-rag", "ra-dit")
"""Arms whose adapter can be trained here; an agent's needs traces (`ragtune collect`), and is given."""
DEPTH = 20
"""Passages frozen for each question: enough for 10 documents, as the retrieval metrics ask; the model sees the first
k.
"""


def run(
    index: Index,
    train_questions: Sequence[Question],
    questions: Sequence[Question],
    out: str | os.PathLike[str],
    *,
    generator: Generator,
    train: Train | None = None,
    adapters: Adapters | None = None,
    more: Sequence[str] = (),
    modes: Mapping[str, Mode] | None = None,
    retrieval: RetrievalConfig = RetrievalConfig(),
    reranker: Reranker | None = None,
    answer: AnswerConfig = AnswerConfig(),
    config: DecideConfig = DecideConfig(),
    kinds: Mapping[str, str] | None = None,
    index_seconds: float | None = None,
    timed: int = 20,
    allow_leaks: bool = False,
    progress: Report | None = None,
    resume: bool = True,
) -> Decision:
    """Measures base, rag, tuned, tuned+rag and the oracle bound, decides, and writes the run folder `out`.

    `adapters` gives folders by arm, several for several seeds; arms without one are trained by `train`, and left out
    with a warning when there is no `train`. `more` are arms of `rag.types.MODE_ARMS` to be measured beside the four,
    `modes` those of them that the answerer does not know by itself (the agent). `index_seconds` is what indexing took;
    without it the pace at which the index was made counts, or, where that is unknown, that of embedding a few chunks.
    `timed` questions are answered one at a time by every arm in turn, for latency and cost. Where the index is asked
    through a tuned query encoder, each half's gain is measured, too (`agents.halves`).

    Raises QuestionsError when a test question stands in the training file (unless `allow_leaks`) or has no answer.
    """
    questions = list(questions)
    _check_questions(questions)
    unknown = sorted(set(more) - set(MODE_ARMS))
    if unknown:
        raise UsageError(f'There is no arm "{unknown[0]}" to measure besides; allowed are {", ".join(MODE_ARMS)}.')
    leak = leakage(train_questions, questions)
    if leak.same and not allow_leaks:
        raise QuestionsError(
            f"{leak.warnings()[0]} A model that was trained on a question says nothing about new ones: "
            "take them out of one of the two files."
        )
    begin = time.perf_counter()
    report = progress or _silent
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    retriever = Retriever(index, retrieval, reranker=reranker)
    setup = Settings(index, questions, folder, generator, retriever, answer, config, kinds or {}, resume, report)
    report("retrieve", 0, len(questions), "")
    frozen = freeze(retriever, setup.asked, folder / "retrievals", max(DEPTH, answer.k))
    report("retrieve", len(questions), len(questions), "")
    found, warnings = _adapters(adapters or {}, more, train, report)
    setup = replace(setup, frozen=frozen, adapters=found, modes=modes or {}, more=tuple(more))
    runs = {arm: list(measure(setup, arm)) for arm in _arms(setup)}
    latency = time_arms(setup, list(runs), timed)
    costs, missing = arm_costs(setup, runs, latency, index_seconds)
    halves = measure_halves(setup, runs, depth=max(DEPTH, answer.k), reranker=reranker)
    forgetting = _forgetting(setup)
    report("decide", 0, 1, "")
    decision = decide(runs, costs, config)
    dropped = [sentence for f in forgetting if (sentence := f.warning())]
    decision = replace(decision, warnings=(*leak.warnings(), *warnings, *missing, *decision.warnings, *dropped))
    write_decision(
        setup,
        decision,
        runs=runs,
        costs=costs,
        forgetting=forgetting,
        halves=halves,
        retrieved=evaluate_retrieval(frozen, questions, resamples=config.resamples, seed=config.seed),
        seconds=time.perf_counter() - begin,
    )
    report("decide", 1, 1, decision.chosen or "")
    return decision


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Progress that nobody watches."""


def _check_questions(questions: Sequence[Question]) -> None:
    """Before anything slow: every question can be asked and judged."""
    if not questions:
        raise QuestionsError("There are no test questions; give a file with at least one question and its answers.")
    unjudged = [q.id for q in questions if not q.answers and not q.unanswerable]
    if unjudged:
        raise QuestionsError(
            f'{len(unjudged)} questions have no answers ({", ".join(unjudged[:5])}): add "answers", or '
            '"unanswerable": true where the documents do not hold one.'
        )
    for question in questions:
        try:
            check_question(question.question)
        except UsageError as error:
            raise QuestionsError(f"The question {question.id} cannot be asked. {error}") from error


def _adapters(
    given: Adapters, more: Sequence[str], train: Train | None, report: Report
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Adapter folders of the tuned arms, trained where they lack, and a warning for each arm without."""
    unknown = sorted(set(given) - set(RECIPES))
    if unknown:
        raise UsageError(f"There is no adapter for {', '.join(unknown)}; arms with adapters: {', '.join(RECIPES)}.")
    found: dict[str, tuple[str, ...]] = {}
    warnings = []
    for arm, recipe in RECIPES.items():
        if arm in MODE_ARMS and arm not in more:
            continue
        named = given.get(arm)
        if named:
            folders = (named,) if isinstance(named, (str, os.PathLike)) else tuple(named)
        elif train is not None and arm in FROM_QUESTIONS:
            report("train", 0, 1, arm)
            folders = (train(recipe),)
            report("train", 1, 1, arm)
        elif arm in MODE_ARMS:
            warnings.append(f"{arm} was measured with the untouched model: no adapter was given for it.")
            continue
        else:
            warnings.append(f"{arm} was not measured: no adapter was given for it.")
            continue
        gone = [str(folder) for folder in folders if not Path(folder).is_dir()]
        if gone:
            raise UsageError(f"The adapter folder {gone[0]} (arm {arm}) does not exist.")
        found[arm] = tuple(str(Path(folder).resolve()) for folder in folders)
    for arm in set(more) - set(RECIPES):
        if "tuned+rag" in found:
            found[arm] = found["tuned+rag"]
    return found, warnings


def _arms(setup: Settings) -> list[str]:
    return [*(arm for arm in ARMS if arm not in RECIPES or arm in setup.adapters), *setup.more, "oracle"]


def _forgetting(setup: Settings) -> list[Forgetting]:
    """What each tuned arm (its first seed) lost of general knowledge, asked without passages."""
    kept = setup.out / "general.json"
    if not setup.resume:
        kept.unlink(missing_ok=True)
    suite = GeneralSuite(setup.generator, setup.answer, setup.config.seed, kept)
    found = []
    own = {arm: folders for arm, folders in setup.adapters.items() if arm in RECIPES}
    for done, (arm, folders) in enumerate(own.items()):
        setup.report("general", done, len(own), arm)
        found.append(suite.compare(arm, folders[0]))
    setup.report("general", len(own), len(own), "")
    return found
