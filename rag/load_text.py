"""What all readers share: bytes → clean text, what a reader returns, and the check of a file against its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

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
    if count == 1:
        return "1 character could not be read and was replaced by U+FFFD"
    return f"{count:,} characters could not be read and were replaced by U+FFFD"


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
    controls = sum(data[:65536].count(byte) for byte in (*range(9), *range(14, 27), *range(28, 32)))
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
