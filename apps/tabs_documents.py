"""The Documents tab: uploads, the table, deleting, and trying a search. HTML comes from `panels`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import frame, panels, tabs_chat
from apps.desk import Desk
from apps.strings import Words
from apps.tabs_chat import QUIET, field
from apps.views import Upload
from apps.watching import Watched
from rag.errors import RagtuneError

SHOW_SECONDS = 0.25
"""Between two states of an upload: at 200 files a table is large."""


def title(text: str) -> None:
    """The heading of a part of a tab."""
    from apps.markup import escape

    gr.HTML(f"<h3>{escape(text)}</h3>", elem_classes="rt-title", apply_default_css=False)


def aside(html: str) -> None:
    """A line of explanation."""
    gr.HTML(f'<p class="rt-aside">{html}</p>', apply_default_css=False)


def build(desk: Desk, t: Words) -> SimpleNamespace:
    """The components of the tab."""
    d = SimpleNamespace()
    with gr.Row(elem_id="shelf"):
        with gr.Column(scale=3, min_width=320):
            title(t("documents-head"))
            d.filter = gr.Textbox(
                placeholder=t("filter"), label=t("filter"), show_label=False, container=False, elem_id="filter"
            )
            d.table = gr.HTML(elem_id="table", apply_default_css=False)
        with gr.Column(scale=2, min_width=320):
            title(t("add-head"))
            d.file = gr.File(
                file_count="multiple", label=t("drop-here"), show_label=False, elem_id="upload", height=150
            )
            gr.HTML(panels.upload_hint(desk.service.library.limits, t), apply_default_css=False)
            d.verdicts = gr.HTML(elem_id="verdicts", apply_default_css=False)
            _deleting(d, t)
    with gr.Column(elem_id="try"):
        title(t("try-head"))
        with gr.Row(elem_id="try-row"):
            d.query = gr.Textbox(
                placeholder=t("try-placeholder"), label=t("search"), show_label=False, container=False,
                elem_id="query", scale=1,
            )  # fmt: skip
            d.search = gr.Button(t("search"), scale=0, min_width=100, elem_id="search")
        d.found = gr.HTML(panels.search("", (), t), elem_id="found", apply_default_css=False)
    d.shown = [d.table, d.chosen]
    return d


def _deleting(d: SimpleNamespace, t: Words) -> None:
    title(t("delete-head"))
    aside(t.html("delete-hint"))
    d.chosen = gr.Dropdown(
        [], multiselect=True, label=t("delete-choice"), show_label=False, container=False, elem_id="delete-choice"
    )
    d.delete = gr.Button(t("delete"), size="sm", elem_id="delete")
    with gr.Row(visible=False, elem_id="confirm") as d.confirm:
        d.sure = gr.Button(t("delete-sure"), variant="stop", size="sm", elem_id="delete-sure")
        d.keep = gr.Button(t("keep"), size="sm", elem_id="delete-keep")
    d.said = gr.HTML(elem_id="deleted", apply_default_css=False)


def state(desk: Desk, d: SimpleNamespace, t: Words, containing: str = "") -> dict[Any, Any]:
    """The table and the choice of what to delete, as the index is now."""
    library = desk.service.library
    rows = library.documents()
    found = library.documents(containing) if containing.strip() else rows
    table = panels.documents(found, t, total=len(rows), filtered=bool(containing.strip()))
    return {d.table: table, d.chosen: gr.Dropdown([row.source for row in rows], value=[])}


def wire(
    desk: Desk,
    tab: gr.Tab,
    d: SimpleNamespace,
    c: SimpleNamespace,
    head: gr.HTML,
    bus: gr.HTML,
    t: Words,
    head_of: Callable[[], str],
) -> None:
    """What the tab does; a change shows in the head and in the chat's picker, too."""
    changed = [head, *d.shown, c.arm, c.other, c.armnote]

    def after_change(containing: str) -> dict[Any, Any]:
        begin = {k: v for k, v in tabs_chat.start(desk, c, t).items() if k in (c.arm, c.other, c.armnote)}
        return {head: head_of(), **state(desk, d, t, containing), **begin}

    def watch(work: Watched[tuple[Upload, ...]], containing: str) -> Iterator[dict[Any, Any]]:
        shown = 0.0
        for items in work.watch():
            if work.over or time.monotonic() - shown >= SHOW_SECONDS:
                shown = time.monotonic()
                yield {d.verdicts: panels.uploads(items, t)}
        yield {d.verdicts: panels.uploads(work.state, t), d.file: None, **after_change(containing)}

    def upload(files: Sequence[str] | None, containing: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        paths = [Path(f) for f in files or ()]
        yield from watch(desk.upload([(path, path.name) for path in paths], desk.user(request)), containing)

    def resume(containing: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        work = desk.uploading(desk.user(request))
        yield {d.verdicts: gr.skip()}  # a generator that yields nothing would empty all of its outputs
        if work is not None and not work.over:
            yield from watch(work, containing)

    def confirm(sources: list[str]) -> dict[Any, Any]:
        if not sources:
            return {d.said: frame.notice(t("delete-nothing"), t), d.confirm: gr.Row(visible=False)}
        return {d.said: panels.about_to_delete(sources, t), d.confirm: gr.Row(visible=True)}

    def confirm_one(event: gr.EventData) -> dict[Any, Any]:
        source = field(event, "source")
        return {d.chosen: gr.Dropdown(value=[source]), **confirm([source])}

    def delete(sources: list[str], containing: str) -> dict[Any, Any]:
        try:
            said = panels.said(desk.delete(sources), t)
        except RagtuneError as error:
            said = frame.notice(str(error), t)
        return {d.said: said, d.confirm: gr.Row(visible=False), **after_change(containing)}

    def reindex(containing: str, event: gr.EventData) -> dict[Any, Any]:
        try:
            item = desk.service.library.reindex(field(event, "source"))
        except RagtuneError as error:
            return {d.verdicts: frame.notice(str(error), t)}
        return {d.verdicts: panels.uploads([item], t), **after_change(containing)}

    def search(query: str) -> str:
        try:
            return panels.search(query, desk.service.library.search(query), t)
        except RagtuneError as error:
            return frame.notice(str(error), t)

    watching = {"outputs": [d.file, d.verdicts, *changed], "concurrency_limit": 8, "concurrency_id": "shelf", **QUIET}
    d.file.upload(upload, [d.file, d.filter], **watching)
    d.resume = {"fn": resume, "inputs": d.filter, **watching}
    bus.retry(reindex, d.filter, [d.verdicts, *changed], concurrency_limit=1, **QUIET)
    bus.delete(confirm_one, None, [d.chosen, d.said, d.confirm], **QUIET)
    d.delete.click(confirm, d.chosen, [d.said, d.confirm], **QUIET)
    d.keep.click(lambda: {d.said: "", d.confirm: gr.Row(visible=False)}, outputs=[d.said, d.confirm], **QUIET)
    d.sure.click(delete, [d.chosen, d.filter], [d.said, d.confirm, *changed], concurrency_limit=1, **QUIET)
    gr.on([d.search.click, d.query.submit], search, d.query, d.found, concurrency_limit=4, **QUIET)
    d.filter.change(lambda text: state(desk, d, t, text), d.filter, d.shown, trigger_mode="always_last", **QUIET)
    tab.select(after_change, d.filter, changed, **QUIET)
