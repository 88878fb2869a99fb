"""Readers for the formats whose parsers need watching: PDF, DOCX, HTML. Called by `rag.load_worker` in a child process.

HTML is read by a walk over lxml's tree rather than by trafilatura: on handbook-like pages (a heading, a paragraph, a small
table, another heading) trafilatura 2.3 either drops every heading or flattens table cells to single lines and takes the
navigation for text, needs 0.5 s for its first page, and cannot be imported beside lxml 6 without one package more.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rag.errors import LoadError
from rag.load_text import Builder, Parsed, decode, one_line


def parse(kind: str, data: bytes, *, limit: int) -> Parsed:
    """Reads "pdf", "docx" or "html". LoadError with a sentence when that is not possible."""
    return {"pdf": read_pdf, "docx": read_docx, "html": read_html}[kind](data, limit)


# --- PDF --------------------------------------------------------------------------------------------------------------

_SOFT_HYPHEN = re.compile("[\ufffe\x02\u00ad](?:\r?\n)?")  # PDFium marks a word broken at the line end with U+FFFE
_TOC_LIMIT = 5000


def read_pdf(data: bytes, limit: int) -> Parsed:
    """Text page by page in the order of the file; headings from the outline, else from letter sizes."""
    import pypdfium2
    import pypdfium2.raw as pdfium

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise LoadError("is encrypted with a password; save a copy without the password") from error
        raise LoadError(
            "is damaged or only half written: no page can be opened; fetch or export the file anew"
        ) from error
    builder, empty, unreadable = Builder(limit), 0, 0
    sizes: list[list[tuple[float, str]]] = []
    try:
        for number in range(len(document)):
            builder.page()
            try:
                text, lines = _pdf_page(document, number)
            except pypdfium2.PdfiumError:
                unreadable, text, lines = unreadable + 1, "", []
            sizes.append(lines)
            empty += not text.strip()
            builder.block(text)
        pages = len(document)
        outline = _pdf_outline(document)
        title = str(document.get_metadata_value("Title") or "")
    finally:
        document.close()
    if empty == pages:
        raise LoadError(
            f"has {pages} page{'s' if pages != 1 else ''} but no text in it (a scan?); run text recognition (OCR) first, "
            "for example with ocrmypdf"
        )
    if unreadable:
        builder.warnings.append(f"{unreadable} of {pages} pages are damaged and were left out")
    if empty - unreadable > 0:
        builder.warnings.append(f"{empty - unreadable} of {pages} pages have no text (pictures or scans)")
    parsed = builder.parsed(title if _is_title(title) else "")
    found = _place_headings(parsed, outline or _by_size(sizes))
    return Parsed(parsed.text, parsed.title, parsed.page_starts, found, parsed.warnings)


def _is_title(title: str) -> bool:
    """Not what a program wrote by itself: a file name, "untitled", "Microsoft Word - x"."""
    bare = title.strip().lower()
    letters = sum(c.isalpha() for c in bare)
    return 2 * letters > len(bare.replace(" ", "")) and not re.search(
        r"\.\w{2,4}$|^untitled|^microsoft |^\(?(anonymous|unspecified)\)?$", bare
    )


def _pdf_page(document: Any, number: int) -> tuple[str, list[tuple[float, str]]]:
    """Text of a page, and (letter size in points, line) of each of its lines."""
    import pypdfium2.raw as pdfium

    page = document[number]
    try:
        textpage = page.get_textpage()
        try:
            text = textpage.get_text_bounded()
            plain = textpage.get_text_range()
            lines, position = [], 0
            for line in plain.splitlines(keepends=True):
                words = line.strip()
                if words and len(words) <= 200:
                    at = position + line.index(words[0])
                    index = pdfium.FPDFText_GetCharIndexFromTextIndex(textpage.raw, at)
                    size = pdfium.FPDFText_GetFontSize(textpage.raw, index) if index >= 0 else 0.0
                    box = _matrix_scale(textpage.raw, index) if index >= 0 else 1.0
                    lines.append((round(size * box, 1), one_line(_SOFT_HYPHEN.sub("", words))))
                position += len(line)
        finally:
            textpage.close()
    finally:
        page.close()
    return _SOFT_HYPHEN.sub("", text), lines


def _matrix_scale(textpage: Any, index: int) -> float:
    """Many writers set the font size to 1 and scale by the text matrix."""
    import ctypes

    import pypdfium2.raw as pdfium

    matrix = pdfium.FS_MATRIX()
    if not pdfium.FPDFText_GetMatrix(textpage, index, ctypes.byref(matrix)):
        return 1.0
    return float((matrix.c**2 + matrix.d**2) ** 0.5) or 1.0


def _pdf_outline(document: Any) -> list[tuple[int, int, str]]:
    """(page, level, title) of the bookmarks."""
    import pypdfium2

    entries: list[tuple[int, int, str]] = []
    try:
        for bookmark in document.get_toc(max_depth=6):
            destination = bookmark.get_dest()
            page = destination.get_index() if destination else None
            title = one_line(bookmark.get_title() or "")
            if page is not None and title:
                entries.append((page, bookmark.level + 1, title))
            if len(entries) >= _TOC_LIMIT:
                break
    except pypdfium2.PdfiumError:
        return entries  # a damaged outline costs headings, not the document
    return entries


def _by_size(pages: list[list[tuple[float, str]]]) -> list[tuple[int, int, str]]:
    """(page, level, line) of lines set clearly larger than the body; the body is the size of most letters."""
    weight: Counter[float] = Counter()
    for lines in pages:
        for size, line in lines:
            weight[size] += len(line)
    if not weight:
        return []
    body = weight.most_common(1)[0][0]
    larger = sorted((size for size in weight if size >= 1.15 * body), reverse=True)
    if sum(weight[size] for size in larger) > 0.2 * weight.total():
        return []  # a slide deck or a poster: large letters are not headings there
    level = {size: min(i + 1, 6) for i, size in enumerate(larger)}
    return [
        (number, level[size], line)
        for number, lines in enumerate(pages)
        for size, line in lines
        if size in level and len(line) <= 120 and any(c.isalpha() for c in line)
    ]


def _place_headings(parsed: Parsed, entries: list[tuple[int, int, str]]) -> tuple[Any, ...]:
    """Finds each heading on its page after the one before; an outline entry that is not there stands at the page start."""
    from rag.types import Heading

    placed: dict[int, Heading] = {}
    after = 0
    for page, level, title in entries:
        if page >= len(parsed.page_starts):
            continue
        start = parsed.page_starts[page]
        end = parsed.page_starts[page + 1] if page + 1 < len(parsed.page_starts) else len(parsed.text)
        pattern = r"\s*".join(re.escape(word) for word in title.split()[:30])
        match = re.compile(pattern, re.IGNORECASE).search(parsed.text, max(start, min(after, end)), end)
        if match:
            line = parsed.text.rfind("\n", start, match.start()) + 1
            # "2.1 Scope" where the outline says "Scope": the number belongs to the heading.
            begin = max(line, start) if match.start() - max(line, start) <= 12 else match.start()
            after = match.end()
        else:
            begin = start
        if begin < len(parsed.text):
            placed.setdefault(begin, Heading(begin, min(9, level), title))
    return tuple(placed[start] for start in sorted(placed))


# --- DOCX -------------------------------------------------------------------------------------------------------------

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_MAX_MEMBERS = 10_000
_MAX_UNPACKED = 512 * 1024 * 1024
_MAX_RATIO = 200


def read_docx(data: bytes, limit: int) -> Parsed:
    """Paragraphs, headings, lists and tables in the order of the document; text of tracked insertions is kept."""
    _check_archive(data)
    import docx
    from docx.opc.exceptions import OpcError
    from lxml import etree

    try:
        document = docx.Document(io.BytesIO(data))
        body = document.element.body
        title = document.core_properties.title or ""
    except (OpcError, etree.XMLSyntaxError, zipfile.BadZipFile, KeyError, ValueError, AttributeError) as error:
        raise LoadError(
            "is damaged or no Word document; open it in a word processor and save it anew as .docx"
        ) from error
    names = {style.style_id: style.name or "" for style in document.styles if style.style_id}
    outline = {style.style_id: _outline_level(style.element) for style in document.styles if style.style_id}
    builder = Builder(limit)
    for element in _docx_blocks(body):
        if element.tag == f"{_W}tbl":
            builder.block("\n".join(_docx_rows(element)))
            continue
        text = _docx_text(element)
        style = element.find(f"{_W}pPr/{_W}pStyle")
        style_id = style.get(f"{_W}val", "") if style is not None else ""
        name = names.get(style_id, style_id).lower()
        level = _heading_level(name, _outline_level(element) or outline.get(style_id))
        if level and len(text) <= 300:
            if name == "title" and not title:
                title = one_line(text)
            builder.heading(text, level)
        elif element.find(f"{_W}pPr/{_W}numPr") is not None or name.startswith("list"):
            builder.block("- " + one_line(text) if text.strip() else "", end="\n")
        else:
            if builder.parts and text.strip() and builder.parts[-1].startswith("- "):
                builder.add("\n")  # the paragraph after a list
            builder.block(text)
    return builder.parsed(title)


def _check_archive(data: bytes) -> None:
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise LoadError(
            "is damaged or only half written: its ZIP archive cannot be opened; fetch the file anew"
        ) from error
    unpacked = sum(member.file_size for member in members)
    if len(members) > _MAX_MEMBERS or unpacked > _MAX_UNPACKED or unpacked > max(20_000_000, _MAX_RATIO * len(data)):
        raise LoadError(
            f"unpacks to {unpacked / 1e6:,.0f} MB in {len(members):,} parts from {len(data) / 1e6:,.1f} MB, as archives made to "
            "exhaust memory do; if it is genuine, split the document or take out its pictures"
        )
    if any(member.flag_bits & 1 for member in members):
        raise LoadError("is encrypted with a password; save a copy without the password")
    if "[Content_Types].xml" not in {member.filename for member in members}:
        raise LoadError("is a ZIP archive but no Word document; rename it or save it as .docx")


def _docx_blocks(parent: Any) -> Iterator[Any]:
    """Paragraphs and tables in order, also those inside content controls and tracked insertions."""
    for child in parent:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml", f"{_W}moveTo"):
            yield from _docx_blocks(child)


def _docx_text(element: Any) -> str:
    pieces: list[str] = []
    stack = [iter([element])]
    while stack:  # not recursive: a crafted file may nest thousands deep
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        if node.tag == f"{_W}t":
            pieces.append(node.text or "")
        elif node.tag in (f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_W}noBreakHyphen"):
            if node.getparent().tag == f"{_W}r":
                pieces.append({"tab": "\t", "noBreakHyphen": "-"}.get(node.tag[len(_W) :], "\n"))
        elif node.tag not in (_MC_FALLBACK, f"{_W}del", f"{_W}moveFrom"):
            if node.tag == f"{_W}p" and pieces and not pieces[-1].endswith("\n"):
                pieces.append("\n")  # a paragraph within: text box or cell
            stack.append(iter(node))
    return "".join(pieces)


def _docx_rows(table: Any) -> list[str]:
    """Rows as "| a | b |", the first followed by the rule that Markdown puts under a header."""
    rows = []
    for row in table.iter(f"{_W}tr"):
        if row.getparent() is not table and row.getparent().getparent() is not table:
            continue  # a table within a cell: its text is in the cell
        cells = [one_line(_docx_text(cell)) for cell in row.iter(f"{_W}tc") if _owner_row(cell) is row]
        if any(cells):
            rows.append("| " + " | ".join(cells) + " |")
            if len(rows) == 1:
                rows.append("|" + " --- |" * len(cells))
    return rows


def _owner_row(cell: Any) -> Any:
    return next((parent for parent in cell.iterancestors(f"{_W}tr")), None)


def _outline_level(element: Any) -> int | None:
    found = element.find(f"{_W}pPr/{_W}outlineLvl")
    value = found.get(f"{_W}val", "") if found is not None else ""
    return int(value) + 1 if value.isdigit() and int(value) < 9 else None


def _heading_level(name: str, outline: int | None) -> int | None:
    if name == "title":
        return 1
    match = re.fullmatch(r"heading (\d)", name)
    return int(match[1]) if match else outline


# --- HTML -------------------------------------------------------------------------------------------------------------

_SKIP = frozenset(
    "script style noscript template svg math head iframe object embed applet canvas audio video map select button input "
    "textarea datalist dialog nav".split()
)
_BLOCK = frozenset(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 "
    "h5 h6 header hgroup hr html legend li main ol p pre section summary table tbody td tfoot th thead tr ul caption".split()
)
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
    return one_line("".join(pieces)).rstrip("¶#").strip()


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
