"""The Documents tab as HTML: pure functions from `views` to strings."""

from __future__ import annotations

from collections.abc import Sequence

from apps.cards import card, normalised
from apps.markup import escape, sentence
from apps.strings import ENGLISH, Words
from apps.uploads import UploadLimits, megabytes
from apps.views import DocumentRow, SearchColumn, Upload

MAX_ROWS = 1000


def documents(rows: Sequence[DocumentRow], t: Words = ENGLISH, *, total: int, filtered: bool = False) -> str:
    """The table of what is indexed; says the next step when there is nothing."""
    if not rows and filtered:
        return f'<p class="rt-empty">{t.html("no-match")}</p>'
    if not rows:
        return f'<p class="rt-empty">{t.html("no-documents")}</p>'
    body = "".join(_document_row(row, t) for row in rows[:MAX_ROWS])
    more = len(rows) - MAX_ROWS
    note = f'<p class="rt-aside">{escape(t("more-documents", n=more))}</p>' if more > 0 else ""
    count = t("documents-some", n=len(rows), total=total) if filtered else t("documents-n", n=total)
    listed = table(("file", "pages", "chunks", "status", "actions"), body, t)
    return f'<p class="rt-aside">{escape(count)}</p>{listed}{note}'


def _document_row(row: DocumentRow, t: Words) -> str:
    title = f'<span class="rt-sub">{escape(row.title)}</span>' if row.title and row.title != row.source else ""
    status = t("uploaded" if row.uploaded else "indexed")
    key = f'data-bus="documents" data-source="{escape(row.source)}"'
    named = escape(row.source)
    return (
        f'<tr><td data-label="{t.html("file")}"><bdi class="rt-file">{named}</bdi>{title}</td>'
        f'<td data-label="{t.html("pages")}" class="rt-n">{row.pages or "–"}</td>'
        f'<td data-label="{t.html("chunks")}" class="rt-n">{row.chunks:,}</td>'
        f'<td data-label="{t.html("status")}"><span class="rt-verdict rt-indexed">{escape(status)}</span></td>'
        f'<td class="rt-row-acts"><button type="button" class="rt-act rt-chunks-open" data-source="{named}" '
        f'aria-label="{escape(t("chunks-of-file", name=row.source))}">{t.html("chunks-show")}</button>'
        f'<button type="button" class="rt-act" {key} data-event="retry" '
        f'aria-label="{escape(t("reindex-file", name=row.source))}">{t.html("reindex")}</button>'
        f'<button type="button" class="rt-act rt-danger" {key} data-event="delete" '
        f'aria-label="{escape(t("delete-file", name=row.source))}">{t.html("delete")}</button></td></tr>'
    )


def table(heads: Sequence[str], body: str, t: Words) -> str:
    """A table that scrolls by itself; `heads` are keys of the table of strings."""
    cells = "".join(f'<th scope="col">{escape(t(key))}</th>' for key in heads)
    return (
        f'<div class="rt-scroll" tabindex="0" role="region" aria-label="{escape(t(heads[0]))}"><table class="rt-table">'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def upload_hint(limits: UploadLimits, t: Words = ENGLISH) -> str:
    """What may be dropped."""
    from rag.load import SUFFIXES

    hint = t("upload-hint", kinds=" ".join(SUFFIXES), size=megabytes(limits.file_bytes), files=limits.files)
    return f'<p class="rt-aside">{escape(hint)}</p>'


def uploads(items: Sequence[Upload], t: Words = ENGLISH) -> str:
    """Each file with its stage, progress, verdict, pages, chunks and the reason of a failure; how many are through."""
    if not items:
        return ""
    done, failed = sum(item.finished for item in items), sum(item.status == "failed" for item in items)
    rows = "".join(_upload(item, t) for item in items)
    head = t("files-done", n=done, total=len(items)) + (t("files-failed", n=failed) if failed else "")
    return (
        f'<div class="rt-uploads" role="status"><p class="rt-aside">{escape(head)}</p>'
        f'<span class="rt-meter"><i style="width:{done / len(items):.0%}"></i></span><ul>{rows}</ul></div>'
    )


def _upload(item: Upload, t: Words) -> str:
    facts = []
    if item.stage:
        facts.append(f"{t.of(item.stage)} {item.share:.0%}" if item.share else t.of(item.stage))
    if item.pages:
        facts.append(t("pages-n", n=item.pages))
    if item.chunks:
        facts.append(t("chunks-n", n=item.chunks))
    bar = f'<span class="rt-meter"><i style="width:{item.share:.0%}"></i></span>' if item.status == "working" else ""
    said = f'<span class="rt-sub">{escape(" · ".join(facts))}</span>' if facts else ""
    note = f'<span class="rt-sub">{sentence(t.of(item.note))}</span>' if item.note else ""
    return (
        f'<li class="rt-up rt-{item.status}"><bdi class="rt-file">{escape(item.name)}</bdi>'
        f'<span class="rt-verdict rt-{item.status}">{escape(t("verdict-" + item.status))}</span>{bar}{said}{note}</li>'
    )


def about_to_delete(sources: Sequence[str], t: Words = ENGLISH) -> str:
    """What is asked before documents are deleted."""
    names = "".join(f'<li><bdi class="rt-file">{escape(s)}</bdi></li>' for s in sources[:8])
    more = f"<li>{escape(t('and-more', n=len(sources) - 8))}</li>" if len(sources) > 8 else ""
    return (
        f'<div class="rt-note" role="alert"><p>{t.html("delete-ask")}</p><ul>{names}{more}</ul>'
        f"<p>{t.html('delete-note')}</p></div>"
    )


def said(text: str, t: Words = ENGLISH) -> str:
    """What was done, as a line."""
    return f'<p class="rt-note rt-good" role="status">{sentence(t.of(text))}</p>'


def search(query: str, columns: Sequence[SearchColumn], t: Words = ENGLISH) -> str:
    """What each stage finds, side by side, best first, with the score of that stage."""
    if not columns:
        return f'<p class="rt-empty">{t.html("search-empty")}</p>'
    out = []
    for column in columns:
        found = column.passages
        bars = normalised([p.score for p in found]) if found else []
        cards = "".join(card(f"try-{column.stage}-{p.rank}", p, bars[i], t=t) for i, p in enumerate(found))
        why = t.of(column.note) if column.note else t("search-nothing")
        note = "" if found else f'<p class="rt-empty">{sentence(why)}</p>'
        head = f"<h4>{escape(t('stage-' + column.stage))}</h4>"
        out.append(f'<section class="rt-column" data-stage="{column.stage}">{head}{cards}{note}</section>')
    return f'<div class="rt-columns" aria-label="{escape(t("results-for", query=query))}">{"".join(out)}</div>'
