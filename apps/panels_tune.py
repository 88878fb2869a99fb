"""The Tune tab as HTML: rows as the model will see them, forecast, the job with its curve and log, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from apps.console import duration
from apps.markup import escape, sentence
from apps.panels import table
from apps.processes import Job, Point
from apps.strings import ENGLISH, Words
from apps.workshop import AdapterRow, Forecast, Preview

_WIDTH, _HEIGHT, _PAD = 560, 150, 34
_METRICS = ("f1", "em", "match", "abstained", "citation_recall")
_POINTS = 300


def preview(found: Preview | None, t: Words = ENGLISH) -> str:
    """Some rows as the model will see them: the prompt with its passages, and the words it learns to say."""
    if found is None:
        return f'<p class="rt-empty">{t.html("preview-empty")}</p>'
    shares = ", ".join(t("share-" + key, share=f"{value:.0%}") for key, value in found.shares.items())
    key = "preview-note" if shares else "preview-ratings"
    head = t(key, questions=found.questions, rows=len(found.rows), shares=shares)
    cards = []
    for row in found.rows:
        messages = "".join(
            f'<p class="rt-role">{escape(t("role-" + m["role"]))}</p><pre class="rt-prompt" '
            f'dir="auto">{escape(m["content"])}</pre>'
            for m in row.prompt
        )
        cards.append(
            f'<details class="rt-card"><summary><span class="rt-num">{escape(t("kind-" + row.kind))}</span>'
            f'<span class="rt-where"><span dir="auto">{escape(row.question)}</span><span class="rt-snippet" '
            'dir="auto">→ '
            f"{escape(row.completion)}</span></span></summary>{messages}"
            f'<p class="rt-role">{t.html("role-completion")}</p><pre class="rt-prompt rt-learned" dir="auto">'
            f'{escape(row.completion)}</pre><p class="rt-aside">{escape(t("row-tokens", n=row.tokens))}</p></details>'
        )
    return f'<p class="rt-aside">{escape(head)}</p>{"".join(cards)}'


def forecast(found: Forecast | None, t: Words = ENGLISH) -> str:
    """How long, how much memory: measured on a few rows, and said to be so."""
    if found is None:
        return ""
    facts = [
        (t("forecast-rows"), f"{found.rows:,}"),
        (t("forecast-tokens"), f"{found.tokens:,}"),
        (t("forecast-time"), duration(found.seconds)),
        (t("forecast-memory"), f"{found.memory_bytes / 2**30:.1f} GB"),
        (t("forecast-free"), f"{found.free_bytes / 2**30:.1f} GB"),
    ]
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    tight = found.memory_bytes > found.free_bytes
    warning = f'<p class="rt-note rt-warn" role="alert">{t.html("forecast-tight")}</p>' if tight else ""
    return f'<dl class="rt-figures">{items}</dl>{warning}<p class="rt-aside">{t.html("forecast-note")}</p>'


def command(line: str, t: Words = ENGLISH) -> str:
    """What will run, to be pasted into a terminal."""
    return (
        f'<div class="rt-command"><p class="rt-aside">{t.html("command")}</p><pre tabindex="0">'
        f"<code>{escape(line)}</code></pre>"
        f'<button type="button" class="rt-act rt-copy">{t.html("copy")}</button></div>'
    )


def job(found: Job | None, series: Sequence[Point], log: str, t: Words = ENGLISH, *, bus: str = "tune") -> str:
    """One job: what it does, how far, how fast, its curve and the end of its log; cancel, resume or remove it."""
    if found is None:
        return ""
    share = found.done / found.total if found.total else 0.0
    key = f'data-bus="{bus}" data-job="{escape(found.id)}"'
    acts = []
    if not found.over:
        label = t("cancelling" if found.cancelling else "cancel")
        state = " disabled" if found.cancelling and not found.stuck else ""
        acts.append(
            f'<button type="button" class="rt-act rt-danger" {key} data-event="stop"{state}>{escape(label)}</button>'
        )
    if found.can_resume:
        acts.append(f'<button type="button" class="rt-act" {key} data-event="play">{t.html("resume")}</button>')
    if found.over:
        acts.append(f'<button type="button" class="rt-act" {key} data-event="clear">{t.html("remove")}</button>')
    state = t("state-stuck") if found.stuck else t("state-" + found.state)
    facts = [state]
    if found.state == "queued" and found.ahead:
        facts.append(t("ahead", n=found.ahead))
    if found.stage and not found.over:
        facts.append(found.stage + (f" {found.done:,}/{found.total:,}" if found.total else ""))
    if found.detail and not found.over:
        facts.append(found.detail)
    if found.started:
        facts.append(duration(found.seconds))
    left = _left(found)
    if left is not None:
        facts.append(t("time-left", time=duration(left)))
    message = (
        f'<p class="rt-note{" rt-bad" if found.state in ("failed", "dead") else ""}">{sentence(found.message)}</p>'
        if found.message
        else ""
    )
    bar = f'<span class="rt-meter rt-jobbar"><i style="width:{share:.0%}"></i></span>' if not found.over else ""
    opened = " open" if found.state in ("failed", "dead") else ""
    tail = (
        f'<details class="rt-log" data-keep="log-{escape(found.id)}"{opened}><summary>{t.html("log")}</summary>'
        f'<pre tabindex="0">{escape(log)}</pre></details>'
        if log
        else ""
    )
    return (
        f'<section class="rt-job rt-{found.state}" data-state="{found.state}" role="status"><p class="rt-jobline">'
        f"<b>{escape(t.job(found.kind))}</b><span>{escape(' · '.join(facts))}</span></p>{bar}{message}"
        f'{curve(series, t)}<div class="rt-acts">{"".join(acts)}</div>'
        f'<details class="rt-log" data-keep="command-{escape(found.id)}"><summary>{t.html("command")}</summary>'
        f'<pre tabindex="0">{escape(found.command)}</pre></details>'
        f"{tail}</section>"
    )


def _left(found: Job) -> float | None:
    """Seconds left if the present stage goes on as it did; None where that cannot be told."""
    if found.over or not found.total or not found.done or found.done >= found.total or not found.started:
        return None
    return found.seconds / found.done * (found.total - found.done)


def curve(series: Sequence[Point], t: Words = ENGLISH) -> str:
    """Loss over steps as a line, with the last loss and speed in words."""
    if len(series) < 2:
        return ""
    points = series[:: max(1, len(series) // _POINTS)]
    low, high = min(p.loss for p in points), max(p.loss for p in points)
    first, last = points[0].step, points[-1].step

    def x(step: int) -> float:
        return _PAD + (step - first) / max(1, last - first) * (_WIDTH - _PAD - 8)

    def y(loss: float) -> float:
        return 8 + (high - loss) / max(1e-9, high - low) * (_HEIGHT - 8 - 22)

    line = " ".join(f"{x(p.step):.1f},{y(p.loss):.1f}" for p in points)
    now = series[-1]
    said = t(
        "curve",
        first=f"{series[0].loss:.2f}",
        last=f"{now.loss:.2f}",
        steps=len(series),
        speed=f"{now.tokens_per_second:.0f}",
    )
    marks = "".join(
        f'<text x="{_PAD - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>' for v in (low, high)
    ) + "".join(
        f'<text x="{x(s):.1f}" y="{_HEIGHT - 4}" text-anchor="{a}">{s}</text>'
        for s, a in ((first, "start"), (last, "end"))
    )
    return (
        f'<figure class="rt-curve"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}">'
        f'<polyline points="{line}"/>{marks}</svg><figcaption>{escape(said)}</figcaption></figure>'
    )


def jobs(found: Sequence[Job], current: str, t: Words = ENGLISH, *, bus: str = "tune") -> str:
    """The jobs there were, to look at again."""
    if not found:
        return f'<p class="rt-empty">{t.html("no-jobs")}</p>'
    items = "".join(
        f'<li><button type="button" class="rt-talk-open{" rt-current" if j.id == current else ""}" data-bus="{bus}" '
        f'data-event="select" data-job="{escape(j.id)}"{" aria-current=true" if j.id == current else ""}>'
        f"<span>{escape(t.job(j.kind))} · {escape(t('state-' + j.state))}</span><span "
        f'class="rt-sub">{_when(j.created)}</span>'
        "</button></li>"
        for j in found[:20]
    )
    return f'<ul class="rt-talks rt-jobs">{items}</ul>'


def _when(created: float) -> str:
    """The day and minute of an order, in the time of the server."""
    return datetime.fromtimestamp(created).strftime("%Y-%m-%d %H:%M") if created else "–"


def before_after(result: Mapping[str, Any] | None, t: Words = ENGLISH) -> str:
    """What the adapter changed on held-out questions, each figure with its 95 % interval."""
    if not result:
        return ""
    before, after = result.get("before"), result.get("after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return f'<p class="rt-aside">{t.html("no-test")}</p>'
    rows = []
    for name in _METRICS:
        was, now = before.get(name), after.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            cells = "".join(
                f'<td class="rt-n" data-label="{escape(t(key))}">{_with_interval(value)}</td>'
                for key, value in (("before", was), ("after", now))
            )
            change = float(now.get("mean") or 0) - float(was.get("mean") or 0)
            rows.append(
                f'<tr><td data-label="{t.html("metric")}">{escape(t("metric-" + name))}</td>{cells}'
                f'<td class="rt-n" data-label="{t.html("change")}">{change:+.3f}</td></tr>'
            )
    heads = ("metric", "before", "after", "change")
    n = after.get("n")
    note = t("before-after-note", n=int(n)) if isinstance(n, (int, float)) else t("before-after-none")
    return f'<h3>{t.html("before-after")}</h3>{table(heads, "".join(rows), t)}<p class="rt-aside">{escape(note)}</p>'


def _with_interval(value: Mapping[str, Any]) -> str:
    mean, low, high = (value.get(k) for k in ("mean", "low", "high"))
    if not all(isinstance(v, (int, float)) for v in (mean, low, high)):
        return "–"
    return f'{mean:.3f}<span class="rt-sub">{low:.3f} – {high:.3f}</span>'


def adapters(rows: Sequence[AdapterRow], t: Words = ENGLISH) -> str:
    """The adapters there are, each with the button that serves it or gives the place back."""
    if not rows:
        return f'<p class="rt-empty">{t.html("no-adapters")}</p>'
    return f'<ul class="rt-adapters">{"".join(_adapter(row, t) for row in rows)}</ul>'


def _adapter(row: AdapterRow, t: Words) -> str:
    key = f'data-bus="tune" data-adapter="{escape(row.folder)}" data-arm="{escape(row.arm)}"'
    facts = [f"{row.recipe} → {row.arm}"]
    facts += [f"{row.rows:,} " + t("rows-word")] if row.rows else []
    facts += [f"F1 {row.before:.2f} → {row.after:.2f}"] if row.before is not None and row.after is not None else []
    if row.fits:
        label, event = (t("stop-using"), "undo") if row.served else (t("use-adapter"), "apply")
        button = f'<button type="button" class="rt-act" {key} data-event="{event}">{escape(label)}</button>'
    else:
        button = f'<span class="rt-sub">{t.html("other-base")}</span>'
    mark = f'<span class="rt-verdict rt-indexed">{t.html("in-use")}</span>' if row.served else ""
    return (
        f'<li class="rt-up"><bdi class="rt-file" title="{escape(row.folder)}">{escape(row.name)}</bdi>'
        f"<span>{mark}{button}</span>"
        f'<span class="rt-sub">{escape(" · ".join(facts))}</span></li>'
    )
