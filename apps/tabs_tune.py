"""The Tune tab: questions, settings, a look at the rows, a forecast, the job, and the adapters. HTML: `panels_tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import frame, panels_tune
from apps.desk import Desk
from apps.markup import escape
from apps.options import OPTIONS
from apps.panels import said
from apps.strings import Words
from apps.tabs_chat import QUIET, download, field
from apps.tabs_documents import title
from apps.workshop import PREFERENCE, RECIPES, Knobs
from rag.errors import RagtuneError, UsageError

KINDS = ("questions", "tune")
LOG_LINES = 60


def build(t: Words) -> SimpleNamespace:
    """The components of the tab."""
    u = SimpleNamespace()
    u.job = gr.State("")
    gr.HTML(
        f'<div class="rt-lead-in"><h2>{t.html("tune-head")}</h2><p class="rt-lead">{t.html("tune-lead")}</p></div>',
        apply_default_css=False,
    )
    with gr.Row(elem_id="bench"):
        with gr.Column(scale=3, min_width=320):
            _questions(u, t)
            _settings(u, t)
        with gr.Column(scale=2, min_width=320):
            _running(u, t)
    u.knobs = [u.train, u.test, u.recipe, u.method, u.epochs, u.rate, u.minutes, u.k, u.name]
    u.shown = [u.train, u.test, u.adapters, u.jobs, u.panel, u.result, u.counter, u.job]
    return u


def _questions(u: SimpleNamespace, t: Words) -> None:
    title(t("step-questions"))
    with gr.Row(elem_classes="rt-form"):
        u.train = gr.Dropdown([], label=t("questions-train"), elem_id="train", filterable=False)
        u.test = gr.Dropdown([(t("none"), "")], value="", label=t("questions-test"), elem_id="test", filterable=False)
    with gr.Row(elem_classes="rt-form rt-sourcing"):
        u.file = gr.UploadButton(t("questions-upload"), file_types=[".jsonl"], size="sm", elem_id="questions-file")
        u.votes = gr.Button(t("questions-votes"), size="sm", elem_id="questions-votes")
        u.export = gr.Button(t("votes-export"), size="sm", elem_id="votes-export")
    with gr.Row(elem_classes="rt-form rt-making"):
        u.count = gr.Number(
            60, label=f"{t('questions-make')} · {t('questions-count')}", precision=0, minimum=1, maximum=5000,
            elem_id="questions-count",
        )  # fmt: skip
        u.make = gr.Button(t("make-start"), size="sm", scale=0, min_width=100, elem_id="questions-make")
    u.counter = gr.HTML(elem_id="tune-counter", apply_default_css=False)
    u.note = gr.HTML(elem_id="tune-note", apply_default_css=False)


def _settings(u: SimpleNamespace, t: Words) -> None:
    title(t("step-settings"))
    auto = t("automatic")
    with gr.Row(elem_classes="rt-form rt-knobs"):
        u.recipe = gr.Dropdown(
            list(RECIPES),
            value="rag",
            label=t("recipe"),
            elem_id="recipe",
            filterable=False,
        )
        u.method = gr.Dropdown(
            list(OPTIONS["method"].choices or ()), value="lora", label=t("method"), elem_id="method", filterable=False
        )
        u.epochs = gr.Textbox(label=t("epochs"), placeholder=auto, elem_id="epochs")
        u.rate = gr.Textbox(label=t("learning-rate"), placeholder=auto, elem_id="rate")
        u.minutes = gr.Textbox(label=t("minutes"), placeholder=auto, elem_id="minutes")
        u.k = gr.Textbox(label=t("passages"), placeholder=auto, elem_id="passages")
        u.name = gr.Textbox(
            label=t("adapter-name"), placeholder=t("name-automatic"), max_length=80, elem_id="adapter-name"
        )
    with gr.Row(elem_classes="rt-form rt-buttons"):
        u.look = gr.Button(t("look"), size="sm", elem_id="look")
        u.estimate = gr.Button(t("estimate"), size="sm", elem_id="estimate")
    u.forecast = gr.HTML(elem_id="forecast", apply_default_css=False)
    u.preview = gr.HTML(panels_tune.preview(None, t), elem_id="preview", apply_default_css=False)


def _running(u: SimpleNamespace, t: Words) -> None:
    title(t("step-run"))
    u.command = gr.HTML(elem_id="tune-command", apply_default_css=False)
    u.start = gr.Button(t("tune-start"), variant="primary", elem_id="tune-start")
    u.panel = gr.HTML(elem_id="tune-job", apply_default_css=False)
    u.result = gr.HTML(elem_id="tune-result", apply_default_css=False)
    title(t("jobs-head"))
    u.jobs = gr.HTML(elem_id="tune-jobs", apply_default_css=False)
    title(t("step-adapters"))
    u.adapters = gr.HTML(elem_id="adapters", apply_default_css=False)


def number(text: Any, label: str) -> float | None:
    """What was typed into a field as a number above 0; None for an empty one, which leaves it to the recipe.

    (Gradio's own number field shows an empty value as 0.) UsageError for anything else.
    """
    typed = str(text or "").strip().replace(",", ".")
    if not typed:
        return None
    try:
        value = float(typed)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UsageError(f"“{typed}” is no {label}: give a number above 0, or leave the field empty.")
    return value


def knobs(*values: Any) -> Knobs:
    """The settings as they stand in the components. UsageError for what is no number."""
    train, test, recipe, method, epochs, rate, minutes, k, name = values
    passages = number(k, "number of passages")
    return Knobs(
        train or "", test or "", recipe, method, number(epochs, "number of epochs"), number(rate, "learning rate"),
        number(minutes, "number of minutes"), max(1, int(passages)) if passages else None, str(name or ""),
    )  # fmt: skip


def files(desk: Desk, t: Words, train: str = "", test: str = "") -> tuple[gr.Dropdown, gr.Dropdown]:
    """The pickers of question files; a choice stays while its file is there."""
    found = desk.workshop.files()
    rated = [(t("ratings-file", name=name), path) for name, path in desk.workshop.files("ratings")]
    known = [path for _, path in (*found, *rated)]
    first = next((path for name, path in found if not name.endswith("-test")), None)
    held = next((path for name, path in found if name.endswith("-test")), "")
    return (
        gr.Dropdown([*found, *rated], value=train if train in known else first),
        gr.Dropdown([(t("none"), ""), *found], value=test if test in known else held),
    )


def panel(desk: Desk, t: Words, job_id: str) -> tuple[str, str, str, bool]:
    """HTML of a job (else of the newest), what it found out, its id, and whether it still lives."""
    found = desk.job(job_id, KINDS)
    if found is None:
        return "", "", "", False
    log, series = desk.jobs.log(found.id, LOG_LINES), desk.jobs.series(found.id)
    result = desk.jobs.result(found.id) if found.kind == "tune" and found.state == "done" else None
    told = panels_tune.before_after(result, t)
    return panels_tune.job(found, series, log, t), told, found.id, not found.over


def state(
    desk: Desk, u: SimpleNamespace, t: Words, user: str, *, job: str = "", train: str = "", test: str = ""
) -> dict[Any, Any]:
    """Everything of the tab that lies on disk."""
    trains, tests = files(desk, t, train, test)
    html, told, shown, _ = panel(desk, t, job)
    jobs = [j for j in desk.jobs.all() if j.kind in KINDS]
    return {
        u.train: trains, u.test: tests, u.adapters: panels_tune.adapters(desk.workshop.adapters(), t),
        u.jobs: panels_tune.jobs(jobs, shown, t), u.panel: html, u.result: told, u.job: shown,
        u.counter: frame.counter(desk.talks.feedback.counts(user=user), t),
    }  # fmt: skip


def live(desk: Desk) -> bool:
    """Whether any job runs or waits, so that the page looks again."""
    return any(not job.over for job in desk.jobs.all())


def command(desk: Desk, t: Words, values: tuple[Any, ...]) -> str:
    """The command that these settings stand for; what is missing, where something is."""
    import shlex

    try:
        return panels_tune.command(shlex.join(["ragtune", *desk.workshop.tune_command(knobs(*values))]), t)
    except RagtuneError as error:
        return f'<p class="rt-aside">{escape(t.of(str(error)))}</p>'


def wire(
    desk: Desk,
    tab: gr.Tab,
    u: SimpleNamespace,
    bus: gr.HTML,
    clock: gr.Timer,
    t: Words,
    after_use: Callable[[], dict[Any, Any]],
    used: list[Any],
) -> None:
    """What the tab does; `after_use` renews what shows the adapters in use (`used`) elsewhere."""

    def refresh(job: str, train: str, test: str, request: gr.Request) -> dict[Any, Any]:
        return state(desk, u, t, desk.user(request), job=job, train=train or "", test=test or "")

    def begin(argv: list[str], user: str, train: str, test: str) -> dict[Any, Any]:
        started = desk.jobs.start(argv, user=user)
        update = state(desk, u, t, user, job=started.id, train=train or "", test=test or "")
        return {**update, u.note: said(t("job-started"), t), clock: gr.Timer(active=True)}

    def run(make: Callable[[], list[str]], user: str, train: str, test: str) -> dict[Any, Any]:
        try:
            return begin(make(), user, train, test)
        except RagtuneError as error:
            return {u.note: frame.notice(str(error), t)}

    def tune(*values: Any, request: gr.Request) -> dict[Any, Any]:
        return run(lambda: desk.workshop.tune_command(knobs(*values)), desk.user(request), values[0], values[1])

    def make(n: float | None, train: str, test: str, request: gr.Request) -> dict[Any, Any]:
        return run(lambda: desk.workshop.questions_command(int(n or 60), None), desk.user(request), train, test)

    u.start.click(_with_request(tune), u.knobs, [*u.shown, u.note, clock], **QUIET)
    u.make.click(make, [u.count, u.train, u.test], [*u.shown, u.note, clock], **QUIET)
    gr.on(
        [component.change for component in u.knobs], lambda *values: command(desk, t, values), u.knobs, u.command,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    tab.select(refresh, [u.job, u.train, u.test], u.shown, **QUIET)
    _wire_questions(desk, u, t)
    _wire_forecast(desk, u, t)
    _wire_adapters(desk, u, bus, t, after_use, used)
    _wire_jobs(desk, u, bus, clock, t)


def _wire_questions(desk: Desk, u: SimpleNamespace, t: Words) -> None:
    """Question files: uploaded, or collected from the votes."""

    def chosen(find: Callable[[], tuple[Path, int]], test: str, name: str = "") -> dict[Any, Any]:
        try:
            target, n = find()
        except RagtuneError as error:
            return {u.note: frame.notice(str(error), t)}
        trains, tests = files(desk, t, str(target), test or "")
        told = said(t("took-questions", n=n, name=name or target.stem), t)
        return {u.note: told, u.train: trains, u.test: tests}

    def take(file: str, test: str) -> dict[Any, Any]:
        path = Path(file)
        try:
            return chosen(lambda: desk.workshop.take(path, path.name), test, path.name)
        finally:
            path.unlink(missing_ok=True)

    def collect(test: str, recipe: str, request: gr.Request) -> dict[Any, Any]:
        find = desk.workshop.preferences if recipe == PREFERENCE else desk.workshop.from_feedback
        return chosen(lambda: find(desk.user(request)), test)

    def export(request: gr.Request) -> str:
        try:
            target, _ = desk.workshop.preferences(desk.user(request))
            return download("votes.jsonl", target.read_text(encoding="utf-8"))
        except RagtuneError as error:
            return frame.notice(str(error), t)

    u.file.upload(take, [u.file, u.test], [u.note, u.train, u.test], **QUIET)
    u.votes.click(collect, [u.test, u.recipe], [u.note, u.train, u.test], **QUIET)
    u.export.click(export, None, u.note, **QUIET)


def _wire_forecast(desk: Desk, u: SimpleNamespace, t: Words) -> None:
    """A look at the rows, and what training on them would take."""

    def look(*values: Any) -> dict[Any, Any]:
        try:
            return {u.preview: panels_tune.preview(desk.workshop.preview(knobs(*values)), t), u.note: ""}
        except RagtuneError as error:
            return {u.note: frame.notice(str(error), t)}

    def estimate(*values: Any) -> dict[Any, Any]:
        try:
            return {u.forecast: panels_tune.forecast(desk.workshop.forecast(knobs(*values)), t), u.note: ""}
        except RagtuneError as error:
            return {u.note: frame.notice(str(error), t)}

    heavy = {"concurrency_limit": 1, "concurrency_id": "probe", "show_progress": "minimal", "api_visibility": "private"}
    u.look.click(look, u.knobs, [u.preview, u.note], show_progress_on=[u.preview], **heavy)
    u.estimate.click(estimate, u.knobs, [u.forecast, u.note], show_progress_on=[u.forecast], **heavy)


def _wire_adapters(
    desk: Desk,
    u: SimpleNamespace,
    bus: gr.HTML,
    t: Words,
    after_use: Callable[[], dict[Any, Any]],
    used: list[Any],
) -> None:
    """Answer with an adapter, and go back."""

    def use(event: gr.EventData, back: bool = False) -> dict[Any, Any]:
        arm, folder = field(event, "arm"), Path(field(event, "adapter"))
        try:
            known = {row.folder for row in desk.workshop.adapters()}
            desk.service.use_adapter(arm, folder if str(folder) in known and not back else None)
            told = said(t("now-back", arm=arm) if back else t("now-uses", arm=arm, name=folder.name), t)
        except RagtuneError as error:
            told = frame.notice(str(error), t)
        return {u.note: told, u.adapters: panels_tune.adapters(desk.workshop.adapters(), t), **after_use()}

    def unuse(event: gr.EventData) -> dict[Any, Any]:
        return use(event, back=True)

    bus.apply(use, None, [u.note, u.adapters, *used], **QUIET)
    bus.undo(unuse, None, [u.note, u.adapters, *used], **QUIET)


def _wire_jobs(desk: Desk, u: SimpleNamespace, bus: gr.HTML, clock: gr.Timer, t: Words) -> None:
    """Watch another job; cancel, resume or forget one."""

    def act(work: Callable[[str], str], event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        told, shown = "", field(event, "job")
        try:
            shown = work(shown)
        except RagtuneError as error:
            told = frame.notice(str(error), t)
        update = state(desk, u, t, desk.user(request), job=shown)
        for keep in (u.train, u.test):
            update.pop(keep)
        return {**update, u.note: told, clock: gr.Timer(active=live(desk))}

    def choose(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.get(job).id, event, request)

    def cancel(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.cancel(job).id, event, request)

    def resume(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        return act(lambda job: desk.jobs.resume(job).id, event, request)

    def forget(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        def work(job: str) -> str:
            desk.jobs.remove(job)
            return ""

        return act(work, event, request)

    outputs = [*u.shown, u.note, clock]
    for event, handler in ((bus.select, choose), (bus.stop, cancel), (bus.play, resume), (bus.clear, forget)):
        event(handler, None, outputs, **QUIET)


def _with_request(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gradio finds a request by its annotation in a signature with named parameters; this one has nine values."""

    def named(
        train: Any, test: Any, recipe: Any, method: Any, epochs: Any, rate: Any, minutes: Any, k: Any, name: Any,
        request: gr.Request,
    ) -> Any:  # fmt: skip
        return function(train, test, recipe, method, epochs, rate, minutes, k, name, request=request)

    return named
