"""Makes the PDF and DOCX files of the handbook from their Markdown in `sources/`.

    python samples/handbook/build.py            writes them into documents/
    python samples/handbook/build.py --check    exits 1 when a committed file differs from what its source gives

`sources/<folder>/<name>.pdf.md` becomes `documents/<folder>/<name>.pdf`, and `.docx.md` becomes `.docx`. The same
source gives the same bytes: dates and ids are fixed. Needs reportlab and python-docx.
"""

from __future__ import annotations

import argparse
import datetime
import io
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "sources"
DOCUMENTS = HERE / "documents"
STAMP = datetime.datetime(2024, 9, 2, 8, 0, 0)
AUTHOR = "Kellavoe Cooperative"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the Markdown subset used here: `kind` is heading, paragraph, list, numbered or table."""

    kind: str
    lines: tuple[str, ...]
    level: int = 0

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table, without the line of dashes under its head."""
        cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in self.lines]
        return [row for row in cells if not all(set(cell) <= set("-:") for cell in row)]


def _kind(line: str) -> str:
    if line.startswith("#"):
        return "heading"
    if line.startswith("|"):
        return "table"
    if line.startswith("- "):
        return "list"
    head, dot, _ = line.partition(". ")
    return "numbered" if dot and head.isdigit() else "paragraph"


def blocks(text: str) -> Iterator[Block]:
    """Headings, paragraphs (one line each), bullet and numbered lists, tables; blank lines separate."""
    group: list[str] = []
    kind = ""
    for line in [*text.splitlines(), ""]:
        now = _kind(line) if line.strip() else ""
        if group and (now != kind or kind in ("heading", "paragraph")):
            yield _block(kind, group)
            group = []
        if now:
            group.append(line)
        kind = now


def _block(kind: str, lines: list[str]) -> Block:
    if kind == "heading":
        marks, _, title = lines[0].partition(" ")
        return Block(kind, (title.strip(),), len(marks))
    if kind == "list":
        return Block(kind, tuple(line[2:].strip() for line in lines))
    if kind == "numbered":
        return Block(kind, tuple(line.partition(". ")[2].strip() for line in lines))
    return Block(kind, tuple(line.strip() for line in lines))


def make_pdf(text: str) -> bytes:
    """A4 pages in Helvetica with a page number at the foot; `invariant` fixes the dates and the file id."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import KeepTogether, ListFlowable, Paragraph, SimpleDocTemplate, Spacer, Table

    styles = getSampleStyleSheet()
    body = ParagraphStyle("body", parent=styles["BodyText"], fontSize=10.5, leading=15)
    story: list[Any] = []
    title = ""
    for block in blocks(text):
        texts = [escape(line) for line in block.lines]
        if block.kind == "heading":
            title = title or block.lines[0]
            story.append(Paragraph(texts[0], styles[f"Heading{min(block.level, 4)}"]))
        elif block.kind == "table":
            rows = [[Paragraph(escape(cell), body) for cell in row] for row in block.rows]
            whole, head = ((0, 0), (-1, -1)), ((0, 0), (-1, 0))
            grid = [
                ("GRID", *whole, 0.4, colors.grey),
                ("VALIGN", *whole, "TOP"),
                ("BACKGROUND", *head, colors.whitesmoke),
            ]
            story += [Table(rows, style=grid, repeatRows=1), Spacer(1, 4 * mm)]
        elif block.kind in ("list", "numbered"):
            bullet = "bullet" if block.kind == "list" else "1"
            story.append(ListFlowable([Paragraph(line, body) for line in texts], bulletType=bullet, leftIndent=14))
        else:
            story.append(KeepTogether([Paragraph(texts[0], body)]))  # no sentence runs over the foot of a page

    def foot(canvas: Any, document: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawCentredString(A4[0] / 2, 12 * mm, f"{AUTHOR} - page {document.page}")

    out = io.BytesIO()
    margins = {f"{side}Margin": 22 * mm for side in ("left", "right", "top", "bottom")}
    template = SimpleDocTemplate(out, pagesize=A4, title=title, author=AUTHOR, invariant=1, **margins)
    template.build(story, onFirstPage=foot, onLaterPages=foot)
    return out.getvalue()


def make_docx(text: str) -> bytes:
    """A Word file with real heading, list and table styles; the zip is repacked with fixed times."""
    import docx

    document = docx.Document()
    title = ""
    for block in blocks(text):
        if block.kind == "heading":
            title = title or block.lines[0]
            document.add_heading(block.lines[0], level=block.level)
        elif block.kind == "table":
            rows = block.rows
            table = document.add_table(rows=len(rows), cols=len(rows[0]), style="Table Grid")
            for cells, row in zip(table.rows, rows, strict=True):
                for cell, value in zip(cells.cells, row, strict=True):
                    cell.text = value
        elif block.kind in ("list", "numbered"):
            for line in block.lines:
                document.add_paragraph(line, style="List Bullet" if block.kind == "list" else "List Number")
        else:
            document.add_paragraph(block.lines[0])
    properties = document.core_properties
    properties.title, properties.author, properties.last_modified_by = title, AUTHOR, AUTHOR
    properties.created = properties.modified = STAMP
    properties.comments = ""
    loose = io.BytesIO()
    document.save(loose)
    return _repack(loose)


def _repack(loose: io.BytesIO) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(loose) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in sorted(old.namelist(), key=lambda name: (name != "[Content_Types].xml", name)):
            info = zipfile.ZipInfo(name, STAMP.timetuple()[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            new.writestr(info, old.read(name))
    return out.getvalue()


def build() -> dict[Path, bytes]:
    """Every binary document by its path."""
    made: dict[Path, bytes] = {}
    for source in sorted(SOURCES.rglob("*.md")):
        target = DOCUMENTS / source.relative_to(SOURCES).with_suffix("")
        make = {".pdf": make_pdf, ".docx": make_docx}[target.suffix]
        made[target] = make(source.read_text(encoding="utf-8"))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the PDF and DOCX files of the handbook.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a committed file differs")
    check = parser.parse_args().check
    made = build()
    stale = [path for path, data in made.items() if not path.is_file() or path.read_bytes() != data]
    for path in stale:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[path])
        print(("differs: " if check else "wrote ") + path.relative_to(HERE).as_posix())
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
