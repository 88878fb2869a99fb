"""The Decide tab as HTML: the recommendation, the arms with intervals, pairs, plots, and where the arms disagree."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.plots import Mark, interval_plot, scatter_plot
from apps.drill import Disagreement
from apps.markup import escape
from apps.panels import table
from apps.recommend import Recommendation, interval
from apps.strings import ENGLISH, Words
from apps.views import DecisionView
from rag.errors import ConfigError

DECIDE = "ragtune decide INDEX --train train.jsonl --questions test.jsonl --out RUN"
_FIGURES = ("f1", "em", "match", "abstention", "seconds_per_question", "cost")
_SECONDS = frozenset({"seconds_per_question", "cost"})


def decision(view: DecisionView | None, t: Words = ENGLISH) -> str:
    """Which arm was chosen and why, with what to doubt; or what finds out."""
    if view is None:
        return (
            f'<div class="rt-welcome"><h2>{t.html("decide-none")}</h2><p>{t.html("decide-none-next")}</p>'
            f"<pre><code>{DECIDE}</code></pre></div>"
        )
    data = view.data
    chosen = str(data.get("chosen") or "")
    head = t("chosen", arm=chosen) if chosen else t("chosen-none")
    return (
        f'<div class="rt-decision"><p class="rt-aside">{t.html("measured-decision")} · '
        f"<bdi>{escape(view.folder)}</bdi></p>"
        f'<h2>{escape(head)}</h2><p class="rt-lead">{escape(str(data.get("reason") or ""))}</p>'
        f"{_warnings(data, t)}</div>"
    )


def details(view: DecisionView | None, t: Words = ENGLISH) -> str:
    """The figures below the recommendation: every arm, every pair, and the report as it was written."""
    if view is None:
        return ""
    data = view.data
    chosen = str(data.get("chosen") or "")
    return f'<div class="rt-decision">{_arms_table(data, chosen, t)}{_pairs_table(data, t)}{_report(view, t)}</div>'


def _warnings(data: Mapping[str, Any], t: Words) -> str:
    warnings = [f"<li>{escape(str(w))}</li>" for w in data.get("warnings") or ()]
    if not warnings:
        return ""
    head = t("warnings-n", n=len(warnings))
    return f'<details class="rt-note rt-warn"><summary>{escape(head)}</summary><ul>{"".join(warnings)}</ul></details>'


def recommendation(
    view: DecisionView | None, found: Recommendation | None, t: Words = ENGLISH, *, why: str = ""
) -> str:
    """What the sliders say: the arm for these numbers, the bill of each, and quality over cost as a plot."""
    if view is None:
        return ""
    if found is None:
        return f'<p class="rt-empty">{t.html("no-recommendation")} {escape(why)}</p>'
    metric = str((view.data.get("config") or {}).get("primary", "f1")).upper()
    best = found.bill(found.chosen) if found.chosen else None
    head = t("use-arm", arm=found.chosen or "", queries=found.queries) if best else t("chosen-none")
    facts = [t("outcome-" + found.outcome.replace(" ", "-"))]
    if best:
        facts.append(t("use-cost", seconds=_seconds(best.seconds)))
        if found.price_per_hour:
            facts.append(t("use-month", money=f"{best.month:,.2f}"))
    measured = view.data.get("chosen")
    if best and measured and measured != found.chosen:
        facts.append(t("use-differs", arm=str(measured)))
    marks = [
        Mark(b.arm, b.quality, b.seconds, "chosen" if b.arm == found.chosen else "" if b.selectable else "bound")
        for b in found.bills
    ]
    front = [b.arm for b in sorted(found.bills, key=lambda b: b.seconds) if b.front]
    rows = "".join(_bill_row(b, found, t) for b in sorted(found.bills, key=lambda b: b.seconds) if b.selectable)
    heads = ("arm", "cost-question", "cost-month") if found.price_per_hour else ("arm", "cost-question")
    return (
        f'<div class="rt-use" role="status" data-chosen="{escape(found.chosen or "")}"><h3>{escape(head)}</h3>'
        f"<p>{escape(' '.join(facts))}</p></div>"
        f'<div class="rt-plots"><section><h4>{escape(t("plot-arms", metric=metric))}</h4>{interval_plot(marks, metric)}'
        f'<p class="rt-aside">{t.html("plot-arms-note")}</p></section><section><h4>{t.html("plot-cost")}</h4>'
        f'{scatter_plot(marks, front, metric)}<p class="rt-aside">{t.html("plot-cost-note")}</p></section></div>'
        f'{table(heads, rows, t)}<p class="rt-aside">{t.html("sliders-note")}</p>'
    )


def sliders(queries: int, price: float, t: Words = ENGLISH) -> str:
    """Questions a month (by powers of ten) and the price of an hour; moving one asks for the recommendation again."""
    at = min(7.0, max(1.0, math.log10(max(1, queries))))
    return (
        '<form class="rt-sliders" data-bus="decide" data-event="input">'
        f"<label><span>{escape(t('queries-month'))}</span><output>{queries:,}</output>"
        f'<input type="range" min="1" max="7" step="0.05" value="{at:.2f}" data-power="10" data-name="queries" '
        f'aria-valuetext="{queries:,}"></label>'
        f"<label><span>{escape(t('price-hour'))}</span><output>{price:,.2f}</output>"
        f'<input type="range" min="0" max="20" step="0.05" value="{price:.2f}" data-name="price" '
        f'aria-valuetext="{price:,.2f}"></label></form>'
    )


def _bill_row(bill: Any, found: Recommendation, t: Words) -> str:
    chosen = bill.arm == found.chosen
    tag = f' <span class="rt-tag">{t.html("recommended")}</span>' if chosen else ""
    month = (
        f'<td class="rt-n" data-label="{t.html("cost-month")}">{bill.month:,.2f}</td>' if found.price_per_hour else ""
    )
    return (
        f'<tr{" class=rt-chosen" if chosen else ""}><td data-label="{t.html("arm")}"><b>{escape(bill.arm)}'
        f"</b>{tag}</td>"
        f'<td class="rt-n" data-label="{t.html("cost-question")}">{_seconds(bill.seconds)}</td>{month}</tr>'
    )


def _arms_table(data: Mapping[str, Any], chosen: str, t: Words) -> str:
    """One row for each arm, with the figures that the decision has for any; times and costs are per question."""
    arms = [a for a in data.get("arms") or () if isinstance(a, dict)]
    if not arms:
        return ""
    columns = [key for key in _FIGURES if any(key in a for a in arms)]
    rows = []
    for arm in arms:
        name = str(arm.get("arm", ""))
        cells = [
            f'<td class="rt-n" data-label="{escape(t("figure-" + key))}">'
            f"{_figure(arm.get(key), seconds=key in _SECONDS)}</td>"
            for key in columns
        ]
        note = {chosen: t("chosen-tag"), "oracle": t("bound-tag")}.get(name, "")
        first = f"<b>{escape(name)}</b>{f' <span class=rt-tag>{escape(note)}</span>' if note else ''}"
        row = ' class="rt-chosen"' if name == chosen else ""
        rows.append(f'<tr{row}><td data-label="{t.html("arm")}">{first}</td>{"".join(cells)}</tr>')
    heads = ["arm", *("figure-" + key for key in columns)]
    return (
        f'<h3>{t.html("arms-head")}</h3>{table(heads, "".join(rows), t)}<p class="rt-aside">{t.html("arms-note")}</p>'
    )


def _pairs_table(data: Mapping[str, Any], t: Words) -> str:
    """Every comparison of two arms: difference with its interval, adjusted p, who won on how many questions."""
    rows = []
    for pair in data.get("pairs") or ():
        try:
            d = interval(pair["difference"])
            figures = (
                f"{d.mean:+.3f}", f"{d.low:+.3f} – {d.high:+.3f}", f"{float(pair['p_adjusted']):.3f}",
                f"{int(pair['a_better'])} : {int(pair['b_better'])}",
            )  # fmt: skip
        except (ConfigError, KeyError, TypeError, ValueError):
            continue
        sure = float(pair["p_adjusted"]) < float((data.get("config") or {}).get("alpha", 0.05))
        cells = "".join(
            f'<td class="rt-n" data-label="{escape(t(key))}">{escape(value)}</td>'
            for key, value in zip(("difference", "interval", "p-adjusted", "wins"), figures, strict=True)
        )
        names = f"<b>{escape(str(pair['a']))}</b> − <b>{escape(str(pair['b']))}</b>"
        look = ' class="rt-chosen"' if sure else ""
        rows.append(f'<tr{look}><td data-label="{t.html("pair")}">{names}</td>{cells}</tr>')
    if not rows:
        return ""
    heads = ("pair", "difference", "interval", "p-adjusted", "wins")
    return (
        f'<h3>{t.html("pairs-head")}</h3>{table(heads, "".join(rows), t)}<p class="rt-aside">{t.html("pairs-note")}</p>'
    )


def drill(found: Sequence[Disagreement], t: Words = ENGLISH) -> str:
    """The questions where arms disagree, each unfolding into what every arm said."""
    if not found:
        return f'<p class="rt-empty">{t.html("drill-none")}</p>'
    items = "".join(_disagreement(d, t) for d in found)
    return f'<p class="rt-aside">{escape(t("drill-note", n=len(found)))}</p><div class="rt-drill">{items}</div>'


def _disagreement(found: Disagreement, t: Words) -> str:
    rows = "".join(
        f'<tr><td><b>{escape(s.arm)}</b></td><td class="rt-n">{s.score:.2f}</td>'
        f'<td dir="auto">{escape(t("abstained") if s.abstained else s.text[:600])}</td></tr>'
        for s in sorted(found.said, key=lambda s: -s.score)
    )
    wanted = escape(" / ".join(found.wanted) if found.wanted else t("unanswerable"))
    return (
        f'<details class="rt-card"><summary><span class="rt-num">{found.spread:.1f}</span><span '
        'class="rt-where" dir="auto">'
        f"{escape(found.question)}</span></summary>"
        f'<p class="rt-wanted">{t.html("wanted")} <b dir="auto">{wanted}</b></p>'
        f'<table class="rt-table rt-said">{rows}</table></details>'
    )


def _figure(value: Any, *, seconds: bool = False) -> str:
    """A number, or {mean, low, high} as the mean with its interval below."""
    if not isinstance(value, dict):
        return number(value, seconds=seconds)
    spread = ""
    if value.get("low") is not None and value.get("high") is not None:
        spread = f'<span class="rt-sub">{number(value["low"])} – {number(value["high"])}</span>'
    return number(value.get("mean"), seconds=seconds) + spread


def number(value: Any, *, seconds: bool = False) -> str:
    """A figure of a table as HTML: two digits, or a time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape("–" if value is None else str(value))
    return _seconds(value) if seconds else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _report(view: DecisionView, t: Words) -> str:
    """The report in a frame that may run nothing and reach nothing, and a link that saves it."""
    if not view.report:
        return f'<p class="rt-aside">{t.html("no-report")}</p>'
    data = base64.b64encode(view.report.encode("utf-8", "replace")).decode()
    return (
        f'<details class="rt-report-fold"><summary>{t.html("report")}</summary>'
        f'<p class="rt-actions"><a class="rt-download" download="ragtune-report.html" '
        f'href="data:text/html;base64,{data}">{t.html("save-report")}</a></p>'
        f'<iframe class="rt-report" sandbox="" referrerpolicy="no-referrer" title="{t.html("report")}" '
        f'srcdoc="{escape(view.report)}"></iframe></details>'
    )
