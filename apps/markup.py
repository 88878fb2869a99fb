"""Text of strangers as HTML that can do nothing: documents, file names, questions, and answers of models.

`escape` is for everything; `answer_html` renders the Markdown of an answer. No link can be followed, no image is ever
fetched, no tag of the text survives: links are shown as their text and address, images as their description.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

# C0 controls but tab and newline, C1 controls, and the bidirectional overrides that make a name read backwards.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CITATION = re.compile(r"\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")

Cite = Callable[[int], str | None]
"""Citation number → HTML of its link, or None when there is no such passage."""


def clean(text: str) -> str:
    """`text` without what cannot be shown or sent: control characters and lone surrogates become U+FFFD."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n")).encode("utf-8", "replace").decode("utf-8")


def escape(text: str) -> str:
    """`text` as HTML text, safe inside an element and inside a quoted attribute."""
    return html.escape(clean(text), quote=True)


def sentence(text: str) -> str:
    """A sentence of ours as HTML: escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` escaped, with `<mark data-at="start">` around each span; overlapping spans are joined.

    Spans are offsets into `text`, end exclusive; what lies outside of it is cut off.
    """
    pieces: list[str] = []
    done = 0
    for start, end in _joined(spans, len(text)):
        pieces += [escape(text[done:start]), f'<mark data-at="{start}">', escape(text[start:end]), "</mark>"]
        done = end
    return "".join([*pieces, escape(text[done:])])


def _joined(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in sorted((max(0, s), min(length, e)) for s, e in spans):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def answer_html(text: str, cite: Cite) -> str:
    """Markdown of a model as inert HTML; `[2]` and `[1, 3]` become what `cite` gives for each number.

    A number that `cite` does not know stays as it was written.
    """
    return str(_markdown().render(clean(text), {"cite": cite}))


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    # `reference` off: a definition line would vanish from view. `entity` stays on: what it decodes is escaped again.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False})
    parser.enable("table").disable(["image", "reference", "html_block", "html_inline"])
    rules = {"text": _text, "link_open": _link_open, "link_close": _link_close, "fence": _code, "code_block": _code}
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


def _text(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    cite: Cite = env["cite"]

    def link(match: re.Match[str]) -> str:
        numbers = [int(n) for n in re.split(r"\D+", match[1])]
        links = [cite(n) for n in numbers]
        return "".join(found for found in links if found) if any(links) else match[0]

    return _CITATION.sub(link, escape(tokens[index].content))


def _link_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<span class="rt-link">'


def _link_close(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    opened = next(t for t in reversed(tokens[:index]) if t.type == "link_open" and t.level == tokens[index].level)
    address = str(opened.attrGet("href") or "")
    shown = "".join(t.content for t in tokens[tokens.index(opened) + 1 : index])
    return "</span>" if shown == address else f" <code>{escape(address)}</code></span>"


def _code(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f"<pre><code>{escape(tokens[index].content)}</code></pre>\n"
