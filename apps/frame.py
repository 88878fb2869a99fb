"""What stands around the conversation: the head of the page, the list of conversations, the empty states. Pure HTML."""

from __future__ import annotations

import time
from collections.abc import Sequence

from apps.feedback import Counts
from apps.markup import escape, sentence
from apps.serving import shown_name
from apps.strings import ENGLISH, LANGUAGES, Words
from apps.views import ArmChoice, ModelState, TalkRow

_TITLE = 80


def header(
    name: str,
    documents: int,
    chunks: int,
    state: ModelState,
    t: Words = ENGLISH,
    *,
    arm: str = "",
    adapter: str = "",
) -> str:
    """The top line: what is asked (the index) and what answers (model, adapter, arm), with its loading state."""
    model, message = escape(shown_name(state.generator)), sentence(t.of(state.message))
    encoder = escape(t("encoder-named", name=shown_name(state.encoder, "encoder")))
    facts = [f'<span class="rt-strong" title="{encoder}">{model}</span>'] if model else []
    if adapter:
        facts.append(f'<span class="rt-adapter">{escape(t("adapter-named", name=adapter))}</span>')
    if arm:
        facts.append(f'<span class="rt-fact-arm" title="{escape(t.arm(arm))}">{escape(arm)}</span>')
    held = f"<bdi>{escape(name)}</bdi> · {t('documents-n', n=documents)} · {t('chunks-n', n=chunks)}"
    return (
        f'<header class="rt-head"><div class="rt-brand"><b>ragtune</b><span>{held}</span></div>'
        f'<div class="rt-model rt-{state.phase}" role="status"><i></i>{"".join(facts)}<span>{message}</span></div>'
        f"{_languages(t)}</header>"
    )


def _languages(t: Words) -> str:
    """Links to the page in the other languages."""
    others = [(code, label, path) for code, (label, path) in LANGUAGES.items() if code != t.language]
    links = "".join(f'<a class="rt-lang" lang="{c}" hreflang="{c}" href="{p}">{escape(n)}</a>' for c, n, p in others)
    return f'<nav class="rt-langs" aria-label="{t.html("language")}">{links}</nav>'


def rail(rows: Sequence[TalkRow], current: str, t: Words = ENGLISH, *, now: float | None = None) -> str:
    """The list of conversations: open, rename, export, delete; the current one marked."""
    now = time.time() if now is None else now
    head = (
        f'<button type="button" class="rt-act rt-new" data-bus="chat" data-event="clear">{t.html("new-talk")}</button>'
    )
    if not rows:
        empty = f'<p class="rt-aside">{t.html("no-talks")}</p>'
        return f'<nav class="rt-rail" aria-label="{t.html("talks")}">{head}{empty}</nav>'
    items = "".join(_talk(row, row.id == current, now, t) for row in rows)
    count = escape(t("talks-n", n=len(rows)))
    toggle = f'<button type="button" class="rt-act rt-rail-toggle" aria-expanded="false">{count}</button>'
    return (
        f'<nav class="rt-rail" aria-label="{t.html("talks")}"><div class="rt-rail-head">{head}{toggle}</div>'
        f'<ul class="rt-talks">{items}</ul></nav>'
    )


def _talk(row: TalkRow, current: bool, now: float, t: Words) -> str:
    key = f'data-bus="chat" data-talk="{escape(row.id)}"'
    title = row.title.strip() or t("untitled")
    short = title if len(title) <= _TITLE else title[:_TITLE] + "…"
    state = f'<span class="rt-sub">{escape(t("doing-writing") if row.running else ago(now - row.updated, t))}</span>'
    mark = ' aria-current="true"' if current else ""
    return (
        f'<li class="rt-talk{" rt-current" if current else ""}"><button type="button" class="rt-talk-open" {key} '
        f'data-event="select"{mark}><span dir="auto">{escape(short)}</span>{state}</button>'
        f'<details class="rt-menu"><summary aria-label="{escape(t("talk-menu", title=short))}">⋯</summary>'
        f'<form class="rt-rename" {key} data-event="edit"><label><span>{t.html("rename")}</span>'
        f'<input name="title" maxlength="200" value="{escape(title)}"></label>'
        f'<button type="submit" class="rt-act">{t.html("save")}</button></form>'
        f'<div class="rt-menu-row"><button type="button" class="rt-act" {key} data-event="download" '
        'data-form="markdown">'
        f'{t.html("export-markdown")}</button><button type="button" class="rt-act" {key} data-event="download" '
        f'data-form="json">{t.html("export-json")}</button></div>'
        f'<details class="rt-sure"><summary class="rt-act rt-danger">{t.html("delete")}</summary><button type="button" '
        f'class="rt-act rt-danger" {key} data-event="delete">{t.html("delete-talk-sure")}</button></details>'
        "</details></li>"
    )


def ago(seconds: float, t: Words = ENGLISH) -> str:
    """How long ago, in the largest fitting unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return t(f"ago-{unit}", n=int(seconds // size))
    return t("ago-now")


def welcome(documents: int, chunks: int, t: Words = ENGLISH) -> str:
    """What the chat shows before the first question: the next step."""
    if not documents:
        return f'<div class="rt-welcome"><h2>{t.html("welcome-none")}</h2><p>{t.html("welcome-none-next")}</p></div>'
    found = t.html("welcome-next", documents=t("documents-n", n=documents), chunks=t("chunks-n", n=chunks))
    return f'<div class="rt-welcome"><h2>{t.html("welcome")}</h2><p>{found}</p></div>'


def arm_note(chosen: ArmChoice, missing: Sequence[ArmChoice], t: Words = ENGLISH) -> str:
    """The line under the arm picker: why this arm; opened, what it takes to have the others."""
    if not missing:
        return f'<p class="rt-aside">{sentence(chosen.reason)}</p>'
    lacks = "".join(f"<li><b>{escape(c.arm)}</b> {sentence(c.reason)}</li>" for c in missing)
    return f'<details class="rt-armnote"><summary>{sentence(chosen.reason)}</summary><ul>{lacks}</ul></details>'


def notice(text: str, t: Words = ENGLISH, *, good: bool = False) -> str:
    """A sentence above the question box; "" clears it."""
    if not text:
        return ""
    look, role = ("rt-good", "status") if good else ("rt-bad", "alert")
    return f'<p class="rt-note {look}" role="{role}">{sentence(t.of(text))}</p>'


def counter(counts: Counts, t: Words = ENGLISH) -> str:
    """How many votes there are, and what they can do."""
    if not counts.examples:
        return f'<p class="rt-aside rt-counter">{t.html("votes-none")}</p>'
    parts = [
        t(key, n=n)
        for key, n in (("votes-n", counts.ratings), ("pairs-n", counts.choices), ("corrections-n", counts.corrections))
        if n
    ]
    if counts.can_tune:
        what = t("votes-next")
    else:
        what = t("votes-missing", n=counts.missing) if counts.missing else t("votes-one-sided")
    return f'<p class="rt-aside rt-counter"><b>{escape(", ".join(parts))}</b> · {escape(what)}</p>'
