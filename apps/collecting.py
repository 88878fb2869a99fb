"""`ragtune collect`: traces of an agent, kept where they were good; made by a model, built from evidence, or imported.

With `--demonstrate` no model is asked: right runs are built from the questions' evidence with the real tools.
With `--compose N`, N further questions that take two documents or arithmetic are made from those of the file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands import read_questions
from apps.console import Console, duration, table
from apps.serving import make_retriever, open_index, open_session
from rag.errors import UsageError
from rag.types import Question

if TYPE_CHECKING:
    from agents.collect import CollectReport
    from agents.demonstrations import Task
    from agents.loop import AgentConfig


def collect(
    index: Path,
    *,
    questions: Path,
    out: Path,
    test: Path | None,
    demonstrate: bool,
    compose: int | None,
    composed: Path | None,
    only_composed: bool,
    keep: float | None,
    reward: str,
    samples: int | None,
    runtime: str,
    steps: int | None,
    budget_end: str,
    shots: int | None,
    bank: Path | None,
    free: bool,
    imported: Path | None,
    merge: Path | None,
    adapter: Path | None,
    skip_broken: bool,
    restart: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Run the agent over the questions, judge every trace, and write them all, with what is kept marked."""
    from rag.questions import read_kinds

    began = time.perf_counter()
    asked = read_questions(questions, skip_broken=skip_broken, console=console)
    kinds = read_kinds(questions, skip_broken=skip_broken)
    held_out = read_questions(test, skip_broken=skip_broken, console=console) if test else []
    tasks = _tasks(asked, kinds, compose, composed, only_composed, seed)
    if not tasks:
        raise UsageError("There are no questions left to collect for. Give more questions, or --compose fewer of them.")
    if demonstrate:
        return _demonstrate(index, tasks, held_out, out, imported, encoder, began, console)
    config = _config(steps, budget_end, shots, free, seed)
    session = open_session(
        index, arm="agent", adapter=adapter, decision=None, k=None, reranker=None, encoder=encoder,
        generator=generator, console=console,
    )  # fmt: skip
    from agents.collect import CollectConfig
    from agents.collect import collect as run
    from agents.react import Bank
    from agents.rewards import find_reward

    mode = _mode(runtime)(config, bank=Bank.open(bank) if bank else None)
    given = {"keep": keep, "samples": samples}
    report = run(
        session.answerer,
        mode,
        [task.question for task in tasks],
        out,
        reward=find_reward(reward),
        config=CollectConfig(seed=seed, **{k: v for k, v in given.items() if v is not None}),  # type: ignore[arg-type]
        kinds={task.question.id: task.kind for task in tasks},
        test=held_out,
        progress=lambda done, total, detail: console.progress("collecting", done, total, detail),
        resume=not restart,
    )
    _add(out, merge, imported, keep or 1.0)
    console.result(_payload(report, time.perf_counter() - began), _show)
    return 0


def _tasks(
    asked: Sequence[Question],
    kinds: Mapping[str, str],
    count: int | None,
    composed: Path | None,
    only: bool,
    seed: int,
) -> list[Task]:
    """The questions of the file and those made of them; the latter are also written where `composed` says."""
    from agents.demonstrations import compose, plain_tasks
    from rag.questions import write_questions

    if (composed or only) and not count:
        raise UsageError("--composed and --only-composed go with --compose N, which says how many to make.")
    made = compose(asked, count, seed=seed) if count else []
    if composed:
        write_questions(composed, [t.question for t in made], kinds={t.question.id: t.kind for t in made})
    return [*([] if only else plain_tasks(asked, kinds)), *made]


def _config(steps: int | None, end: str, shots: int | None, free: bool, seed: int) -> AgentConfig:
    from agents.loop import AgentConfig

    given: dict[str, Any] = {"steps": steps, "shots": shots}
    changes = {name: value for name, value in given.items() if value is not None}
    return AgentConfig(end=end, constrain=not free, seed=seed, **changes)  # type: ignore[arg-type]


def _mode(runtime: str) -> Any:
    if runtime == "native":
        from agents.native import NativeMode

        return NativeMode
    from agents.react import ReactMode

    return ReactMode


def _demonstrate(
    index: Path,
    tasks: Sequence[Task],
    held_out: Sequence[Question],
    out: Path,
    imported: Path | None,
    encoder: str | None,
    began: float,
    console: Console,
) -> int:
    """Traces from evidence: real tools, no model."""
    from agents.collect import CollectReport
    from agents.demonstrations import Demonstrator
    from agents.demonstrations import demonstrate as build
    from agents.loop import AgentConfig
    from agents.rewards import judge, summary
    from agents.tools import Corpus, Reader, Toolkit
    from agents.traces import write_traces

    config = AgentConfig()
    corpus = Corpus(make_retriever(open_index(index, encoder, console), k=None))

    def toolkit(reader: Reader) -> Toolkit:
        return Toolkit(corpus, names=config.tools, reader=reader)

    # characters are counted instead of tokens, four for one: no model is loaded for this
    demonstrator = Demonstrator(
        toolkit, observation_tokens=config.observation_tokens, count_tokens=lambda text: -(-len(text) // 4)
    )
    traces, counts = build(tasks, demonstrator, progress=console.stage("demonstrating"))
    if not traces:
        raise UsageError(
            "No run could be demonstrated: the questions need answers and evidence that stand in the indexed documents."
        )
    judged, dropped = judge(traces, keep=1.0, test=[q.question for q in held_out])
    write_traces(out, judged)
    _add(out, None, imported, 1.0)
    report = CollectReport(out, summary(judged), dropped, time.perf_counter() - began)
    payload = {**_payload(report, report.seconds), "demonstrated": counts}
    console.result(payload, _show)
    return 0


def _add(out: Path, merge: Path | None, imported: Path | None, keep: float) -> None:
    """Add the traces of an earlier round (judged together with these) and imported ones to the file."""
    from agents.collect import merged
    from agents.imports import import_traces
    from agents.traces import read_traces, write_traces

    if merge is None and imported is None:
        return
    traces = read_traces(out)
    if merge is not None:
        traces = merged(read_traces(merge), traces, keep=keep)
    if imported is not None:
        traces += import_traces(imported)
    write_traces(out, traces)


def _payload(report: CollectReport, seconds: float) -> dict[str, Any]:
    return {
        "out": str(report.out),
        **report.summary,
        "dropped_traces": dict(report.dropped),
        "resumed": report.resumed,
        "seconds": round(seconds, 1),
    }


def _show(payload: Mapping[str, Any]) -> str:
    rows = [("kind", "traces", "kept", "mean reward")]
    rows += [
        (kind, str(row["n"]), f"{row['kept']} ({row['share_kept']:.0%})", f"{row['reward']:.3f}")
        for kind, row in payload["kinds"].items()
    ]
    lines = [
        f"{payload['out']}: {payload['kept']} of {payload['traces']} traces kept, in {duration(payload['seconds'])}",
        table(rows),
        f"format errors: {payload['format_errors']:.1%} of {payload['steps']} steps",
    ]
    for name, title in (("failures", "failures"), ("dropped_traces", "not kept"), ("fallbacks", "end of the budget")):
        if payload[name]:
            lines.append(f"{title}: " + ", ".join(f"{count} {what}" for what, count in payload[name].items()))
    return "\n".join(lines)
