"""The Decide tab: run, watch, read; sliders that move the recommendation. HTML comes from `panels_decide`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import frame, panels_decide, panels_tune, tabs_tune
from apps.desk import Desk
from apps.drill import disagreements
from apps.panels import said
from apps.recommend import Recommendation, recommend
from apps.strings import Words
from apps.tabs_chat import QUIET, field
from apps.tabs_documents import title
from rag.errors import RagtuneError

KINDS = ("decide",)
QUERIES = 10_000


def build(t: Words) -> SimpleNamespace:
    """The components of the tab."""
    v = SimpleNamespace()
    v.job = gr.State("")
    v.decision = gr.HTML(elem_id="decision", apply_default_css=False)
    with gr.Column(elem_id="sliders-part", visible=False) as v.part:
        title(t("sliders-head"))
        v.sliders = gr.HTML(elem_id="sliders", apply_default_css=False)
        v.recommendation = gr.HTML(elem_id="recommendation", apply_default_css=False)
    v.details = gr.HTML(elem_id="decision-details", apply_default_css=False)
    with gr.Column(elem_id="drill-part", visible=False) as v.drill_part:
        title(t("drill-head"))
        v.drill = gr.HTML(elem_id="drill", apply_default_css=False)
    with gr.Column(elem_id="decide-run"):
        title(t("decide-run"))
        with gr.Row(elem_classes="rt-form"):
            v.train = gr.Dropdown(
                [(t("none"), "")], value="", label=t("decide-train"), elem_id="decide-train", filterable=False
            )
            v.test = gr.Dropdown([], label=t("decide-test"), elem_id="decide-test", filterable=False)
            v.minutes = gr.Textbox(label=t("minutes"), placeholder=t("automatic"), elem_id="decide-minutes")
            v.queries = gr.Number(QUERIES, label=t("queries-month"), precision=0, minimum=1, elem_id="decide-queries")
        v.command = gr.HTML(elem_id="decide-command", apply_default_css=False)
        v.start = gr.Button(t("decide-start"), variant="primary", elem_id="decide-start")
        v.note = gr.HTML(elem_id="decide-note", apply_default_css=False)
        v.panel = gr.HTML(elem_id="decide-job", apply_default_css=False)
        v.jobs = gr.HTML(elem_id="decide-jobs", apply_default_css=False)
    v.read = [v.decision, v.part, v.sliders, v.recommendation, v.details, v.drill_part, v.drill]
    v.knobs = [v.train, v.test, v.minutes, v.queries]
    v.shown = [*v.read, v.train, v.test, v.panel, v.jobs, v.job]
    return v


def worked_out(desk: Desk, queries: int, price: float) -> tuple[Recommendation | None, str]:
    """The recommendation at these numbers; None and why where the decision does not carry one."""
    view = desk.service.decision
    if view is None:
        return None, ""
    try:
        return recommend(view.data, queries=queries, price_per_hour=price), ""
    except RagtuneError as error:
        return None, str(error)


def reading(desk: Desk, v: SimpleNamespace, t: Words) -> dict[Any, Any]:
    """What the decision in use says."""
    view = desk.service.decision
    config = dict(view.data.get("config") or {}) if view is not None else {}
    queries, price = int(config.get("queries") or QUERIES), float(config.get("price_per_hour") or 0.0)
    found, why = worked_out(desk, queries, price)
    metric = str(config.get("primary") or "f1")
    arms = [str(a.get("arm")) for a in view.data.get("arms") or () if isinstance(a, dict)] if view is not None else []
    apart = (
        disagreements(Path(view.path), metric, [a for a in arms if a != "oracle"])
        if view is not None and view.path
        else []
    )
    return {
        v.decision: panels_decide.decision(view, t), v.part: gr.Column(visible=found is not None),
        v.sliders: panels_decide.sliders(queries, price, t) if found is not None else "",
        v.recommendation: panels_decide.recommendation(view, found, t, why=why),
        v.details: panels_decide.details(view, t), v.drill_part: gr.Column(visible=view is not None),
        v.drill: panels_decide.drill(apart, t) if view is not None else "",
    }  # fmt: skip


def watching(desk: Desk, v: SimpleNamespace, t: Words, job: str = "") -> dict[Any, Any]:
    """The job and the list of jobs."""
    found = desk.job(job, KINDS)
    jobs = [j for j in desk.jobs.all() if j.kind in KINDS]
    shown = found.id if found is not None else ""
    html = ""
    if found is not None:
        html = panels_tune.job(
            found, desk.jobs.series(found.id), desk.jobs.log(found.id, tabs_tune.LOG_LINES), t, bus="decide"
        )
    return {v.panel: html, v.jobs: panels_tune.jobs(jobs, shown, t, bus="decide") if jobs else "", v.job: shown}


def files(desk: Desk, v: SimpleNamespace, t: Words, train: str = "", test: str = "") -> dict[Any, Any]:
    """The pickers of question files."""
    found = desk.workshop.files()
    known = [path for _, path in found]
    held = next((path for name, path in found if name.endswith("-test")), None)
    return {
        v.train: gr.Dropdown([(t("none"), ""), *found], value=train if train in known else ""),
        v.test: gr.Dropdown(found, value=test if test in known else held),
    }


def state(
    desk: Desk, v: SimpleNamespace, t: Words, *, job: str = "", train: str = "", test: str = ""
) -> dict[Any, Any]:
    """Everything of the tab."""
    return {**reading(desk, v, t), **files(desk, v, t, train, test), **watching(desk, v, t, job)}


def argv(desk: Desk, train: str, test: str, minutes: str, queries: float | None) -> list[str]:
    """The command of these settings. Raises UsageError for what is missing."""
    return desk.workshop.decide_command(
        train or "", test or "", minutes=tabs_tune.number(minutes, "number of minutes"), queries=int(queries or QUERIES)
    )


def command(desk: Desk, t: Words, values: tuple[Any, ...]) -> str:
    """The command that runs, or what is missing."""
    import shlex

    from apps.markup import escape

    try:
        return panels_tune.command(shlex.join(["ragtune", *argv(desk, *values)]), t)
    except RagtuneError as error:
        return f'<p class="rt-aside">{escape(t.of(str(error)))}</p>'


def wire(desk: Desk, tab: gr.Tab, v: SimpleNamespace, bus: gr.HTML, clock: gr.Timer, t: Words) -> None:
    """What the tab does."""

    def run(train: str, test: str, minutes: str, queries: float | None, request: gr.Request) -> dict[Any, Any]:
        try:
            started = desk.jobs.start(argv(desk, train, test, minutes, queries), user=desk.user(request))
        except RagtuneError as error:
            return {v.note: frame.notice(str(error), t)}
        update = watching(desk, v, t, started.id)
        return {**update, v.note: said(t("job-started"), t), clock: gr.Timer(active=True)}

    def refresh(job: str, train: str, test: str) -> dict[Any, Any]:
        return state(desk, v, t, job=job, train=train or "", test=test or "")

    def slide(event: gr.EventData) -> str:
        found, why = worked_out(desk, *_numbers(event))
        return panels_decide.recommendation(desk.service.decision, found, t, why=why)

    def act(work: Callable[[str], str], event: gr.EventData) -> dict[Any, Any]:
        told, shown = "", field(event, "job")
        try:
            shown = work(shown)
        except RagtuneError as error:
            told = frame.notice(str(error), t)
        return {**watching(desk, v, t, shown), v.note: told, clock: gr.Timer(active=tabs_tune.live(desk))}

    def choose(event: gr.EventData) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.get(job).id, event)

    def cancel(event: gr.EventData) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.cancel(job).id, event)

    def resume(event: gr.EventData) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.resume(job).id, event)

    def forget(event: gr.EventData) -> dict[Any, Any]:
        def work(job: str) -> str:
            desk.jobs.remove(job)
            return ""

        return act(work, event)

    outputs = [v.panel, v.jobs, v.job, v.note, clock]
    v.start.click(run, v.knobs, outputs, **QUIET)
    for event, handler in ((bus.select, choose), (bus.stop, cancel), (bus.play, resume), (bus.clear, forget)):
        event(handler, None, outputs, **QUIET)
    bus.input(slide, None, v.recommendation, trigger_mode="always_last", **QUIET)
    gr.on(
        [component.change for component in v.knobs], lambda *values: command(desk, t, values), v.knobs, v.command,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    tab.select(refresh, [v.job, v.train, v.test], v.shown, **QUIET)


def _numbers(event: gr.EventData) -> tuple[int, float]:
    """Questions a month and price of an hour as the sliders send them; what is no number counts as the default."""
    try:
        return max(1, min(10**9, int(float(field(event, "queries") or QUERIES)))), max(
            0.0, float(field(event, "price") or 0)
        )
    except ValueError:
        return QUERIES, 0.0
