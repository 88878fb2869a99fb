"""DOCX by python-docx: headings, paragraphs, lists and tables in the order of the document."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from rag.errors import LoadError
from rag.load_text import Builder, Parsed, one_line

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
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
            f"unpacks to {unpacked / 1e6:,.0f} MB in {len(members):,} parts from {len(data) / 1e6:,.1f} MB, as "
            "archives do that are made to exhaust memory; if it is genuine, split the document or take out its pictures"
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
        if node.tag in (f"{_W}t", _MATH_TEXT):
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
    """From the outline level, else from the names of Word in several languages and of publishers ("HeadB")."""
    if outline:
        return outline
    if name.replace(" ", "") in ("title", "chaptertitle", "标题", "titel", "titre", "título", "titolo"):
        return 1
    match = re.fullmatch(
        r"(?:heading|head|überschrift|titre|título|titolo|kop|标题|見出し|제목)[ _]?([1-9]|[a-f])", name
    )
    if match is None:
        return None
    return int(match[1]) if match[1].isdigit() else ord(match[1]) - ord("a") + 2
