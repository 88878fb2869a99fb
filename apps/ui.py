"""The page: layout and wiring. What it shows is made in `render` and `panels`, what it does is done by `Service`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import cards, panels, render, theme
from apps.service import Service
from apps.views import Exchange, OpenDocument
from rag.errors import RagtuneError

_WINDOW = (
    '<dialog class="rt-window" aria-labelledby="rt-window-title"><div class="rt-window-head">'
    '<bdi class="rt-window-title rt-file" id="rt-window-title"></bdi>'
    '<button type="button" class="rt-close">Close</button></div>'
    '<div class="rt-window-body" tabindex="0"></div></dialog>'
)
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_EXAMPLES = 3


def build_page(service: Service) -> gr.Blocks:
    """The page over `service`; nothing is served yet."""
    with gr.Blocks(
        title=f"{service.library.name} · ragtune", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        head = gr.HTML(elem_id="head", apply_default_css=False)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat"):
                chat = _chat_tab()
            with gr.Tab("Documents", id="documents") as documents_tab:
                shelf = _documents_tab(service)
            with gr.Tab("Decision", id="decision"):
                decision = gr.HTML(elem_id="decision", apply_default_css=False)
        _window(service)
        clock = gr.Timer(0.5)
        _wire_chat(service, page, chat)
        _wire_documents(service, documents_tab, shelf, head, chat)

        def status() -> dict[Any, Any]:
            settled = service.state.phase in ("ready", "failed")
            return {head: _head(service), clock: gr.Timer(active=not settled)}

        def everything() -> dict[Any, Any]:
            return {
                **status(), **_chat_start(service, chat), **_shelf_state(service, shelf),
                decision: panels.decision(service.decision),
            }  # fmt: skip

        clock.tick(status, outputs=[head, clock], **_QUIET)
        outputs = [head, clock, decision, *chat.starting, *shelf.shown]
        page.load(everything, outputs=outputs, **_QUIET)
    return page


def _head(service: Service) -> str:
    return render.header(service.library.name, *service.library.counts(), service.state)


def _window(service: Service) -> None:
    """The document window; its script asks `open_document` for the text."""

    def open_document(where: dict[str, Any]) -> str:
        try:
            view: OpenDocument = service.library.open(str(where["source"]), int(where["start"]), int(where["end"]))
        except RagtuneError as error:
            return render.notice(str(error))
        return cards.document(view)

    gr.HTML(
        _WINDOW, elem_id="window", js_on_load=theme.script(), server_functions=[open_document], apply_default_css=False
    )


# ------------------------------------------------------------------------- chat


def _chat_tab() -> SimpleNamespace:
    c = SimpleNamespace()
    c.past = gr.State(())
    with gr.Column(elem_id="chat"):
        with gr.Column(elem_id="toolbar"):
            with gr.Row(elem_id="controls"):
                c.arm = gr.Dropdown(
                    [("auto", "auto")], value="auto", label="Answer with", elem_id="arm", filterable=False
                )
                c.other = gr.Dropdown(
                    [("nothing", "")], value="", label="Compare with", elem_id="compare", filterable=False
                )
                c.clear = gr.Button("New conversation", size="sm", scale=0, min_width=100, elem_id="clear")
            c.armnote = gr.HTML(elem_id="armnote", apply_default_css=False)
        c.welcome = gr.HTML(elem_id="welcome", apply_default_css=False)
        with gr.Row(elem_id="examples"):
            c.examples = [gr.Button("", size="sm", visible=False) for _ in range(_EXAMPLES)]
        c.earlier = gr.HTML(elem_id="earlier", apply_default_css=False)
        with gr.Row(elem_classes="rt-turn", elem_id="live"):
            c.answers = gr.HTML(elem_id="live-answers", apply_default_css=False)
            c.sources = gr.HTML(elem_id="live-sources", apply_default_css=False)
        with gr.Column(elem_id="composer"):
            c.notice = gr.HTML(elem_id="notice", apply_default_css=False)
            with gr.Row(elem_id="ask-row"):
                c.question = gr.Textbox(
                    placeholder="Ask a question", label="Question", show_label=False, container=False, lines=1,
                    max_lines=6, scale=1, autofocus=True, elem_id="question",
                )  # fmt: skip
                c.ask = gr.Button("Ask", variant="primary", scale=0, min_width=88, elem_id="ask")
                c.stop = gr.Button("Stop", variant="stop", scale=0, min_width=88, elem_id="stop", visible=False)
    c.starting = [c.welcome, c.arm, c.other, c.armnote, *c.examples]
    c.answering = [c.past, c.welcome, c.earlier, c.answers, c.sources, c.notice, c.question, c.ask, c.stop, *c.examples]
    return c


def _chat_start(service: Service, c: SimpleNamespace) -> dict[Any, Any]:
    """The parts of the chat that depend on what is indexed and which adapters there are."""
    arms, auto = service.arms(), service.auto()
    names = [(a.label if a.available else f"{a.label} (not available)", a.arm) for a in arms]
    questions = service.examples(_EXAMPLES)
    buttons = {
        button: gr.Button(questions[i] if i < len(questions) else "", visible=i < len(questions))
        for i, button in enumerate(c.examples)
    }
    return {
        c.welcome: render.welcome(*service.library.counts()),
        c.arm: gr.Dropdown([(auto.label, "auto"), *names]),
        c.other: gr.Dropdown([("nothing", ""), *names]),
        c.armnote: render.arm_note(auto, [a for a in arms if not a.available]),
        **buttons,
    }


def _wire_chat(service: Service, page: gr.Blocks, c: SimpleNamespace) -> None:
    def ask(
        question: str, arm: str, other: str, past: Sequence[Exchange], request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        try:
            arms = [arm, other] if other else [arm]
            views = service.ask(question, arms, past=past, session=request.session_hash or "")
        except RagtuneError as error:
            yield {c.notice: render.notice(str(error))}
            return
        hidden = {button: gr.Button(visible=False) for button in c.examples}
        update: dict[Any, Any] = {
            c.welcome: "", c.earlier: render.conversation(past), c.notice: "", c.question: "",
            c.ask: gr.Button(visible=False), c.stop: gr.Button(visible=True), **hidden,
        }  # fmt: skip
        shown = None
        with closing(views):  # a visitor who leaves stops the model
            for view in views:
                update[c.answers] = render.answers(view)
                sources = render.sources(view)
                if sources != shown:  # cards that a person has opened stay open while the answer grows
                    update[c.sources] = shown = sources
                if not view.running:
                    update |= {c.past: (*past, view), c.ask: gr.Button(visible=True), c.stop: gr.Button(visible=False)}
                yield update
                update = {}

    def stop(request: gr.Request) -> None:
        service.stop(request.session_hash or "")

    def clear(request: gr.Request) -> dict[Any, Any]:
        stop(request)
        start = {k: v for k, v in _chat_start(service, c).items() if k is c.welcome or k in c.examples}
        return {
            **start, c.past: (), c.earlier: "", c.answers: "", c.sources: "", c.notice: "", c.question: "",
            c.ask: gr.Button(visible=True), c.stop: gr.Button(visible=False),
        }  # fmt: skip

    asking: dict[str, Any] = {
        "fn": ask, "inputs": [c.question, c.arm, c.other, c.past], "outputs": c.answering,
        "concurrency_limit": 8, "concurrency_id": "ask", **_QUIET,
    }  # fmt: skip
    run = [c.ask.click(**asking), c.question.submit(**asking)]
    for button in c.examples:
        run.append(button.click(lambda text: text, button, c.question, **_QUIET).then(**asking))
    c.stop.click(stop, queue=False, **_QUIET)
    c.clear.click(clear, outputs=c.answering, cancels=run, **_QUIET)
    page.unload(stop)


# -------------------------------------------------------------------- documents


def _documents_tab(service: Service) -> SimpleNamespace:
    d = SimpleNamespace()
    with gr.Row(elem_id="shelf"):
        with gr.Column(scale=3, min_width=320):
            gr.HTML("<h3>Indexed documents</h3>", elem_classes="rt-title", apply_default_css=False)
            d.filter = gr.Textbox(
                placeholder="Filter by name", label="Filter", show_label=False, container=False, elem_id="filter"
            )
            d.table = gr.HTML(elem_id="table", apply_default_css=False)
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h3>Add</h3>", elem_classes="rt-title", apply_default_css=False)
            d.file = gr.File(
                file_count="multiple", label="Drop files here", show_label=False, elem_id="upload", height=150
            )
            gr.HTML(panels.upload_hint(service.library.limits), apply_default_css=False)
            d.verdicts = gr.HTML(elem_id="verdicts", apply_default_css=False)
            gr.HTML("<h3>Delete</h3>", elem_classes="rt-title", apply_default_css=False)
            gr.HTML('<p class="rt-aside">Choose documents; you are asked before they go.</p>', apply_default_css=False)
            d.chosen = gr.Dropdown(
                [],
                multiselect=True,
                label="Documents to delete",
                show_label=False,
                container=False,
                elem_id="delete-choice",
            )
            d.delete = gr.Button("Delete…", size="sm", elem_id="delete")
            with gr.Row(visible=False, elem_id="confirm") as d.confirm:
                d.sure = gr.Button("Delete from the index", variant="stop", size="sm", elem_id="delete-sure")
                d.keep = gr.Button("Keep", size="sm", elem_id="delete-keep")
            d.said = gr.HTML(elem_id="deleted", apply_default_css=False)
    with gr.Column(elem_id="try"):
        gr.HTML("<h3>Try a search</h3>", elem_classes="rt-title", apply_default_css=False)
        with gr.Row(elem_id="try-row"):
            d.query = gr.Textbox(
                placeholder="Words or a question",
                label="Search",
                show_label=False,
                container=False,
                elem_id="query",
                scale=1,
            )
            d.search = gr.Button("Search", scale=0, min_width=100, elem_id="search")
        d.found = gr.HTML(panels.search("", ()), elem_id="found", apply_default_css=False)
    d.shown = [d.table, d.chosen]
    return d


def _shelf_state(service: Service, d: SimpleNamespace, containing: str = "") -> dict[Any, Any]:
    rows = service.library.documents()
    found = service.library.documents(containing) if containing.strip() else rows
    table = panels.documents(found, total=len(rows), filtered=bool(containing.strip()))
    return {d.table: table, d.chosen: gr.Dropdown([row.source for row in rows], value=[])}


def _wire_documents(service: Service, tab: gr.Tab, d: SimpleNamespace, head: gr.HTML, c: SimpleNamespace) -> None:
    changed = [head, *d.shown, c.arm, c.other, c.armnote]

    def after_change(containing: str) -> dict[Any, Any]:
        start = {k: v for k, v in _chat_start(service, c).items() if k in (c.arm, c.other, c.armnote)}
        return {head: _head(service), **_shelf_state(service, d, containing), **start}

    def upload(files: Sequence[str] | None, containing: str) -> Iterator[dict[Any, Any]]:
        paths = [Path(f) for f in files or ()]
        for items in service.upload([(path, path.name) for path in paths]):
            yield {d.verdicts: panels.uploads(items)}
        for path in paths:  # Gradio's copies could be read by whoever guesses their address
            path.unlink(missing_ok=True)
        yield {d.file: None, **after_change(containing)}

    def delete(sources: list[str], containing: str) -> dict[Any, Any]:
        try:
            said = panels.said(service.library.delete(sources))
        except RagtuneError as error:
            said = render.notice(str(error))
        return {d.said: said, d.confirm: gr.Row(visible=False), **after_change(containing)}

    def confirm(sources: list[str]) -> dict[Any, Any]:
        if not sources:
            return {d.said: render.notice("Choose the documents to delete first."), d.confirm: gr.Row(visible=False)}
        return {d.said: panels.about_to_delete(sources), d.confirm: gr.Row(visible=True)}

    def search(query: str) -> str:
        try:
            return panels.search(query, service.library.search(query))
        except RagtuneError as error:
            return render.notice(str(error))

    d.file.upload(upload, [d.file, d.filter], [d.file, d.verdicts, *changed], concurrency_limit=1, **_QUIET)
    d.delete.click(confirm, d.chosen, [d.said, d.confirm], **_QUIET)
    d.keep.click(lambda: {d.said: "", d.confirm: gr.Row(visible=False)}, outputs=[d.said, d.confirm], **_QUIET)
    d.sure.click(delete, [d.chosen, d.filter], [d.said, d.confirm, *changed], concurrency_limit=1, **_QUIET)
    gr.on([d.search.click, d.query.submit], search, d.query, d.found, concurrency_limit=4, **_QUIET)
    d.filter.change(
        lambda text: _shelf_state(service, d, text), d.filter, d.shown, trigger_mode="always_last", **_QUIET
    )
    tab.select(after_change, d.filter, changed, **_QUIET)
