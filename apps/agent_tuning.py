"""`ragtune tune --recipe agent`: an adapter that acts, from traces; measured before and after as the arm `agent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps import serving
from apps.console import Console, duration
from apps.serving import make_retriever, open_index
from apps.training import Plan, estimate, train_adapter
from rag.types import Question


def tune_agent(
    index: Path,
    plan: Plan,
    *,
    traces: Path,
    eta: float | None,
    out: Path,
    test: Sequence[Question],
    dry_run: bool,
    encoder: str | None,
    console: Console,
) -> int:
    """Train on the kept traces of a file, mixed with general instructions at the share `eta` of the examples."""
    from tuning.recipes import agent

    found = agent.read_trace_file(traces)
    share = agent.ETA if eta is None else eta
    console.progress("loading the generator", 0, 0, plan.base)
    model = serving.load_generator(plan.base)
    general = []
    if share < 1:
        console.progress("general examples", 0, 0, str(plan.instructions or "the model's own answers"))
        general = agent.read_general(plan.instructions) if plan.instructions else agent.own_rows(model, seed=plan.seed)
    rows, made = agent.agent_rows(found, general, eta=share, seed=plan.seed, count_tokens=model.count_tokens)
    if dry_run:
        tokens, seconds = estimate(plan, rows, model)
        payload = {"dry_run": True, "adapter": str(out), "rows": len(rows), "tokens": tokens, "seconds": round(seconds)}
        console.result(payload, lambda p: _show_plan(p, plan))
        return 0
    before = _measure(model, index, test, None, encoder, console)
    del model  # training loads its own copy: a large model fits only once
    report = train_adapter(
        plan, rows, out, console, index=str(index.resolve()), traces=str(traces), mixture=made.to_dict()
    )
    after = _measure(serving.load_generator(plan.base) if test else None, index, test, out, encoder, console)
    if test:
        from tuning.record import amend_record

        amend_record(out, before=_means(before), after=_means(after))
    payload = {
        "adapter": str(out),
        "rows": report.rows,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "loss": list(report.loss),
        "before": before,
        "after": after,
        "shares": made.shares(),
        "mixture": made.to_dict(),
        "steps": report.steps,
        "planned_steps": report.planned_steps,
        "resumed": report.resumed,
        "reused": report.reused,
    }
    console.result(payload, _show)
    return 0


def _measure(
    model: Any, index: Path, test: Sequence[Question], adapter: Path | None, encoder: str | None, console: Console
) -> dict[str, Any] | None:
    """The agent on held-out questions, with the share of steps that were no legal action. It may write what it likes
    here: what it has learnt shows only where it is not held to the grammar. None without questions."""
    if not test:
        return None
    from agents.loop import AgentConfig
    from agents.react import ReactMode
    from agents.rewards import format_errors
    from rag.answer import Answerer
    from rag.evaluate import evaluate

    retriever = make_retriever(open_index(index, encoder, console), k=None)
    mode = ReactMode(AgentConfig(constrain=False))
    answerer = Answerer(model, retriever, adapters={"agent": str(adapter)} if adapter else {}, modes={"agent": mode})
    answers = answerer.answer_many([q.question for q in test], arm="agent", progress=console.stage("answering (agent)"))
    traces = [answer.details["trace"] for answer in answers]
    return {"arm": "agent", **evaluate(answers, test).to_dict(), "format_errors": round(format_errors(traces), 4)}


def _means(found: Mapping[str, Any] | None) -> dict[str, float]:
    named = {name: value["mean"] for name, value in (found or {}).items() if isinstance(value, Mapping)}
    return {**named, "format_errors": float((found or {}).get("format_errors", 0.0))}


def _show_plan(payload: Mapping[str, Any], plan: Plan) -> str:
    return (
        f"would train {plan.base} by {plan.method} on {payload['rows']} rows, {payload['tokens']} tokens in "
        f"{plan.config().num_train_epochs:g} epochs, about {duration(payload['seconds'])}, into {payload['adapter']}"
    )


def _show(payload: Mapping[str, Any]) -> str:
    mixture, loss = payload["mixture"], payload["loss"]
    lines = [
        f"{payload['adapter']}: {payload['rows']} rows, {payload['tokens']} tokens in {duration(payload['seconds'])}"
        + (f", loss {loss[0]:.2f} → {loss[-1]:.2f}" if loss else ""),
        f"{mixture['traces']} traces and {mixture['general']} general examples ({mixture['general_pool']} different): "
        f"traces are {payload['shares']['agent_examples']:.0%} of the examples, {mixture['token_share']:.0%} of the "
        f"tokens and {mixture['trained_share']:.0%} of those trained on",
    ]
    if payload["before"] and payload["after"]:
        for name in ("f1", "em"):
            was, now = payload["before"][name], payload["after"][name]
            lines.append(f"{name}: {was['mean']:.3f} → {now['mean']:.3f} (95 % {now['low']:.3f} to {now['high']:.3f})")
        was, now = payload["before"]["format_errors"], payload["after"]["format_errors"]
        lines.append(f"format errors: {was:.1%} → {now:.1%} of steps")
    else:
        lines.append("Give --test FILE to see what it does on questions it was not trained on.")
    return "\n".join(lines)
