"""The page: four tabs around one `Desk`, in each language at a path of its own. HTML is made elsewhere, work too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from apps import cards, frame, tabs_chat, tabs_decide, tabs_documents, tabs_tune, theme
from apps.desk import Desk
from apps.markup import escape
from apps.render import last_part
from apps.service import Service
from apps.strings import CHINESE, ENGLISH, LANGUAGES, Words
from apps.tabs_chat import QUIET
from apps.views import OpenDocument
from rag.errors import RagtuneError


def build_page(service: Service, desk: Desk | None = None) -> gr.Blocks:
    """The page over `service`; nothing is served yet. Raises StoreError when conversations cannot be stored."""
    desk = desk or Desk(service)
    page = gr.Blocks(
        title=f"{service.library.name} · ragtune", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)
    )
    with page:
        _layout(desk, page, ENGLISH)
    name, path = LANGUAGES[CHINESE.language]
    with page.route(name, path, show_in_navbar=False):
        _layout(desk, page, CHINESE)
    return page


def _layout(desk: Desk, page: gr.Blocks, t: Words) -> None:
    """The whole page in one language."""
    head = gr.HTML(elem_id="head", apply_default_css=False)
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab(t("tab-chat"), id="chat"):
            c = tabs_chat.build(t)
        with gr.Tab(t("tab-documents"), id="documents") as documents_tab:
            d = tabs_documents.build(desk, t)
        with gr.Tab(t("tab-tune"), id="tune") as tune_tab:
            u = tabs_tune.build(t)
        with gr.Tab(t("tab-decide"), id="decide") as decide_tab:
            v = tabs_decide.build(t)
    _window(desk, t)
    buses = SimpleNamespace(**{name: _bus(name) for name in ("chat", "documents", "tune", "decide")})
    loading, watching = gr.Timer(0.5), gr.Timer(1.0, active=False)

    def head_of() -> str:
        return _head(desk, t)

    def status() -> dict[Any, Any]:
        settled = desk.service.state.phase in ("ready", "failed")
        return {head: head_of(), loading: gr.Timer(active=not settled)}

    def everything(talk: str, request: gr.Request) -> dict[Any, Any]:
        user = desk.user(request)
        desk.service.opened.set()
        return {
            **status(), **tabs_chat.start(desk, c, t), **tabs_chat.opened(desk, c, t, talk, user),
            **tabs_documents.state(desk, d, t), **tabs_tune.state(desk, u, t, user), **tabs_decide.state(desk, v, t),
            watching: gr.Timer(active=tabs_tune.live(desk)),
        }  # fmt: skip

    def look(
        tune: str, decide: str, train: str, test: str, decide_train: str, decide_test: str, request: gr.Request
    ) -> dict[Any, Any]:
        """The jobs again, once a second while one lives; when the last has ended, all that it changed."""
        html, told, _, _ = tabs_tune.panel(desk, t, tune)
        alive = tabs_tune.live(desk)
        update = {u.panel: html, u.result: told, **tabs_decide.watching(desk, v, t, decide)}
        if not alive:
            _take_over(desk)
            update |= {
                **tabs_tune.state(desk, u, t, desk.user(request), job=tune, train=train or "", test=test or ""),
                **tabs_decide.state(desk, v, t, job=decide, train=decide_train or "", test=decide_test or ""),
                **after_use(), watching: gr.Timer(active=False),
            }  # fmt: skip
        return update

    def after_use() -> dict[Any, Any]:
        begin = {k: x for k, x in tabs_chat.start(desk, c, t).items() if k in (c.arm, c.other, c.armnote)}
        return {head: head_of(), **begin}

    used = [head, c.arm, c.other, c.armnote]
    tabs_chat.wire(desk, page, c, buses.chat, t)
    tabs_documents.wire(desk, documents_tab, d, c, head, buses.documents, t, head_of)
    tabs_tune.wire(desk, tune_tab, u, buses.tune, watching, t, after_use, used)
    tabs_decide.wire(desk, decide_tab, v, buses.decide, watching, t)
    loading.tick(status, outputs=[head, loading], **QUIET)
    jobs = [*u.shown, *v.shown, watching, *used]
    watching.tick(look, [u.job, v.job, u.train, u.test, v.train, v.test], jobs, **QUIET)
    outputs = [head, loading, watching, *c.starting, *d.shown, *u.shown, *v.shown]
    outputs += [o for o in c.conversation if o not in outputs]
    loaded = page.load(everything, c.talk, outputs, **QUIET)
    loaded.then(**c.resume)
    loaded.then(**d.resume)  # not after the chat's: that one lasts as long as the answer it watches


def _take_over(desk: Desk) -> None:
    """A finished decision serves from now on. One that cannot is told by the commands that read it."""
    try:
        desk.service.reload()
    except RagtuneError:
        return


def _head(desk: Desk, t: Words) -> str:
    service = desk.service
    arm = service.auto(t).arm
    adapter = service.adapters.get(arm, "")
    return frame.header(
        service.library.name, *service.library.counts(), service.state, t, arm=arm,
        adapter=last_part(adapter) if adapter else "",
    )  # fmt: skip


def _bus(name: str) -> gr.HTML:
    """What buttons inside our HTML speak through: the script finds it by its name."""
    return gr.HTML(
        "", elem_id=f"bus-{name}", elem_classes="rt-bus", apply_default_css=False,
        js_on_load=f"(window.ragtuneBus ??= {{}})[{name!r}] = trigger;",
    )  # fmt: skip


def _window(desk: Desk, t: Words) -> None:
    """The document window; its script asks for the text or for the chunks of a document."""

    def open_document(where: dict[str, Any]) -> str:
        try:
            view: OpenDocument = desk.service.library.open(str(where["source"]), int(where["start"]), int(where["end"]))
        except RagtuneError as error:
            return frame.notice(str(error), t)
        return cards.document(view, t)

    def open_chunks(where: dict[str, Any]) -> str:
        try:
            return cards.chunks(*desk.service.library.chunks(str(where["source"])), t)
        except RagtuneError as error:
            return frame.notice(str(error), t)

    words = " ".join(f'data-{key}="{escape(t(key))}"' for key in ("opening", "no-server", "copied"))
    gr.HTML(
        f'<dialog class="rt-window" aria-labelledby="rt-window-title" data-lang="{t.language}" {words}>'
        '<div class="rt-window-head"><bdi class="rt-window-title rt-file" id="rt-window-title"></bdi>'
        f'<button type="button" class="rt-close">{escape(t("close"))}</button></div>'
        '<div class="rt-window-body" tabindex="0"></div></dialog>',
        elem_id="window", js_on_load=theme.script(), server_functions=[open_document, open_chunks],
        apply_default_css=False,
    )  # fmt: skip
