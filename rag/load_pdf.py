"""PDF by PDFium: text page by page, headings from the outline or from letter sizes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from rag.errors import LoadError
from rag.load_text import Builder, Parsed, one_line
from rag.types import Heading

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
            f"has {pages} page{'s' if pages != 1 else ''} but no text in it (a scan?); "
            "run text recognition (OCR) first, for example with ocrmypdf"
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


def _place_headings(parsed: Parsed, entries: list[tuple[int, int, str]]) -> tuple[Heading, ...]:
    """Finds each heading on its page, after the one before; one that is not found stands at the start of the page."""
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
