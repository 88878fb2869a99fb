"""`ragtune route`: learns from what `decide` measured which arm answers which question."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.console import Console, table
from apps.serving import open_index
from rag.errors import UsageError

if TYPE_CHECKING:
    from agents.router_outcomes import Outcomes
    from rag.protocols import Generator
    from rag.retrieve import Retriever

TIMED = 20
"""Questions whose search and features are timed: what choosing costs is part of the comparison."""
_LEGEND = """* the best single arm on these questions, in hindsight
accuracy: how often the cheapest of the arms that did best was taken; regret: what the oracle has more, after cost"""
_MADE_WITH = ("generator", "generator_fingerprint", "encoder", "prompt_version", "retrieval_config", "date")


def route(
    runs: Sequence[Path],
    *,
    choose_from: tuple[str, ...] | None,
    worth: float | None,
    uncertainty: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Train a router on the outcomes in run folders, print what it is worth, and keep it in the first of them."""
    from agents.record import load_decision
    from agents.router_outcomes import load_outcomes
    from agents.router_training import RouterConfig, fit_router

    for run in runs:
        if not run.is_dir():
            raise UsageError(f"There is no run folder at {run}. Make one with `ragtune decide`.")
    decision = load_decision(runs[0])
    load_outcomes(runs, arms=choose_from).check()  # before any model is loaded
    index = open_index(decision.index, encoder or str(decision.data["encoder"]), console)
    retriever = _retriever(index, decision.data["retrieval_config"])
    embeds = retriever.config.mode != "lexical"
    console.progress("reading the outcomes", 0, 0)
    outcomes = load_outcomes(runs, arms=choose_from, embed=index.embed_queries if embeds else None)
    asked_seconds = 0.0
    if uncertainty:
        name = generator or str(decision.data["generator"])
        console.progress("loading the generator", 0, 0, name)
        outcomes, asked_seconds = _with_uncertainty(outcomes, serving.load_generator(name), decision.data, console)
    search_seconds, choose_seconds = _timed(retriever, outcomes)
    settings = decision.data["config"]
    config = RouterConfig(
        worth=worth,
        minimal_gain=float(settings["minimal_gain"]),
        search_seconds=search_seconds,
        choose_seconds=choose_seconds + asked_seconds,
        queries=int(settings["queries"]),
        resamples=int(settings["resamples"]),
        alpha=float(settings["alpha"]),
        seed=seed,
    )
    made_with = {name: decision.data.get(name) for name in _MADE_WITH} | {"runs": [str(run) for run in runs]}
    router = fit_router(outcomes, config, made_with=made_with, progress=console.stage("learning"))
    path = router.save(runs[0])
    payload = {**router.report, "arms": list(router.arms), "usual": router.usual, "router": str(path)}
    console.result(payload, show_router)
    return 0


def _retriever(index: Any, saved: Mapping[str, Any]) -> Retriever:
    """The retriever that the runs were measured with."""
    from dataclasses import fields

    from rag.retrieve import RetrievalConfig, Retriever

    known = {f.name for f in fields(RetrievalConfig)}
    config = RetrievalConfig(**{name: value for name, value in saved.items() if name in known})
    return Retriever(index, config, reranker=serving.load_reranker(config.reranker) if config.reranker else None)


def _timed(retriever: Retriever, outcomes: Outcomes) -> tuple[float, float]:
    """Mean seconds of a search and of describing its result, over a few questions; the first one only warms up."""
    from agents.router_features import DEPTH, describe

    asked = list(outcomes.questions[:: max(1, len(outcomes) // TIMED)][:TIMED])
    search = choose = 0.0
    for turn, question in enumerate([asked[0], *asked]):
        begin = time.perf_counter()
        passages = retriever.search(question, DEPTH)
        middle = time.perf_counter()
        describe(question, passages)
        if turn:
            search, choose = search + middle - begin, choose + time.perf_counter() - middle
    return search / len(asked), choose / len(asked)


def _with_uncertainty(
    outcomes: Outcomes, generator: Generator, data: Mapping[str, Any], console: Console
) -> tuple[Outcomes, float]:
    """The outcomes with the generator's uncertainty as two more features, and the seconds of one question, asked
    alone."""
    from dataclasses import fields, replace

    import numpy as np

    from agents.router_features import UNCERTAINTY, uncertainty
    from rag.answer import AnswerConfig

    known = {f.name for f in fields(AnswerConfig)}
    config = AnswerConfig(**{name: value for name, value in data["answer_config"].items() if name in known})
    console.progress("asking for first tokens", 0, 0, f"{len(outcomes)} questions")
    found = uncertainty(generator, outcomes.questions, outcomes.passages, config)
    few = range(0, len(outcomes), max(1, len(outcomes) // 5))
    begin = time.perf_counter()
    for i in few:
        uncertainty(generator, outcomes.questions[i : i + 1], outcomes.passages[i : i + 1], config)
    seconds = (time.perf_counter() - begin) / len(few)
    features = (*outcomes.features, *UNCERTAINTY)
    return replace(outcomes, values=np.hstack([outcomes.values, found]), features=features), seconds


def show_router(data: Mapping[str, Any]) -> str:
    """The table of policies, the router by kind of question, and the verdict."""
    from agents.router_report import shown

    lines = [table(shown(data)), "", _LEGEND]
    if data["kinds"]:
        rows = [("kind", "n", "best single", "router", "oracle", "the router takes")]
        for kind, row in data["kinds"].items():
            taken = sorted(((s, a) for a, s in row["shares"].items() if s >= 0.05), reverse=True)
            shares = ", ".join(f"{arm} {share:.0%}" for share, arm in taken)
            figures = [f"{row[name]:.3f}" for name in ("best_single", "router", "oracle")]
            rows.append((kind, str(row["n"]), *figures, shares))
        lines += ["", table(rows)]
    served = (
        "`ragtune ask` and `ragtune chat` route with it when nothing else is asked for (auto)."
        if data["better"]
        else "`auto` stays with the decision's arm."
    )
    return "\n".join([*lines, "", str(data["reason"]), served])
