"""A passage as a card, and a document in its window: pure functions from `rag.types` to HTML."""

from __future__ import annotations

from collections.abc import Sequence

from apps.markup import escape, marked
from apps.strings import ENGLISH, Words
from apps.views import ChunkRow, OpenDocument
from rag.types import Citation, Passage

STAGES = ("dense", "lexical", "fused", "rerank")
_SNIPPET = 180


def normalised(scores: Sequence[float]) -> list[float]:
    """Scores as bar lengths in [0.04, 1]: the best fills the bar; its empty end is zero, or the lowest if negative."""
    low, high = min(0.0, *scores), max(scores)
    width = high - low
    return [max(0.04, (s - low) / width) if width > 0 else 1.0 for s in scores]


def card(
    anchor: str,
    passage: Passage,
    bar: float,
    citations: Sequence[Citation] = (),
    t: Words = ENGLISH,
    *,
    is_open: bool = False,
) -> str:
    """One passage: file, page, heading path, rank, score; opened, its text with the supporting words marked, its scores
    by stage, and the way into its document. `anchor` is its HTML id, `bar` its score in [0, 1] relative to the best."""
    chunk = passage.chunk
    mine = [c for c in citations if c.chunk_id == chunk.id]
    spans = [(c.start - chunk.start, c.end - chunk.start) for c in mine]
    page = f'<span class="rt-page">{escape(t("page", n=chunk.page))}</span>' if chunk.page is not None else ""
    path = f'<span class="rt-path">{escape(" › ".join(chunk.headings))}</span>' if chunk.headings else ""
    tag = _support(max(c.support for c in mine), t) if mine else ""
    start, end = (mine[0].start, mine[0].end) if mine else (chunk.start, chunk.end)
    return (
        f'<details class="rt-card{" rt-cited" if mine else ""}" id="{anchor}"{" open" if is_open else ""}>'
        f'<summary><span class="rt-num">{passage.rank}</span><span class="rt-where">'
        f'<span class="rt-line"><bdi class="rt-file">{escape(chunk.source)}</bdi>{page}{_meter(passage, bar, t)}</span>'
        f"{path}"
        f'<span class="rt-snippet" dir="auto">{escape(_snippet(chunk.text))}</span>{tag}</span></summary>'
        f'<div class="rt-text" dir="auto">{marked(chunk.text, spans)}</div>{_stages(passage, t)}'
        f'<button type="button" class="rt-open" data-source="{escape(chunk.source)}" data-start="{start}" '
        f'data-end="{end}">{escape(t("open-document"))}</button></details>'
    )


def _meter(passage: Passage, bar: float, t: Words) -> str:
    title = escape(t("score-bar", score=f"{passage.score:.3f}", rank=passage.rank))
    return f'<span class="rt-meter" title="{title}"><i style="width:{bar:.0%}"></i></span>'


def _support(share: float, t: Words) -> str:
    """How well the marked words support the sentence that cites them; said to be weak below a half."""
    weak = share < 0.5
    said = t("support-weak" if weak else "support", share=f"{share:.0%}")
    return f'<span class="rt-tag{" rt-weak" if weak else ""}">{escape(said)}</span>'


def _snippet(text: str) -> str:
    line = " ".join(text[: 2 * _SNIPPET].split())
    return line if len(line) <= _SNIPPET else line[:_SNIPPET].rsplit(" ", 1)[0] + "…"


def _stages(passage: Passage, t: Words) -> str:
    rows = "".join(
        f"<tr><th>{escape(t('stage-' + stage))}</th><td>{'–' if value is None else f'{value:.3f}'}</td></tr>"
        for stage in STAGES
        for value in [getattr(passage.scores, stage)]
    )
    return (
        f'<details class="rt-stages"><summary>{escape(t("scores-by-stage"))}</summary><table>'
        f"<tr><th>{escape(t('rank'))}</th><td>{passage.rank}</td></tr>{rows}</table>"
        f"<p>{escape(t('higher-better'))}</p></details>"
    )


def document(view: OpenDocument, t: Words = ENGLISH) -> str:
    """The body of the document window: the text with its span marked; says what was left out of a long one."""
    before = f'<p class="rt-aside">{escape(t("left-before", n=view.offset))}</p>' if view.offset else ""
    rest = view.total - view.offset - len(view.text)
    after = f'<p class="rt-aside">{escape(t("left-after", n=rest))}</p>' if rest > 0 else ""
    body = marked(view.text, [(view.start - view.offset, view.end - view.offset)])
    return f'{before}<div class="rt-page-text" dir="auto">{body}</div>{after}'


def chunks(rows: Sequence[ChunkRow], total: int, t: Words = ENGLISH) -> str:
    """The body of the window with the chunks of a document, in order; says how many of `total` are left out."""
    if not rows:
        return f'<p class="rt-empty">{escape(t("no-chunks"))}</p>'
    items = "".join(_chunk(row, t) for row in rows)
    left = total - len(rows)
    more = f'<p class="rt-aside">{escape(t("more-chunks", n=left))}</p>' if left > 0 else ""
    return f'<p class="rt-aside">{escape(t("chunks-of", n=total))}</p><ol class="rt-chunks">{items}</ol>{more}'


def _chunk(row: ChunkRow, t: Words) -> str:
    page = f"{t('page', n=row.page)} · " if row.page is not None else ""
    path = f'<span class="rt-path">{escape(" › ".join(row.headings))}</span>' if row.headings else ""
    where = escape(f"{row.number} · {page}{row.start:,}–{row.end:,}")
    return (
        f'<li class="rt-chunk"><p class="rt-aside"><b>{where}</b> {path}</p>'
        f'<div class="rt-text" dir="auto">{escape(row.text)}</div></li>'
    )
