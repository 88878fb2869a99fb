"""The Documents and Decision tabs as HTML: pure functions from `views` to strings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from apps.cards import STAGES, card, normalised
from apps.markup import escape, sentence
from apps.uploads import UploadLimits, megabytes
from apps.views import DecisionView, DocumentRow, SearchColumn, Upload

MAX_ROWS = 1000
_VERDICT = {
    "queued": "waiting",
    "working": "working",
    "indexed": "indexed",
    "unchanged": "already there",
    "failed": "not indexed",
}
_DECIDE = "ragtune decide INDEX --train train.jsonl --questions test.jsonl --out RUN"


def documents(rows: Sequence[DocumentRow], *, total: int, filtered: bool = False) -> str:
    """The table of what is indexed; says the next step when there is nothing."""
    if not rows and filtered:
        return '<p class="rt-empty">No document has this in its name. Clear the filter to see all.</p>'
    if not rows:
        return (
            '<p class="rt-empty"><b>Nothing is indexed yet.</b> Drop files above, or type '
            "<code>ragtune index FOLDER --out INDEX</code> in a terminal.</p>"
        )
    body = "".join(map(_document_row, rows[:MAX_ROWS]))
    more = len(rows) - MAX_ROWS
    note = f'<p class="rt-aside">{more:,} more are not listed: use the filter.</p>' if more > 0 else ""
    count = f"{len(rows):,} of {total:,}" if filtered else f"{total:,}"
    heads = "<th>File</th><th>Pages</th><th>Chunks</th><th>Status</th>"
    return f'<p class="rt-aside">{count} document{"" if total == 1 else "s"}</p>{_table(heads, body)}{note}'


def _document_row(row: DocumentRow) -> str:
    title = f'<span class="rt-sub">{escape(row.title)}</span>' if row.title and row.title != row.source else ""
    status = "uploaded" if row.uploaded else "indexed"
    return (
        f'<tr><td data-label="File"><bdi class="rt-file">{escape(row.source)}</bdi>{title}</td>'
        f'<td data-label="Pages" class="rt-n">{row.pages or "–"}</td>'
        f'<td data-label="Chunks" class="rt-n">{row.chunks:,}</td>'
        f'<td data-label="Status"><span class="rt-verdict rt-indexed">{status}</span></td></tr>'
    )


def _table(heads: str, body: str) -> str:
    return (
        '<div class="rt-scroll" tabindex="0"><table class="rt-table">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def upload_hint(limits: UploadLimits) -> str:
    """What may be dropped."""
    from rag.load import SUFFIXES

    return (
        f'<p class="rt-aside">{escape(" ".join(SUFFIXES))}. At most {megabytes(limits.file_bytes)} a file. '
        "A file of the same name replaces the earlier one.</p>"
    )


def uploads(items: Sequence[Upload]) -> str:
    """Each uploaded file with its verdict, and how many are through."""
    if not items:
        return ""
    done = sum(item.finished for item in items)
    rows = "".join(
        f'<li class="rt-up rt-{item.status}"><bdi class="rt-file">{escape(item.name)}</bdi>'
        f'<span class="rt-verdict rt-{item.status}">{_VERDICT[item.status]}</span>'
        f"{f'<span class=rt-sub>{sentence(item.note)}</span>' if item.note else ''}</li>"
        for item in items
    )
    return (
        f'<div class="rt-uploads" role="status"><p class="rt-aside">{done} of {len(items)} files done</p>'
        f'<span class="rt-meter"><i style="width:{done / len(items):.0%}"></i></span><ul>{rows}</ul></div>'
    )


def about_to_delete(sources: Sequence[str]) -> str:
    """What is asked before documents are deleted."""
    names = "".join(f'<li><bdi class="rt-file">{escape(s)}</bdi></li>' for s in sources[:8])
    more = f"<li>and {len(sources) - 8} more</li>" if len(sources) > 8 else ""
    return (
        f'<div class="rt-note"><p>Delete from the index?</p><ul>{names}{more}</ul><p>Copies of uploaded files go, too. '
        "Files in your own folders stay where they are, and come back with the next <code>ragtune index</code>.</p>"
        "</div>"
    )


def said(text: str) -> str:
    """What was done, as a line."""
    return f'<p class="rt-note rt-good" role="status">{sentence(text)}</p>'


def search(query: str, columns: Sequence[SearchColumn]) -> str:
    """What each stage finds, side by side, best first, with the score of that stage."""
    if not columns:
        return (
            '<p class="rt-empty">Type words above to see what each stage of the search finds. No model is asked, so '
            "this is the quickest way to learn why an answer missed its source.</p>"
        )
    out = []
    for column in columns:
        found = column.passages
        bars = normalised([p.score for p in found]) if found else []
        cards = "".join(card(f"try-{column.stage}-{p.rank}", p, bars[i]) for i, p in enumerate(found))
        note = f'<p class="rt-empty">{sentence(column.note or "Nothing found.")}</p>' if not found else ""
        head = f"<h4>{STAGES[column.stage]}</h4>"
        out.append(f'<section class="rt-column" data-stage="{column.stage}">{head}{cards}{note}</section>')
    return f'<div class="rt-columns" aria-label="Results for {escape(query)}">{"".join(out)}</div>'


# ---------------------------------------------------------------- the decision


def decision(view: DecisionView | None) -> str:
    """Which arm was chosen, why, and the figures; or which command finds out."""
    if view is None:
        return (
            '<div class="rt-welcome"><h2>Nothing has been measured yet</h2><p>Whether retrieval, tuning, or both are '
            f"worth it on your questions is found out by</p><pre><code>{_DECIDE}</code></pre>"
            "<p>It asks every arm the same held-out questions, tests the differences, and writes the report that "
            "stands here afterwards. Then start <code>ragtune chat INDEX</code> again.</p></div>"
        )
    data = view.data
    chosen = str(data.get("chosen") or "")
    head = f"{escape(chosen)} was chosen" if chosen else "No arm was chosen"
    return (
        f'<div class="rt-decision"><p class="rt-aside">Measured decision · <bdi>{escape(view.folder)}</bdi></p>'
        f'<h2>{head}</h2><p class="rt-lead">{escape(str(data.get("reason") or ""))}</p>'
        f"{_warnings(data)}{_arms_table(data, chosen)}{_report(view)}</div>"
    )


def _warnings(data: Mapping[str, Any]) -> str:
    warnings = [f"<li>{escape(str(w))}</li>" for w in data.get("warnings") or ()]
    if not warnings:
        return ""
    head = "One thing" if len(warnings) == 1 else f"{len(warnings)} things"
    return (
        f'<details class="rt-note rt-warn"><summary>{head} to know before you rely on it</summary>'
        f"<ul>{''.join(warnings)}</ul></details>"
    )


_FIGURES = {
    "f1": "F1",
    "em": "Exact",
    "match": "Match",
    "abstention": "Abstains",
    "seconds_per_question": "Time",
    "cost": "Cost in all",
}
_SECONDS = frozenset({"seconds_per_question", "cost"})


def _arms_table(data: Mapping[str, Any], chosen: str) -> str:
    """One row for each arm, with the figures that the decision has for any; times and costs are per question."""
    arms = [a for a in data.get("arms") or () if isinstance(a, dict)]
    if not arms:
        return ""
    columns = {key: label for key, label in _FIGURES.items() if any(key in a for a in arms)}
    rows = []
    for arm in arms:
        name = str(arm.get("arm", ""))
        cells = [
            f'<td class="rt-n" data-label="{label}">{_figure(arm.get(key), seconds=key in _SECONDS)}</td>'
            for key, label in columns.items()
        ]
        note = {chosen: "chosen", "oracle": "bound: given the right passage"}.get(name, "")
        first = f"<b>{escape(name)}</b>{f' <span class=rt-tag>{note}</span>' if note else ''}"
        row = ' class="rt-chosen"' if name == chosen else ""
        rows.append(f'<tr{row}><td data-label="Arm">{first}</td>{"".join(cells)}</tr>')
    heads = "".join(f"<th>{label}</th>" for label in ("Arm", *columns.values()))
    return _table(heads, "".join(rows)) + (
        '<p class="rt-aside">Means over the questions, with 95 % intervals. Time and cost are those of one question on '
        "the machine that measured; cost in all includes its share of indexing and training.</p>"
    )


def _figure(value: Any, *, seconds: bool = False) -> str:
    """A number, or {mean, low, high} as the mean with its interval below."""
    if not isinstance(value, dict):
        return _number(value, seconds=seconds)
    interval = ""
    if value.get("low") is not None and value.get("high") is not None:
        interval = f'<span class="rt-sub">{_number(value["low"])} – {_number(value["high"])}</span>'
    return _number(value.get("mean"), seconds=seconds) + interval


def _number(value: Any, *, seconds: bool = False) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape("–" if value is None else str(value))
    if seconds:
        return f"{value:,.1f} s" if value >= 1 else f"{value * 1000:.1f} ms"
    return f"{value:.2f}"


def _report(view: DecisionView) -> str:
    """The report in a frame that may run nothing and reach nothing, and a link that saves it."""
    if not view.report:
        return (
            '<p class="rt-aside">The folder has no report.html: run <code>ragtune decide</code> again to write one.</p>'
        )
    data = base64.b64encode(view.report.encode("utf-8", "replace")).decode()
    return (
        '<p class="rt-actions"><a class="rt-download" download="ragtune-report.html" '
        f'href="data:text/html;base64,{data}">Save the report</a></p>'
        '<iframe class="rt-report" sandbox="" referrerpolicy="no-referrer" title="Report of the decision" '
        f'srcdoc="{escape(view.report)}"></iframe>'
    )
