"""The Documents and Decision tabs as HTML: pure functions from `views` to strings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from apps.markup import escape, sentence
from apps.render import STAGES, card, normalised
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
    body = "".join(
        f'<tr><td data-label="File"><bdi class="rt-file">{escape(row.source)}</bdi>'
        f"{f'<span class=rt-sub>{escape(row.title)}</span>' if row.title and row.title != row.source else ''}</td>"
        f'<td data-label="Pages" class="rt-n">{row.pages or "–"}</td><td data-label="Chunks" class="rt-n">{row.chunks:,}</td>'
        f'<td data-label="Status"><span class="rt-verdict rt-ok">{"uploaded" if row.uploaded else "indexed"}</span></td></tr>'
        for row in rows[:MAX_ROWS]
    )
    more = len(rows) - MAX_ROWS
    note = f'<p class="rt-aside">{more:,} more are not listed: use the filter.</p>' if more > 0 else ""
    count = f"{len(rows):,} of {total:,}" if filtered else f"{total:,}"
    return (
        f'<p class="rt-aside">{count} document{"" if total == 1 else "s"}</p><div class="rt-scroll" tabindex="0"><table class="rt-table">'
        "<thead><tr><th>File</th><th>Pages</th><th>Chunks</th><th>Status</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>{note}"
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
        "Files in your own folders stay where they are, and come back with the next <code>ragtune index</code>.</p></div>"
    )


def said(text: str) -> str:
    """What was done, as a line."""
    return f'<p class="rt-note rt-good" role="status">{sentence(text)}</p>'


def search(query: str, columns: Sequence[SearchColumn]) -> str:
    """What each stage finds, side by side, best first, with the score of that stage."""
    if not columns:
        return (
            '<p class="rt-empty">Type words above to see what each stage of the search finds. No model is asked, so this '
            "is the quickest way to learn why an answer missed its source.</p>"
        )
    labels = dict(STAGES)
    out = []
    for column in columns:
        found = column.passages
        bars = normalised([p.score for p in found]) if found else []
        cards = "".join(card(f"try-{column.stage}-{p.rank}", p, bars[i]) for i, p in enumerate(found))
        note = f'<p class="rt-empty">{sentence(column.note or "Nothing found.")}</p>' if not found else ""
        out.append(
            f'<section class="rt-column" data-stage="{column.stage}"><h4>{labels[column.stage]}</h4>{cards}{note}</section>'
        )
    return f'<div class="rt-columns" aria-label="Results for {escape(query)}">{"".join(out)}</div>'


# ---------------------------------------------------------------- the decision


def decision(view: DecisionView | None) -> str:
    """Which arm was chosen, why, and the figures; or which command finds out."""
    if view is None:
        return (
            '<div class="rt-welcome"><h2>Nothing has been measured yet</h2><p>Whether retrieval, tuning, or both are worth '
            f"it on your questions is found out by</p><pre><code>{_DECIDE}</code></pre>"
            "<p>It asks every arm the same held-out questions, tests the differences, and writes the report that stands here "
            "afterwards. Then start the chat with <code>--decision RUN</code>.</p></div>"
        )
    data = view.data
    chosen = str(data.get("chosen") or "")
    head = f"{escape(chosen)} answers best for its cost" if chosen else "No arm was chosen"
    warnings = "".join(f'<p class="rt-note rt-warn">{escape(str(w))}</p>' for w in data.get("warnings") or ())
    return (
        f'<div class="rt-decision"><p class="rt-aside">Measured decision · <bdi>{escape(view.folder)}</bdi></p><h2>{head}</h2>'
        f'<p class="rt-lead">{escape(str(data.get("reason") or ""))}</p>{warnings}{_arms_table(data, chosen)}{_report(view)}</div>'
    )


def _arms_table(data: Mapping[str, Any], chosen: str) -> str:
    arms = [a for a in data.get("arms") or () if isinstance(a, dict)]
    if not arms:
        return ""
    columns = [
        c for c in ("f1", "em", "match", "abstention", "seconds_per_question", "cost") if any(c in a for a in arms)
    ]
    names = {
        "f1": "F1",
        "em": "Exact",
        "match": "Match",
        "abstention": "Abstains",
        "seconds_per_question": "s / question",
        "cost": "Cost",
    }
    body = []
    for arm in arms:
        name = str(arm.get("arm", ""))
        cells = "".join(f'<td class="rt-n" data-label="{names[c]}">{_figure(arm.get(c))}</td>' for c in columns)
        picked = ' <span class="rt-tag">chosen</span>' if name == chosen else ""
        body.append(
            f'<tr{" class=rt-chosen" if name == chosen else ""}><td data-label="Arm"><b>{escape(name)}</b>{picked}</td>{cells}</tr>'
        )
    heads = "".join(f"<th>{names[c]}</th>" for c in columns)
    return (
        f'<div class="rt-scroll" tabindex="0"><table class="rt-table rt-arms"><thead><tr><th>Arm</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(value: Any) -> str:
    """A number, or {mean, low, high} as the mean with its interval below."""
    if isinstance(value, dict) and isinstance(value.get("mean"), (int, float)):
        low, high = value.get("low"), value.get("high")
        between = isinstance(low, (int, float)) and isinstance(high, (int, float))
        return f"{_number(value['mean'])}{f'<span class=rt-sub>{_number(low)} – {_number(high)}</span>' if between else ''}"
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape("–" if value is None else str(value))
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.2e}" if abs(value) < 0.001 else f"{value:,.0f}"


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
        f'<iframe class="rt-report" sandbox="" referrerpolicy="no-referrer" title="Report of the decision" srcdoc="{escape(view.report)}"></iframe>'
    )
