"""A passage as a card, and a document in its window: pure functions from `rag.types` to HTML."""

from __future__ import annotations

from collections.abc import Sequence

from apps.markup import escape, marked
from apps.views import OpenDocument
from rag.types import Citation, Passage

STAGES = {
    "dense": "Meaning (dense)",
    "lexical": "Words (lexical)",
    "fused": "Both (fused)",
    "rerank": "Reranked",
}
_SNIPPET = 180


def normalised(scores: Sequence[float]) -> list[float]:
    """Scores as bar lengths in [0.04, 1]: the best fills the bar; its empty end is zero, or the lowest if negative."""
    low, high = min(0.0, *scores), max(scores)
    width = high - low
    return [max(0.04, (s - low) / width) if width > 0 else 1.0 for s in scores]


def card(
    anchor: str, passage: Passage, bar: float, citations: Sequence[Citation] = (), *, is_open: bool = False
) -> str:
    """One passage: file, page, heading path, rank, score; opened, its text with the supporting words marked, its scores
    by stage, and the way into its document. `anchor` is its HTML id, `bar` its score in [0, 1] relative to the best."""
    chunk = passage.chunk
    mine = [c for c in citations if c.chunk_id == chunk.id]
    spans = [(c.start - chunk.start, c.end - chunk.start) for c in mine]
    page = f'<span class="rt-page">page {chunk.page}</span>' if chunk.page is not None else ""
    path = f'<span class="rt-path">{escape(" › ".join(chunk.headings))}</span>' if chunk.headings else ""
    tag = _support(max(c.support for c in mine)) if mine else ""
    start, end = (mine[0].start, mine[0].end) if mine else (chunk.start, chunk.end)
    return (
        f'<details class="rt-card{" rt-cited" if mine else ""}" id="{anchor}"{" open" if is_open else ""}>'
        f'<summary><span class="rt-num">{passage.rank}</span><span class="rt-where">'
        f'<span class="rt-line"><bdi class="rt-file">{escape(chunk.source)}</bdi>{page}{_meter(passage, bar)}</span>'
        f"{path}"
        f'<span class="rt-snippet" dir="auto">{escape(_snippet(chunk.text))}</span>{tag}</span></summary>'
        f'<div class="rt-text" dir="auto">{marked(chunk.text, spans)}</div>{_stages(passage)}'
        f'<button type="button" class="rt-open" data-source="{escape(chunk.source)}" data-start="{start}" '
        f'data-end="{end}">Open document</button></details>'
    )


def _meter(passage: Passage, bar: float) -> str:
    title = f"Score {passage.score:.3f}, rank {passage.rank}; the bar is relative to the best"
    return f'<span class="rt-meter" title="{title}"><i style="width:{bar:.0%}"></i></span>'


def _support(share: float) -> str:
    """How well the marked words support the sentence that cites them; said to be weak below a half."""
    weak = share < 0.5
    return (
        f'<span class="rt-tag{" rt-weak" if weak else ""}">cited, {"only " if weak else ""}{share:.0%} support</span>'
    )


def _snippet(text: str) -> str:
    line = " ".join(text[: 2 * _SNIPPET].split())
    return line if len(line) <= _SNIPPET else line[:_SNIPPET].rsplit(" ", 1)[0] + "…"


def _stages(passage: Passage) -> str:
    rows = "".join(
        f"<tr><th>{label}</th><td>{'–' if value is None else f'{value:.3f}'}</td></tr>"
        for stage, label in STAGES.items()
        for value in [getattr(passage.scores, stage)]
    )
    return (
        '<details class="rt-stages"><summary>Scores by stage</summary><table>'
        f"<tr><th>Rank</th><td>{passage.rank}</td></tr>{rows}</table><p>Higher is better in every row.</p></details>"
    )


def document(view: OpenDocument) -> str:
    """The body of the document window: the text with its span marked; says what was left out of a long one."""
    before = f'<p class="rt-aside">{view.offset:,} characters before this are not shown.</p>' if view.offset else ""
    rest = view.total - view.offset - len(view.text)
    after = f'<p class="rt-aside">{rest:,} characters after this are not shown.</p>' if rest > 0 else ""
    body = marked(view.text, [(view.start - view.offset, view.end - view.offset)])
    return f'{before}<div class="rt-page-text" dir="auto">{body}</div>{after}'
