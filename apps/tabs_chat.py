"""The Chat tab: its components, and what happens when they are used. HTML comes from `render` and `frame`."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import frame, render
from apps.desk import Desk
from apps.markup import escape
from apps.pages import Pages
from apps.strings import Words
from apps.talks import Run
from rag.errors import RagtuneError, UsageError

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
EXAMPLES = 3


def build(t: Words) -> SimpleNamespace:
    """The components of the tab."""
    c = SimpleNamespace()
    c.talk = gr.BrowserState("", storage_key="ragtune-talk", secret="ragtune")  # which one was open, no more
    c.again = gr.State(False)
    with gr.Row(elem_id="chat-frame"):
        with gr.Column(elem_id="rail-column", min_width=0, scale=0):
            c.rail = gr.HTML(elem_id="rail", apply_default_css=False)
        with gr.Column(elem_id="chat", min_width=0, scale=1):
            _toolbar(c, t)
            c.welcome = gr.HTML(elem_id="welcome", apply_default_css=False)
            with gr.Row(elem_id="examples"):
                c.examples = [gr.Button("", size="sm", visible=False) for _ in range(EXAMPLES)]
            c.earlier = gr.HTML(elem_id="earlier", apply_default_css=False)
            with gr.Row(elem_classes="rt-turn", elem_id="live"):
                c.answers = gr.HTML(elem_id="live-answers", apply_default_css=False)
                c.sources = gr.HTML(elem_id="live-sources", apply_default_css=False)
            _composer(c, t)
    c.starting = [c.welcome, c.arm, c.other, c.armnote, *c.examples]
    c.conversation = [
        c.talk, c.again, c.rail, c.welcome, c.earlier, c.answers, c.sources, c.notice, c.question, c.ask, c.stop,
        c.counter, c.saved, *c.examples,
    ]  # fmt: skip
    return c


def _toolbar(c: SimpleNamespace, t: Words) -> None:
    with gr.Column(elem_id="toolbar"):
        with gr.Row(elem_id="controls"):
            c.arm = gr.Dropdown(
                [("auto", "auto")], value="auto", label=t("answer-with"), elem_id="arm", filterable=False
            )
            c.other = gr.Dropdown(
                [(t("nothing"), "")], value="", label=t("compare-with"), elem_id="compare", filterable=False
            )
        c.armnote = gr.HTML(elem_id="armnote", apply_default_css=False)


def _composer(c: SimpleNamespace, t: Words) -> None:
    with gr.Column(elem_id="composer"):
        c.notice = gr.HTML(elem_id="notice", apply_default_css=False)
        c.saved = gr.HTML(elem_id="saved", apply_default_css=False)
        with gr.Row(elem_id="ask-row"):
            c.question = gr.Textbox(
                placeholder=t("question-placeholder"), label=t("question"), show_label=False, container=False, lines=1,
                max_lines=6, scale=1, autofocus=True, elem_id="question",
            )  # fmt: skip
            c.ask = gr.Button(t("ask"), variant="primary", scale=0, min_width=88, elem_id="ask")
            c.stop = gr.Button(t("stop"), variant="stop", scale=0, min_width=88, elem_id="stop", visible=False)
        c.counter = gr.HTML(elem_id="counter", apply_default_css=False)


def start(desk: Desk, c: SimpleNamespace, t: Words) -> dict[Any, Any]:
    """The parts of the chat that depend on what is indexed and which adapters there are."""
    arms, auto = desk.service.arms(t), desk.service.auto(t)
    names = [(a.label if a.available else t("not-available", arm=a.label), a.arm) for a in arms]
    questions = desk.service.examples(EXAMPLES)
    buttons = {
        button: gr.Button(questions[i] if i < len(questions) else "", visible=i < len(questions))
        for i, button in enumerate(c.examples)
    }
    return {
        c.welcome: frame.welcome(*desk.service.library.counts(), t),
        c.arm: gr.Dropdown([(auto.label, "auto"), *names]),
        c.other: gr.Dropdown([(t("nothing"), ""), *names]),
        c.armnote: frame.arm_note(auto, [a for a in arms if not a.available], t),
        **buttons,
    }


def counter(desk: Desk, user: str, t: Words) -> str:
    """The line that says what the votes can do."""
    counts = desk.talks.feedback.counts(user=user)
    return frame.counter(counts, t)


def show(desk: Desk, c: SimpleNamespace, t: Words, talk: str, user: str) -> dict[Any, Any]:
    """A stored conversation as it stands; "" is a new one."""
    views = desk.talks.exchanges(talk, user)
    votes = desk.talks.votes(talk, user)
    running = bool(views) and views[-1].running
    update = {
        c.talk: talk, c.again: False, c.rail: frame.rail(desk.talks.rows(user), talk, t), c.notice: "", c.saved: "",
        c.earlier: render.conversation(views[:-1], t, votes=votes),
        c.answers: render.answers(views[-1], t, votes=votes) if views else "",
        c.sources: render.sources(views[-1], t) if views else "",
        c.ask: gr.Button(visible=not running), c.stop: gr.Button(visible=running), c.counter: counter(desk, user, t),
    }  # fmt: skip
    if views:
        return {**update, c.welcome: "", **{button: gr.Button(visible=False) for button in c.examples}}
    fresh = start(desk, c, t)
    return {**update, c.welcome: fresh[c.welcome], **{button: fresh[button] for button in c.examples}}


def opened(desk: Desk, c: SimpleNamespace, t: Words, talk: str, user: str) -> dict[Any, Any]:
    """The conversation this browser had open last, or a new one when that is gone."""
    return show(desk, c, t, talk if desk.talks.exists(talk, user) else "", user)


def follow(desk: Desk, c: SimpleNamespace, t: Words, run: Run | None, user: str, page: str) -> Iterator[dict[Any, Any]]:
    """A question being answered, at the pace of the page, and those that other pages ask after it; whoever leaves does
    not stop it."""
    while run is not None:
        yield from _one(desk, c, t, run, user, page)
        if run.superseded_by in (None, page):  # what this page has asked next, this page follows already
            return
        talk, run = run.talk, desk.talks.newer(run, user)
        yield show(desk, c, t, talk, user)


def _one(desk: Desk, c: SimpleNamespace, t: Words, run: Run, user: str, page: str) -> Iterator[dict[Any, Any]]:
    """One question being answered, until it ends or its page goes on to another."""
    shown = None
    for view in run.watch():
        if run.superseded_by == page:
            return
        update: dict[Any, Any] = {}
        votes = desk.talks.votes(run.talk, user) if not view.running else {}
        update[c.answers] = render.answers(view, t, votes=votes)
        sources = render.sources(view, t)
        if sources != shown:  # cards that a person has opened stay open while the answer grows
            update[c.sources] = shown = sources
        if not view.running:
            update |= {c.ask: gr.Button(visible=True), c.stop: gr.Button(visible=False)}
            update[c.rail] = frame.rail(desk.talks.rows(user), run.talk, t)
            update[c.notice] = frame.notice(run.error, t)
        yield update


def wire(desk: Desk, page: gr.Blocks, c: SimpleNamespace, bus: gr.HTML, t: Words) -> None:
    """What the tab does."""
    pages = Pages()

    def watch(run: Run | None, talk: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        page = _page(request)
        updates = follow(desk, c, t, run, desk.user(request), page)
        return pages.while_shown(page, talk, updates, {c.again: gr.skip()})

    def begin(
        question: str, arm: str, other: str, talk: str, again: bool, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        user = desk.user(request)
        if not again and pages.twice(_page(request), question):
            yield {c.again: gr.skip()}
            return
        talk = talk if desk.talks.exists(talk, user) else ""
        try:
            run = desk.talks.ask(
                question, [arm, other] if other else [arm], talk=talk, user=user, again=again and bool(talk),
                page=_page(request),
            )  # fmt: skip
        except RagtuneError as error:
            yield {c.notice: frame.notice(str(error), t)}
            return
        pages.turn(_page(request), run.talk)
        views = desk.talks.exchanges(run.talk, user)
        yield {
            **{button: gr.Button(visible=False) for button in c.examples}, c.welcome: "", c.notice: "", c.saved: "",
            c.question: "", c.talk: run.talk, c.again: False, c.ask: gr.Button(visible=False),
            c.stop: gr.Button(visible=True), c.rail: frame.rail(desk.talks.rows(user), run.talk, t),
            c.earlier: render.conversation(views[: run.position], t, votes=desk.talks.votes(run.talk, user)),
        }  # fmt: skip
        yield from watch(run, run.talk, request)

    def retry(arm: str, other: str, talk: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        views = desk.talks.exchanges(talk, desk.user(request)) if talk else ()
        yield {c.again: gr.skip()}
        if views:
            yield from begin(views[-1].question, arm, other, talk, True, request)

    def resume(talk: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        user = desk.user(request)
        pages.turn(_page(request), talk)
        yield from watch(desk.talks.running(talk, user), talk, request)

    def edit(talk: str, request: gr.Request) -> dict[Any, Any]:
        views = desk.talks.exchanges(talk, desk.user(request)) if talk else ()
        if not views:
            return {c.notice: ""}
        said = f'<p class="rt-note" role="status">{escape(t("editing"))}</p>'
        return {c.question: gr.Textbox(value=views[-1].question, autofocus=True), c.again: True, c.notice: said}

    def stop(talk: str, request: gr.Request) -> None:
        if talk:
            desk.talks.stop(talk, desk.user(request))

    asking: dict[str, Any] = {  # "multiple": "once" would swallow the next question as long as an answer is followed
        "fn": begin, "inputs": [c.question, c.arm, c.other, c.talk, c.again], "outputs": c.conversation,
        "concurrency_limit": 32, "concurrency_id": "ask", "trigger_mode": "multiple", **QUIET,
    }  # fmt: skip
    c.ask.click(**asking)
    c.question.submit(**asking)
    for button in c.examples:
        button.click(lambda text: text, button, c.question, **QUIET).then(**asking)
    watching = {"outputs": c.conversation, "concurrency_limit": 32, "concurrency_id": "ask", **QUIET}
    bus.retry(retry, [c.arm, c.other, c.talk], **watching)
    c.resume = {"fn": resume, "inputs": c.talk, **watching}
    bus.undo(edit, c.talk, [c.question, c.again, c.notice], **QUIET)
    c.stop.click(stop, c.talk, queue=False, **QUIET)
    _wire_list(desk, c, bus, t, pages)
    _wire_votes(desk, c, bus, t)


def _wire_list(desk: Desk, c: SimpleNamespace, bus: gr.HTML, t: Words, pages: Pages) -> None:
    """Open, rename, export, delete; a new one."""

    def choose(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        pages.turn(_page(request), _text(event, "talk"))
        return opened(desk, c, t, _text(event, "talk"), desk.user(request))

    def new(request: gr.Request) -> dict[Any, Any]:
        pages.turn(_page(request), "")
        return {**show(desk, c, t, "", desk.user(request)), c.question: ""}

    def rename(talk: str, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        user = desk.user(request)
        try:
            desk.store.rename(_text(event, "talk"), _text(event, "title"), user)
        except RagtuneError as error:
            return {c.notice: frame.notice(str(error), t)}
        return {c.rail: frame.rail(desk.talks.rows(user), talk, t), c.notice: ""}

    def delete(talk: str, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        user, gone = desk.user(request), _text(event, "talk")
        try:
            desk.talks.delete(gone, user)
        except RagtuneError as error:
            return {c.notice: frame.notice(str(error), t)}
        if gone == talk:
            pages.turn(_page(request), "")
            return show(desk, c, t, "", user)
        return {c.rail: frame.rail(desk.talks.rows(user), talk, t)}

    def export(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        user, talk, markdown = desk.user(request), _text(event, "talk"), _text(event, "form") == "markdown"
        try:
            make = desk.store.export_markdown if markdown else desk.store.export_json
            return {c.saved: download(f"conversation.{'md' if markdown else 'json'}", make(talk, user))}
        except RagtuneError as error:
            return {c.notice: frame.notice(str(error), t)}

    bus.select(choose, None, c.conversation, **QUIET).then(**c.resume)
    bus.clear(new, None, c.conversation, **QUIET)
    bus.edit(rename, c.talk, [c.rail, c.notice], **QUIET)
    bus.delete(delete, c.talk, c.conversation, **QUIET)
    bus.download(export, None, [c.saved, c.notice], **QUIET)


def _wire_votes(desk: Desk, c: SimpleNamespace, bus: gr.HTML, t: Words) -> None:
    """Thumbs, corrections, and which of two is better."""

    def after(talk: str, user: str, problem: str = "") -> dict[Any, Any]:
        views, votes = desk.talks.exchanges(talk, user), desk.talks.votes(talk, user)
        return {
            c.earlier: render.conversation(views[:-1], t, votes=votes),
            c.answers: render.answers(views[-1], t, votes=votes) if views else "",
            c.counter: counter(desk, user, t), c.notice: frame.notice(problem, t),
        }  # fmt: skip

    def vote(talk: str, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        user, problem = desk.user(request), ""
        try:
            desk.talks.vote(
                talk, _text(event, "turn"), _text(event, "arm"), _text(event, "vote") == "up",
                reasons=_texts(event, "reasons"), correction=_text(event, "correction"), user=user,
            )  # fmt: skip
        except RagtuneError as error:
            problem = str(error)
        return after(talk, user, problem)

    def prefer(talk: str, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        user, problem = desk.user(request), ""
        try:
            desk.talks.prefer(talk, _text(event, "turn"), _text(event, "arm"), user)
        except RagtuneError as error:
            problem = str(error)
        return after(talk, user, problem)

    outputs = [c.earlier, c.answers, c.counter, c.notice]
    bus.like(vote, c.talk, outputs, **QUIET)
    bus.submit(prefer, c.talk, outputs, **QUIET)


def _page(request: gr.Request) -> str:
    """Which page of which browser asks; a new one for each load."""
    return request.session_hash or ""


def download(name: str, text: str) -> str:
    """A link that saves a text; the page clicks it by itself once."""
    kind = "application/json" if name.endswith(("json", "jsonl")) else "text/markdown"
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return (
        f'<p class="rt-aside"><a class="rt-download rt-autosave" download="{escape(name)}" '
        f'data-made="{uuid.uuid4().hex}" '
        f'href="data:{kind};base64,{data}">{escape(name)}</a></p>'
    )


def _text(event: gr.EventData, name: str) -> str:
    """A field of what the browser sent, as text; "" where it is missing."""
    data = event._data if isinstance(event._data, dict) else {}
    value = data.get(name, "")
    return value if isinstance(value, str) else ""


def _texts(event: gr.EventData, name: str) -> list[str]:
    data = event._data if isinstance(event._data, dict) else {}
    value = data.get(name, [])
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in found):
        raise UsageError("The reasons of a vote are words.")
    return [v for v in found if v]


field = _text
