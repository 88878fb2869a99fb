"""Plain text, Markdown and reStructuredText: the text as it stands, and where its headings are.

Time is linear in the size of the input, so that no child process is needed; sizes are limited by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rag.load_text import Builder, Parsed, clean, decode, one_line, replacement_warning, too_long
from rag.types import Heading


def parse(kind: str, data: bytes, *, tsv: bool = False, limit: int) -> Parsed:
    """Reads one text format: "text", "markdown", "rst", "csv" or "jsonl"."""
    if len(data) > 4 * limit:  # at most 4 bytes are one character, so it cannot fit
        raise too_long(limit)
    raw, warnings = decode(data)
    if len(raw) > limit:
        raise too_long(limit)
    text, replaced = clean(raw)
    if kind in ("csv", "jsonl"):
        from rag import load_records

        builder = Builder(limit, warnings=warnings, replaced=replaced)
        if kind == "csv":
            load_records.read_csv(text, builder, tsv=tsv)
        else:
            load_records.read_jsonl(text, builder)
        return builder.parsed()
    if replaced:
        warnings.append(replacement_warning(replaced))
    text = text.rstrip()
    title, headings = {"markdown": markdown_headings, "rst": rst_headings}.get(kind, lambda _: ("", []))(text)
    return Parsed(text, title, (), tuple(headings), tuple(warnings))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(offset, line without its newline)."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, text[start:end]
        start = end + 1


_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_FENCE = re.compile(r"[ >]*(`{3,}|~{3,})")
_LINK = re.compile(r"!?\[([^\[\]]{0,300})\]\([^()]{0,500}\)")
_TAG = re.compile(r"<[^<>]{0,300}>")


def markdown_headings(text: str) -> tuple[str, list[Heading]]:
    """(title of the front matter or "", headings) of Markdown: `#` and underlined ones, none inside code fences."""
    headings: list[Heading] = []
    title, fence, front = "", "", False
    before: tuple[int, str] | None = None  # the line before, while it may still be underlined
    blank = True  # the line before was empty
    for start, line in _lines(text):
        if front or (start == 0 and line.strip() == "---" and "\n---" in text[3:4000]):
            if start and line.strip() in ("---", "..."):
                front = False
            else:
                front = True
                if line.startswith("title:"):
                    title = line[6:].strip().strip("\"'")
            continue
        after_blank, blank = blank, not line.strip()
        if len(line) > 500:
            before = None
            continue
        mark = _FENCE.match(line)
        if mark and (not fence or (mark[1][0] == fence[0] and len(mark[1]) >= len(fence))):
            fence = "" if fence else mark[1]
            before = None
            continue
        if fence:
            continue
        bare = line.lstrip("> ") if line.startswith(">") else line
        if match := _ATX.match(bare):
            label = plain_markdown((match[2] or "").rstrip(" \t#"))
            if label:
                headings.append(Heading(start, len(match[1]), label))
            before = None
        elif before and re.fullmatch(r" {0,3}(=+|-+)[ \t]*", line):
            headings.append(Heading(before[0], 1 if "=" in line else 2, plain_markdown(before[1])))
            before = None
        else:
            usable = line.strip() and not line.startswith(("    ", "\t", "|", "-", "*", "+", ">"))
            # Only a paragraph of one line is taken as underlined: longer ones are prose above a rule far more often.
            before = (start, line) if usable and after_blank else None
    return title, headings


def plain_markdown(text: str) -> str:
    """A heading without emphasis, links, tags and attributes."""
    text = re.sub(r"\{[#.:][^{}]{0,200}\}", "", text)
    text = _TAG.sub("", _LINK.sub(r"\1", text))
    text = re.sub(r"`+|\*\*|__|(?<!\w)[*_]|[*_](?!\w)", "", text)
    return one_line(re.sub(r"\\([\\`*_{}\[\]()#+.!<>-])", r"\1", text))


def rst_headings(text: str) -> tuple[str, list[Heading]]:
    """("", headings) of reStructuredText; the level of an adornment is its order of first use, as docutils has it."""
    headings: list[Heading] = []
    styles: list[str] = []
    rows = list(_lines(text))
    for i in range(1, len(rows)):
        rule = rows[i][1].rstrip()
        label = rows[i - 1][1].strip()
        if len(rule) < 3 or rule[0].isalnum() or rule[0].isspace() or len(set(rule)) != 1:
            continue
        if not label or len(label) > len(rule) + label.count("\u3000") + sum(ord(c) > 0x2E80 for c in label):
            continue
        if label[0] in "|+" or (not label[0].isalnum() and len(set(label)) == 1):
            continue  # the edge of a table, or two rules in a row
        over = i >= 2 and rows[i - 2][1].rstrip() == rule
        if not over and i >= 2 and rows[i - 2][1].strip():
            continue  # the last line of a paragraph or a table, not a title
        style = rule[0] + ("over" if over else "")
        if style not in styles:
            styles.append(style)
        start = rows[i - 2][0] if over else rows[i - 1][0]
        headings.append(Heading(start, styles.index(style) + 1, one_line(re.sub(r":\w+:|`+|\*+", "", label))))
    return "", headings
