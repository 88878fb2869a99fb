"""HTML by a walk over the tree of lxml: what a browser would show, without navigation.

Why not trafilatura: on handbook-like pages (a heading, a paragraph, a small table, another heading) version 2.3 either
drops every heading or flattens the table cells to single lines and takes the navigation for text, depending on the
setting; its first page costs 0.5 s; and beside lxml 6 it cannot be imported without one package more.
"""

from __future__ import annotations

import re
from typing import Any

from rag.errors import LoadError
from rag.load_text import Builder, Parsed, decode, one_line

_SKIP = frozenset({
    "script", "style", "noscript", "template", "svg", "math", "head", "iframe", "object", "embed", "applet",
    "canvas", "audio", "video", "map", "select", "button", "input", "textarea", "datalist", "dialog", "nav",
})  # fmt: skip
_BLOCK = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup",
    "hr", "html", "legend", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot",
    "th", "thead", "tr", "ul",
})  # fmt: skip
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_CHARSET = re.compile(
    rb"""<(?:meta[^>]{0,200}charset|\?xml[^>]{0,100}encoding)\s*=\s*["']?([\w.:-]{2,40})""", re.IGNORECASE
)


def read_html(data: bytes, limit: int) -> Parsed:
    """What a browser would show, without navigation; headings keep their level, tables become rows of "| a | b |"."""
    declared = _CHARSET.search(data[:4096])
    text, warnings = decode(data, declared[1].decode("ascii") if declared else None)
    from lxml import etree, html

    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, no_network=True)
    markup = text.replace("\x00", "\ufffd").encode("utf-8", "replace")
    try:
        root = html.document_fromstring(markup, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise LoadError("contains no text; is the page complete?") from error
    title = one_line(root.findtext(".//title") or "")
    for strict in (True, False):  # a page made of nothing but <footer> or <header> is read, too
        builder = Builder(limit, warnings=list(warnings))
        _Walk(builder, strict=strict).walk(_main_part(root) if strict else root)
        parsed = builder.parsed(title)
        if parsed.text:
            break
    if not parsed.text:
        raise LoadError("contains no text (only scripts or pictures?); save the page as the browser shows it")
    first = next((h.text for h in parsed.headings if h.level == 1), "")
    if first and (not title or first.lower() in title.lower()):  # "Leave policy - Intranet" is called "Leave policy"
        return Parsed(parsed.text, first, (), parsed.headings, parsed.warnings)
    return parsed


def _main_part(root: Any) -> Any:
    """The one <main>, or the one <article>, when it holds most of the text."""
    for tag in ("main", "article"):
        found = list(root.iter(tag))
        if len(found) == 1:
            whole = sum(len(e.text or "") for e in root.iter("p", "li", "td", "th", "pre", "h1", "h2", "h3"))
            inside = sum(len(e.text or "") for e in found[0].iter("p", "li", "td", "th", "pre", "h1", "h2", "h3"))
            if inside >= 0.5 * whole:
                return found[0]
    return root


class _Walk:
    """One pass over the tree, without recursion, that hands blocks of text to a Builder."""

    def __init__(self, builder: Builder, *, strict: bool) -> None:
        self.builder = builder
        self.strict = strict
        self.inline: list[str] = []
        self.prefix = ""
        self.lists: list[int | None] = []  # for each open list the next number, None for bullets
        self.pre = 0

    def walk(self, root: Any) -> None:
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            element, closing = stack.pop()
            if closing:
                self._close(element)
                if element is not root:
                    self._text(element.tail)
            elif not isinstance(element.tag, str) or self._skipped(element):
                if element is not root:
                    self._text(element.tail)
            elif self._open(element):
                stack.append((element, True))
                stack.extend((child, False) for child in reversed(element))
            elif element is not root:
                self._text(element.tail)
        self._flush()

    def _skipped(self, element: Any) -> bool:
        tag = element.tag
        if tag in _SKIP or element.get("hidden") is not None or element.get("aria-hidden") == "true":
            return True
        if _HIDDEN.search(element.get("style", "")):
            return True
        if self.strict and tag in ("footer", "header", "aside"):
            inside = any(parent.tag in ("article", "main") for parent in element.iterancestors())
            return not inside and (tag != "header" or next(element.iter("h1"), None) is None)
        return bool(element.get("role") in ("navigation", "search"))

    def _open(self, element: Any) -> bool:
        """Handles the start of an element; False when it has been dealt with whole."""
        tag = element.tag
        if tag in _BLOCK:
            self._flush()
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.builder.heading(_flat(element), int(tag[1]))
            return False
        if tag == "table" and (rows := _html_rows(element)):
            self.builder.block("\n".join(rows))
            return False
        if tag == "br":
            self.inline.append("\n")
        elif tag in ("ul", "ol", "dl"):
            self.lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            number = self.lists[-1] if self.lists else None
            self.prefix = "  " * (max(1, len(self.lists)) - 1) + ("- " if number is None else f"{number}. ")
            if number is not None:
                self.lists[-1] = number + 1
        elif tag == "pre":
            self.pre += 1
        self._text(element.text)
        return True

    def _close(self, element: Any) -> None:
        tag = element.tag
        if tag in _BLOCK:
            self._flush()
        if tag in ("ul", "ol", "dl") and self.lists:
            self.lists.pop()
            if not self.lists:
                self.builder.add("\n" if self.builder.parts else "")
        elif tag == "pre":
            self.pre -= 1
        elif tag == "li":
            self.prefix = ""

    def _text(self, text: str | None) -> None:
        if text:
            self.inline.append(text if self.pre else re.sub(r"\s+", " ", text))

    def _flush(self) -> None:
        text = "".join(self.inline)
        self.inline = []
        if not self.pre:
            text = "\n".join(line for line in map(one_line, text.split("\n")) if line)
        if text.strip():
            self.builder.block(self.prefix + text, end="\n" if self.lists else "\n\n")
            self.prefix = ""


def _flat(element: Any) -> str:
    """All text below an element on one line, without what is hidden or a permalink sign."""
    pieces = []
    for node in element.iter():
        if isinstance(node.tag, str) and not any(a.tag in _SKIP for a in (node, *node.iterancestors())):
            pieces.append(node.text or "")
        if node is not element:
            pieces.append((" " if node.tag in _BLOCK or node.tag == "br" else "") + (node.tail or ""))
    return one_line("".join(pieces)).rstrip("¶#\u200b").strip()


def _html_rows(table: Any) -> list[str]:
    """The rows of a data table; nothing for a table that only lays out a page."""
    if next(table.iter("h1", "h2", "h3", "h4"), None) is not None or any(t is not table for t in table.iter("table")):
        return []
    rows = []
    for row in table.iter("tr"):
        cells = [_flat(cell) for cell in row if cell.tag in ("td", "th")]
        if any(cells):
            rows.append("| " + " | ".join(cells) + " |")
            if len(rows) == 1:
                rows.append("|" + " --- |" * len(cells))
    if rows and max(row.count(" | ") for row in rows) == 0:
        return []  # one column: a frame around text
    caption = table.find("caption")
    return ([_flat(caption)] if caption is not None and _flat(caption) else []) + rows
