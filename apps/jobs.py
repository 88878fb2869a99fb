"""The commands questions and tune, which take minutes and can be stopped and resumed, and chat, which stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.commands import read_questions
from apps.console import Console, duration
from apps.options import RETRIEVER_RECIPES
from apps.serving import STARTER, adapter_arm, make_retriever, open_index
from apps.training import Plan, estimate, forget_frozen, frozen_folder, make_rows, train_adapter
from rag.errors import UsageError
from rag.types import Question

if TYPE_CHECKING:
    from rag.answer import AnswerConfig
    from rag.protocols import Generator
    from rag.retrieve import Retriever
    from tuning.questions import QuestionsReport
    from tuning.rows import Row
    from tuning.train import TrainReport


_ARMS = {"rag": ("tuned+rag", "rag"), "self-rag": ("self-rag", "rag"), "ra-dit": ("ra-dit", "rag")}
"""recipe -> the arm that answers with its adapter, and the one that it is compared with; else tuned and base."""


def answer_config(k: int | None) -> AnswerConfig:
    """How answers are made, with k passages where k is given."""
    from rag.answer import AnswerConfig

    return AnswerConfig(k=k) if k else AnswerConfig()


def questions(
    index: Path,
    *,
    out: Path,
    test_out: Path | None,
    n: int,
    minutes: float | None,
    restart: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Make question-answer-evidence rows from the documents; with `test_out` part of them is held out, by document."""
    from rag.questions import read_questions as read
    from rag.questions import write_questions
    from tuning.questions import QuestionsConfig, make_questions, split_by_document

    for file in (out, test_out):
        if file is not None and file.exists() and not restart:
            raise UsageError(
                f"{file} exists and may have been edited. Name another file, or add --restart to replace it."
            )
    retriever = make_retriever(open_index(index, encoder, console), k=None)
    name = generator or STARTER
    console.progress("loading the generator", 0, 0, name)
    report = make_questions(
        retriever,
        serving.load_generator(name),
        out=out,
        n=n,
        config=QuestionsConfig(seed=seed),
        progress=lambda _, done, total, detail: console.progress("making questions", done, total, detail),
        resume=not restart,
        max_minutes=minutes,
    )
    held_out = 0
    if test_out is not None:
        train, test = split_by_document(read(out), seed=seed)
        if train and test:
            write_questions(test_out, test)
            write_questions(out, train)
            held_out = len(test)
        else:
            console.say(f"{out} is about one document only: nothing is held out in {test_out}.")
    payload = {
        "asked": report.asked,
        "kept": report.kept,
        "filters": report.filters,
        "unanswerable": report.unanswerable,
        "origins": report.origins,
        "held_out": held_out,
        "seconds": round(report.seconds, 1),
        "complete": report.complete,
        "out": str(out),
    }
    console.result(payload, lambda _: _show_questions(report, test_out, held_out))
    return 0


def _show_questions(report: QuestionsReport, test_out: Path | None, held_out: int) -> str:
    shares = ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in report.filters.items())
    lines = [
        f"{report.file}: {report.kept} questions kept of {report.asked} asked, and {report.unanswerable} that the "
        f"documents do not answer, in {duration(report.seconds)}",
        f"passed: {shares}",
    ]
    if held_out:
        lines.append(f"{held_out} of them, about other documents, are in {test_out}")
    if not report.complete:
        lines.append("Fewer than asked for: the documents, or the time, gave no more.")
    return "\n".join([*lines, "Read some of them before you trust them."])


def tune(
    index: Path,
    *,
    questions: Path,
    test: Path | None,
    out: Path,
    recipe: str,
    start: Path | None,
    instructions: Path | None,
    eta: float | None,
    critic: Path | None,
    method: str,
    epochs: float | None,
    learning_rate: float | None,
    minutes: float | None,
    k: int | None,
    skip_broken: bool,
    restart: bool,
    dry_run: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Train an adapter on what the serving retriever finds; with `test` it is measured before and after."""
    plan = Plan(
        generator or STARTER, recipe, method, epochs, learning_rate, minutes, seed, restart, instructions=instructions,
        critic=str(critic) if critic else None,
    )  # fmt: skip
    if recipe == "preference":
        from apps.preferring import tune_preference

        return tune_preference(
            index, ratings=questions, out=out, start=start, method=method, dry_run=dry_run, restart=restart,
            test=read_questions(test, skip_broken=skip_broken, console=console) if test else [],
            epochs=epochs,
            learning_rate=learning_rate, minutes=minutes, answer=answer_config(k), encoder=encoder,
            generator=generator, seed=seed, console=console,
        )  # fmt: skip
    if recipe == "agent":
        from apps.agent_tuning import tune_agent

        return tune_agent(
            index, plan, traces=questions, eta=eta, out=out, dry_run=dry_run, encoder=encoder, console=console,
            test=read_questions(test, skip_broken=skip_broken, console=console) if test else [],
        )  # fmt: skip
    if start is not None:
        raise UsageError("--start goes with --recipe preference; the other recipes begin from the generator itself.")
    asked = read_questions(questions, skip_broken=skip_broken, console=console)
    held_out = read_questions(test, skip_broken=skip_broken, console=console) if test else []
    if recipe in RETRIEVER_RECIPES:
        from apps.retriever_training import tune_retriever

        return tune_retriever(
            index, questions=asked, test=held_out, out=out, recipe=recipe, epochs=epochs, learning_rate=learning_rate,
            minutes=minutes, restart=restart, dry_run=dry_run, encoder=encoder, generator=generator, seed=seed,
            console=console,
        )  # fmt: skip
    return _tune_generator(
        plan, index, asked, held_out, questions=questions, out=out, answer=answer_config(k), dry_run=dry_run,
        encoder=encoder, console=console,
    )  # fmt: skip


def _tune_generator(
    plan: Plan,
    index: Path,
    asked: Sequence[Question],
    held_out: Sequence[Question],
    *,
    questions: Path,
    out: Path,
    answer: AnswerConfig,
    dry_run: bool,
    encoder: str | None,
    console: Console,
) -> int:
    """An adapter from the rows of `asked`, measured before and after on `held_out`."""
    retriever = make_retriever(open_index(index, encoder, console), k=answer.k)
    console.progress("loading the generator", 0, 0, plan.base)
    model = serving.load_generator(plan.base)
    rows, made = make_rows(plan, asked, retriever, model, answer, frozen_folder(out), console)
    for sentence in _overlap(asked, held_out):
        console.say(sentence)
    if dry_run:
        return _dry_run(plan, rows, model, out, console)
    arm, untuned = _ARMS.get(plan.recipe, ("tuned", "base"))
    before = _measure(model, retriever, answer, held_out, untuned, None, console)
    del model  # training loads its own copy: a large model fits only once
    report = train_adapter(plan, rows, out, console, index=str(index.resolve()), questions=str(questions))
    forget_frozen(out)
    after = None
    if held_out:
        after = _measure(serving.load_generator(plan.base), retriever, answer, held_out, arm, out, console)
        _amend(out, before, after)
    shares = made.shares()
    payload = {
        "adapter": str(out),
        "rows": report.rows,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "loss": list(report.loss),
        "before": before,
        "after": after,
        "shares": shares,
        "steps": report.steps,
        "planned_steps": report.planned_steps,
        "resumed": report.resumed,
        "reused": report.reused,
    }
    console.result(payload, lambda p: _show_tune(p, report))
    return 0


def _dry_run(plan: Plan, rows: Sequence[Row], model: Generator, out: Path, console: Console) -> int:
    tokens, seconds = estimate(plan, rows, model)
    payload = {"dry_run": True, "adapter": str(out), "rows": len(rows), "tokens": tokens, "seconds": round(seconds)}
    console.result(
        payload,
        lambda _: (
            f"would train {plan.base} by {plan.method} on {len(rows)} rows, {tokens} tokens in "
            f"{plan.config().num_train_epochs:g} epochs, about {duration(seconds)}, into {out}"
        ),
    )
    return 0


def _overlap(train: Sequence[Question], test: Sequence[Question]) -> tuple[str, ...]:
    from agents.checks import leakage

    return leakage(train, test).warnings()


def _measure(
    model: Any,
    retriever: Retriever,
    answer: AnswerConfig,
    questions: Sequence[Question],
    arm: str,
    adapter: Path | None,
    console: Console,
) -> dict[str, Any] | None:
    """Metrics of one arm on held-out questions; None without questions."""
    if not questions:
        return None
    from rag.answer import Answerer
    from rag.evaluate import evaluate

    answerer = Answerer(model, retriever, answer, adapters={arm: str(adapter)} if adapter else {})
    answers = answerer.answer_many(
        [q.question for q in questions], arm=arm, progress=console.stage(f"answering ({arm})")
    )
    return {"arm": arm, **evaluate(answers, questions).to_dict()}


def _amend(out: Path, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    from tuning.record import amend_record

    def means(found: Mapping[str, Any] | None) -> dict[str, float]:
        return {name: value["mean"] for name, value in (found or {}).items() if isinstance(value, Mapping)}

    amend_record(out, before=means(before), after=means(after))


def _show_tune(payload: Mapping[str, Any], report: TrainReport) -> str:
    loss = payload["loss"]
    fell = f", loss {loss[0]:.2f} → {loss[-1]:.2f}" if loss else ""
    lines = [
        f"{payload['adapter']}: " + ("already there, nothing was done" if report.reused else
        f"{payload['rows']} rows, {payload['tokens']} tokens in {duration(report.seconds)} "
        f"({report.tokens_per_second:.0f} tokens/s){fell}")
    ]  # fmt: skip
    if payload["before"] and payload["after"]:
        for name in ("f1", "em", "match"):
            was, now = payload["before"][name], payload["after"][name]
            lines.append(f"{name}: {was['mean']:.3f} → {now['mean']:.3f} (95 % {now['low']:.3f} to {now['high']:.3f})")
    else:
        lines.append("Give --test FILE to see what it does on questions it was not trained on.")
    return "\n".join(lines)


def chat(
    index: Path,
    *,
    port: int | None,
    decision: Path | None,
    adapter: Path | None,
    reranker: str | None,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
    examples: Sequence[str] = (),
    host: str | None = None,
    auth: Path | None = None,
    user_header: str | None = None,
    queue: int = 64,
) -> int:
    """Page and API, until Ctrl-C. Nothing is loaded before the port is known to be free."""
    from apps.auth import Door
    from apps.server import HOST, Access, choose_port, serve
    from apps.service import Service, ServiceConfig
    from rag.retrieve import RetrievalConfig

    access = Access(host or HOST, Door(passwords=auth, header=user_header), console.say)

    if adapter is not None and not adapter.is_dir():
        raise UsageError(f"There is no adapter folder at {adapter}. Make one with `ragtune tune`.")
    port = choose_port(port)
    service = Service.open(
        index,
        generator=generator,
        encoder=encoder,
        decision=decision,
        adapters={adapter_arm(adapter): adapter} if adapter else {},
        retrieval=RetrievalConfig(reranker=reranker),
        examples=examples,
        config=ServiceConfig(waiting=queue),
    )
    who = "who logs in" if access.asks else "this machine only"

    def ready(address: str) -> None:
        console.result({"url": address}, lambda p: f"The page is at {p['url']} ({who}; Ctrl-C ends it).")

    serve(service, port=port, open_browser=_has_screen(), on_ready=ready, access=access)
    console.say("The page is closed.")
    return 0


def password(name: str, *, auth: Path, console: Console) -> int:
    """Add a person to a password file, or change a password. It never stands on the command line."""
    from getpass import getpass

    from apps.auth import set_password

    if sys.stdin.isatty():
        given = getpass(f"Password of {name}: ", stream=sys.stderr)
        if getpass("Once more: ", stream=sys.stderr) != given:
            raise UsageError("The two passwords differ. Nothing was changed.")
    else:
        given = sys.stdin.readline().rstrip("\r\n")
    new = set_password(auth, name, given)
    payload = {"name": name, "auth": str(auth), "new": new}
    console.result(payload, lambda p: f"{p['auth']}: {p['name']} {'is added' if new else 'has a new password'}")
    return 0


def _has_screen() -> bool:
    """Whether somebody sits in front of this machine: a terminal, and a display that is not somebody else's."""
    if not sys.stderr.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
