"""Text formats: bytes → text, and where headings stand in plain text, Markdown, reStructuredText, CSV and JSON lines.

Everything here is linear in the size of the input, so it needs no child process; sizes are limited by the caller.
"""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rag.errors import LoadError
from rag.types import Heading

_UNSTORABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_NEWLINES = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_HIGH_LOW = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader found in one file; `rag.load` makes a `Document` of it."""

    text: str
    title: str = ""
    page_starts: tuple[int, ...] = ()
    headings: tuple[Heading, ...] = ()
    warnings: tuple[str, ...] = ()


def clean(text: str) -> tuple[str, int]:
    """Storable text with "\n" newlines, and how many characters were replaced by U+FFFD."""
    text = _NEWLINES.sub("\n", text)
    if text.isascii() and text.isprintable():
        return text, 0
    # JSON and JavaScript write characters beyond the basic plane as two surrogates: together they are one character.
    text = _HIGH_LOW.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _UNSTORABLE.subn("\ufffd", text)


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


@dataclass(slots=True)
class Builder:
    """Puts a text together piece by piece and notes where headings and pages begin in it."""

    limit: int
    parts: list[str] = field(default_factory=list)
    length: int = 0
    replaced: int = 0
    headings: list[Heading] = field(default_factory=list)
    page_starts: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Appends text as it is, after cleaning. LoadError when the document grows beyond the limit."""
        cleaned, replaced = clean(text)
        self.parts.append(cleaned)
        self.length += len(cleaned)
        self.replaced += replaced
        if self.length > self.limit:
            raise too_long(self.limit)

    def block(self, text: str, end: str = "\n\n") -> None:
        """Appends a paragraph without surrounding newlines, if there is anything in it."""
        text = text.strip("\n").rstrip()
        if text:
            self.add(text + end)

    def heading(self, text: str, level: int) -> None:
        """Appends a heading as a line of its own."""
        text, replaced = clean(one_line(text))
        self.replaced += replaced
        if text:
            self.headings.append(Heading(self.length, max(1, min(9, level)), text))
            self.add(text + "\n\n")

    def page(self) -> None:
        """The next page begins here."""
        self.page_starts.append(self.length)

    def parsed(self, title: str = "") -> Parsed:
        """The whole; trailing white space is dropped, which moves no offset."""
        text = "".join(self.parts).rstrip()
        warnings = list(self.warnings)
        if self.replaced:
            warnings.append(replacement_warning(self.replaced))
        starts = tuple(min(start, len(text)) for start in self.page_starts)
        return Parsed(text, clean(one_line(title))[0], starts, tuple(self.headings), tuple(warnings))


def replacement_warning(count: int) -> str:
    """The sentence for characters that were lost."""
    return f"{count:,} character{'s' if count != 1 else ''} could not be read and {'were' if count != 1 else 'was'} replaced by U+FFFD"


def too_long(limit: int) -> LoadError:
    """The error for a text beyond the limit."""
    return LoadError(f"has more than {limit:,} characters of text; split it, or raise max_characters of LoadConfig")


# --- bytes ------------------------------------------------------------------------------------------------------------

_MAGIC = (
    (b"%PDF-", "a PDF", ".pdf"),
    (b"PK\x03\x04", "a ZIP archive (DOCX, XLSX, EPUB or similar)", ".docx if it is a Word file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Microsoft Office file", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"\x1f\x8b", "a gzip archive", ""),
    (b"7z\xbc\xaf", "a 7-Zip archive", ""),
    (b"Rar!", "a RAR archive", ""),
    (b"\x7fELF", "a program", ""),
    (b"MZ\x90", "a program", ""),
    (b"SQLite format 3", "an SQLite database", ""),
)


def check_kind(suffix: str, data: bytes) -> None:
    """LoadError when the first bytes say that the file is not what its ending says."""
    if suffix == ".pdf":
        if b"%PDF-" not in data[:1024]:
            raise LoadError(
                f"is called {suffix} but is {_kind(data)}: it does not begin with %PDF-; rename or re-export it"
            )
        return
    if suffix == ".docx":
        if data.startswith(b"\xd0\xcf\x11\xe0"):
            if "EncryptedPackage".encode("utf-16-le") in data:
                raise LoadError("is encrypted with a password; save a copy without the password")
            raise LoadError("is an old Word file (.doc) under the name .docx; open it and save it as .docx")
        if not data.startswith(b"PK\x03\x04"):
            raise LoadError(f"is called {suffix} but is {_kind(data)}: it is not a ZIP archive; rename or re-export it")
        return
    for magic, kind, ending in _MAGIC:
        if data.startswith(magic):
            advice = f"rename it to {ending}" if ending else "convert it to text, PDF or DOCX"
            raise LoadError(f"is called {suffix} but is {kind}; {advice}")


def _kind(data: bytes) -> str:
    for magic, kind, _ in _MAGIC:
        if data.startswith(magic):
            return kind
    head = data[:200].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page (.html)"
    return "something else"


def decode(data: bytes, declared: str | None = None) -> tuple[str, list[str]]:
    """Bytes as text, and warnings. Order: byte order mark, `declared`, UTF-8, UTF-16 by its zero bytes, a guess.

    Raises:
        LoadError: the bytes are no text.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"),
                           (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):  # fmt: skip
        if data.startswith(mark):
            return _decoded(data[3:] if encoding == "utf-8" else data, encoding)
    zeros = data[:65536].count(0)
    if zeros:
        sample = data[: min(len(data), 65536) & ~1]
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        for lead, trail, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
            if lead > 0.3 * len(sample) / 2 and trail < 0.05 * len(sample) / 2:
                text, warnings = _decoded(data, encoding)
                return text, [f"has no byte order mark; read as {encoding.upper()}", *warnings]
    controls = sum(data[:65536].count(byte) for byte in (*range(0, 9), *range(14, 27), *range(28, 32)))
    if controls > max(8, 0.02 * min(len(data), 65536)):
        raise LoadError("is not text: it contains binary data; convert it to text, PDF or DOCX, or leave it out")
    if declared is not None:
        try:
            return data.decode(declared), []
        except (UnicodeDecodeError, LookupError, ValueError):
            pass  # the declaration is wrong or unknown: what follows looks at the bytes themselves
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        return _guess(data)


def _decoded(data: bytes, encoding: str) -> tuple[str, list[str]]:
    text = data.decode(encoding, "replace")
    replaced = text.count("\ufffd")
    return text.removeprefix("\ufeff"), [replacement_warning(replaced)] if replaced else []


def _guess(data: bytes) -> tuple[str, list[str]]:
    """Damaged UTF-8, or another encoding: whichever leaves less to replace."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = len(re.findall(rb"[\xc2-\xf4][\x80-\xbf]+", data[:1_000_000]))
    if whole > broken:
        return text, [f"is not valid UTF-8: {replacement_warning(broken)}"]
    import charset_normalizer

    # The guess is made on the part around the first byte that is not ASCII, so that its time has a bound.
    first = re.search(rb"[\x80-\xff]", data)
    start = max(0, (first.start() if first else 0) - 2000)
    best = charset_normalizer.from_bytes(data[start : start + 64_000]).best()
    encoding = best.encoding if best is not None else "cp1252"
    text = data.decode(encoding, "replace")
    replaced = text.count("\ufffd")
    lost = f"; {replacement_warning(replaced)}" if replaced else ""
    return text, [f"is not UTF-8; read as {encoding}{lost}: save it as UTF-8 if characters look wrong"]


# --- formats ----------------------------------------------------------------------------------------------------------


def parse(kind: str, data: bytes, *, tsv: bool = False, limit: int) -> Parsed:
    """Reads one text format: "text", "markdown", "rst", "csv" or "jsonl"."""
    if len(data) > 4 * limit:  # at most 4 bytes are one character, so it cannot fit
        raise too_long(limit)
    raw, warnings = decode(data)
    if len(raw) > limit:
        raise too_long(limit)
    text, replaced = clean(raw)
    if kind in ("csv", "jsonl"):
        builder = Builder(limit, warnings=warnings, replaced=replaced)
        _csv(text, builder, tsv=tsv) if kind == "csv" else _jsonl(text, builder)
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
        if not label[0].isalnum() and len(set(label)) == 1:
            continue  # two rules in a row
        over = i >= 2 and rows[i - 2][1].rstrip() == rule
        if not over and i >= 2 and rows[i - 2][1].strip():
            continue  # the last line of a paragraph or a table, not a title
        style = rule[0] + ("over" if over else "")
        if style not in styles:
            styles.append(style)
        start = rows[i - 2][0] if over else rows[i - 1][0]
        headings.append(Heading(start, styles.index(style) + 1, one_line(re.sub(r":\w+:|`+|\*+", "", label))))
    return "", headings


_csv_lock = threading.Lock()  # the field limit of the csv module is one for the whole process


def _csv(text: str, builder: Builder, *, tsv: bool) -> None:
    """One line for each row, "header: value; header: value", so that each row says on its own what its values are."""
    delimiter = "\t" if tsv else _delimiter(text)
    with _csv_lock:
        before = csv.field_size_limit(builder.limit)
        try:
            rows = [[one_line(cell) for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
        except csv.Error as error:
            raise LoadError(f"is not readable as a table: {error}; export it anew as UTF-8 CSV") from error
        finally:
            csv.field_size_limit(before)
    rows = [row for row in rows if any(row)]
    if not rows:
        return
    header: list[str] = []
    if len(rows) > 1 and _is_header(rows[0]):
        header, rows = rows[0], rows[1:]
    for row in rows:
        cells = []
        for i, value in enumerate(row):
            name = (
                header[i]
                if i < len(header) and header[i]
                else ("" if not header and len(row) == 1 else f"column {i + 1}")
            )
            if value:
                cells.append(f"{name}: {value}" if name else value)
        builder.block("; ".join(cells), end="\n")


def _delimiter(text: str) -> str:
    """The candidate that cuts the first lines into the same number of fields, more than one; comma in doubt."""
    lines = [line for line in text[:20_000].split("\n")[:20] if line.strip()]
    best, fields = ",", 1
    for candidate in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines[: max(1, len(lines) - 1)], delimiter=candidate)]
        if counts and min(counts) == max(counts) > fields:
            best, fields = candidate, counts[0]
    return best


def _is_header(row: list[str]) -> bool:
    """Names, not values: every cell differs from the others and none is a number."""
    filled = [cell for cell in row if cell]
    return len(set(filled)) == len(filled) and not any(re.fullmatch(r"[-+]?[\d.,\s%]+", cell) for cell in filled)


_TEXT_KEYS = ("text", "content", "contents", "body", "passage", "document")
_TITLE_KEYS = ("title", "heading", "name")


def _jsonl(text: str, builder: Builder) -> None:
    """Each record: its title as a heading, then its text; without a text field, all its plain fields as "key: value"."""
    records, broken = 0, []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            broken.append(number)
            continue
        if not isinstance(record, dict):
            record = {"text": record} if isinstance(record, str) else {}
        records += _record(record, builder)
    if not records:
        reason = f"line {broken[0]} is not valid JSON" if broken else "no line has a field with text"
        raise LoadError(f"has no readable record: {reason}; each line must be one JSON object with a text field")
    if broken:
        builder.warnings.append(
            f"{len(broken):,} of {len(broken) + records:,} lines are not valid JSON and were left out; the first is line {broken[0]}"
        )


def _record(record: dict[str, Any], builder: Builder) -> bool:
    body = next((key for key in _TEXT_KEYS if isinstance(record.get(key), str) and record[key].strip()), None)
    title = next((key for key in _TITLE_KEYS if isinstance(record.get(key), str) and record[key].strip()), None)
    before = builder.length
    if title and body:
        builder.heading(record[title][:300], 1)
    if body:
        builder.block(record[body])
    else:
        plain = {k: v for k, v in record.items() if isinstance(v, (str, int, float)) and str(v).strip()}
        builder.block("\n".join(f"{key}: {one_line(str(value))}" for key, value in plain.items()))
    return builder.length > before
