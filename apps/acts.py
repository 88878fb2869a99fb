"""What stands around an answer: its steps, the way it was routed, and what a person can do with it. Pure HTML.

A button or form with `data-bus` and `data-event` reaches Python as that event of that bus, with its other `data-`
attributes and fields (assets/page.js); nothing here is a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps import chips as drawn
from apps.feedback import REASONS
from apps.markup import escape
from apps.strings import ENGLISH, Words
from apps.views import Exchange, Reply, Voted
from rag.types import Step

Votes = Mapping[tuple[str, str], Voted]
"""(exchange id, arm) → what was voted."""

_SHOWN_DATA = 600
_THUMB = "M6 20V9l4-7 1.6.8c.5.3.8.8.7 1.4L11.6 8H18a2 2 0 0 1 2 2.4l-1.5 7.8A2 2 0 0 1 16.6 20z M2 10h3v10H2z"


def _thumb(turned: str = "") -> str:
    """A thumb as a drawing: fonts with such a character are not everywhere."""
    return f'<svg class="rt-icon{turned}" viewBox="0 0 22 22" aria-hidden="true"><path d="{_THUMB}"></path></svg>'


def steps(found: Sequence[Step], t: Words = ENGLISH, *, is_open: bool = False) -> str:
    """The steps of a run as lines that unfold, each with its time; "" where the arm takes none."""
    if not found:
        return ""
    total = sum(step.seconds for step in found)
    lines = "".join(_step(step, t) for step in found)
    head = t("steps", n=len(found)) + (f" · {t('seconds', s=f'{total:.1f}')}" if total >= 0.05 else "")
    state = " open" if is_open else ""
    return f'<details class="rt-steps"{state}><summary>{escape(head)}</summary><ol>{lines}</ol></details>'


def _step(step: Step, t: Words) -> str:
    time = f'<span class="rt-time">{escape(t("seconds", s=f"{step.seconds:.1f}"))}</span>' if step.seconds else ""
    kind, said = escape(t.step(step.kind)), escape(step.text)
    line = f'<span class="rt-kind">{kind}</span><span class="rt-said">{said}</span>{time}'
    if not step.data:
        return f"<li>{line}</li>"
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd>" for key, value in list(step.data.items())[:20]
    )
    return f"<li><details><summary>{line}</summary><dl>{rows}</dl></details></li>"


def _plain(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _SHOWN_DATA else text[:_SHOWN_DATA] + "…"


def route(details: Mapping[str, Any], t: Words = ENGLISH) -> str:
    """Why this arm answered, where a router chose it: `details["route"]` is a sentence, or holds one as "reason"."""
    found = details.get("route")
    if isinstance(found, Mapping):
        arm, found = str(found.get("arm") or ""), str(found.get("reason") or "")
        found = f"{arm}: {found}" if arm and found else arm or found
    return f'<p class="rt-aside rt-route"><b>{t.html("route")}</b> {escape(str(found))}</p>' if found else ""


def chips(details: Mapping[str, Any], t: Words = ENGLISH) -> str:
    """The judgements of a Self-RAG answer, segment by segment, and what else was tried."""
    words = {name: t(f"chip-{name}") for name in drawn.WORDS}
    return drawn.chips(details, words) + drawn.candidates(details, words)


def actions(view: Exchange, reply: Reply, t: Words = ENGLISH, *, last: bool, vote: Voted | None = None) -> str:
    """Vote, correct, prefer, ask again, edit: what a finished reply offers. Only the last exchange is asked again."""
    if reply.running:
        return ""
    key = f'data-turn="{escape(view.id)}" data-arm="{escape(reply.arm)}"'
    parts = []
    if reply.answer is not None:
        parts.append(_vote(key, t, vote))
    if len(view.replies) > 1 and reply.answer is not None:
        chosen = vote is not None and vote.preferred
        parts.append(_button("prefer", key, t("prefer-done" if chosen else "prefer"), "submit", pressed=chosen))
    if last and reply is view.replies[0]:
        parts += [_button("retry", key, t("retry"), "retry"), _button("edit", key, t("edit-question"), "undo")]
    return f'<div class="rt-acts">{"".join(parts)}</div>' if parts else ""


def _button(name: str, key: str, label: str, event: str, *, pressed: bool | None = None) -> str:
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    return (
        f'<button type="button" class="rt-act rt-act-{name}" data-bus="chat" data-event="{event}" {key}{state}>'
        f"{escape(label)}</button>"
    )


def _vote(key: str, t: Words, vote: Voted | None) -> str:
    """Thumbs, and behind the lower one the reasons and a line for what would have been right."""
    good = t.html("vote-up")
    pressed = str(vote is not None and vote.up is True).lower()
    up = (
        f'<button type="button" class="rt-act rt-act-up" data-bus="chat" data-event="like" data-vote="up" {key} '
        f'aria-pressed="{pressed}" aria-label="{good}" title="{good}">{_thumb()}</button>'
    )
    down = vote is not None and vote.up is False
    reasons = "".join(
        f'<label><input type="checkbox" name="reasons" value="{reason}"'
        f"{' checked' if vote and reason in vote.reasons else ''}>"
        f"<span>{escape(t('reason-' + reason.replace(' ', '-')))}</span></label>"
        for reason in REASONS
    )
    typed = escape(vote.correction) if vote else ""
    return (
        f'{up}<details class="rt-down" data-voted="{str(down).lower()}"><summary class="rt-act rt-act-down" '
        f'aria-label="{t.html("vote-down")}" title="{t.html("vote-down")}">{_thumb(" rt-turned")}</summary>'
        f'<form class="rt-why" data-bus="chat" data-event="like" data-vote="down" {key}><fieldset>'
        f"<legend>{escape(t('vote-why'))}</legend>{reasons}</fieldset>"
        f'<label class="rt-right"><span>{t.html("vote-right")}</span><textarea name="correction" rows="2">{typed}'
        f'</textarea></label><button type="submit" class="rt-act">{t.html("vote-send")}</button></form></details>'
    )
