"""Where sentences and lines end in plain text, for English and languages like it, and for Chinese and Japanese.

A text is cut into runs first: a run is a table row, a line of code, or the wrapped lines of one paragraph or list item.
Prose runs are then cut after . ! ? … (unless an abbreviation, an initial, a number or a lower-case word says otherwise)
and after 。！？. Nothing here backtracks: time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

PARAGRAPH, LINE, ROW, CODE, SENTENCE = "paragraph", "line", "row", "code", "sentence"
"""What ends a unit: a blank line, a newline that is meant, a table row, a line of code, or the end of a sentence."""


class Run(NamedTuple):
    """A stretch without surrounding space; `end_kind` says what kind of border follows it."""

    start: int
    end: int
    prose: bool
    end_kind: str


_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_QUOTED_BLANK = re.compile(r"[ \t]*>[> \t]*\Z")  # the blank line of a Markdown quotation
_WORDLIKE = re.compile(r"\w")
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})")
# A line that begins so is never the continuation of the line before.
_STARTER = re.compile(
    r"[ \t>]*(?:[-*+•‣▪–] |\d{1,3}[.)、] ?|\(?[a-z0-9ivx]{1,4}\) |#{1,6} |\||\[\^|:[\w-]+:|"
    r"[一二三四五六七八九十]{1,3}、)"
)
_KEY = re.compile(r"[ \t]*[^\W\d_][\w /()&.#-]{0,40}[:：]\s*\S")
_CAPITAL = re.compile(r"[ \t>]*[\"'“‘(\[*_`]*[A-Z\d\u00c0-\u00de\u0391-\u03a9\u0410-\u042f\u2e80-\uffef]")
# Possessive, and only from the first of several: a million dots must not be tried from each of them.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]*_`]*+(?=\s)|[。！？｡．]++[”’」』）】》〉"'*]*+""")
_DOTTED = re.compile(r"(?:\w\.)+\w\Z")
_LAST_WORD = re.compile(r"[^\s(\[{\"“‘'/—–*_]+\Z")

_NEVER = frozenset({
    "dr", "mr", "mrs", "ms", "prof", "rev", "hon", "sen", "rep", "gov", "gen", "col", "capt", "lt", "sgt", "st",
    "messrs", "e.g", "i.e", "eg", "ie", "cf", "vs", "viz", "al", "approx", "ca", "resp", "incl", "esp", "jr", "sr",
    "dept", "univ", "assn", "ph.d", "m.sc", "b.sc",
})  # fmt: skip
_BEFORE_NUMBER = frozenset({
    "no", "nos", "fig", "figs", "eq", "eqs", "sec", "secs", "p", "pp", "art", "vol", "vols", "ch", "chap", "ver",
    "ed", "tab", "app", "ref", "nr", "abs",
})  # fmt: skip
_OPENERS = frozenset({
    "the", "a", "an", "it", "he", "she", "we", "they", "you", "i", "this", "that", "these", "those", "in", "on",
    "at", "for", "but", "and", "if", "when", "while", "there", "however", "after", "before", "its", "his", "her",
    "their", "our", "as", "by", "to", "all", "most", "some", "no", "many", "each", "every",
})  # fmt: skip


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence, list item, table row and line of code that holds a letter or a digit."""
    return [(start, end) for start, end, _ in units(text, 0, len(text)) if _WORDLIKE.search(text, start, end)]


def units(text: str, begin: int, end: int) -> Iterator[tuple[int, int, str]]:
    """As `sentences` for a part of the text, each with the kind of its end; together all characters but white space."""
    for run in runs(text, begin, end):
        if not run.prose:
            yield run.start, run.end, run.end_kind
            continue
        start = run.start
        for cut in _sentence_ends(text, run.start, run.end):
            yield start, cut, SENTENCE
            start = cut
            while start < run.end and text[start].isspace():
                start += 1
        if start < run.end:
            yield start, run.end, run.end_kind


def runs(text: str, begin: int, end: int) -> Iterator[Run]:
    """The runs of a part of the text, in order; together all its characters but white space."""
    fence = ""
    for first, last in _blocks(text, begin, end):
        lines = _block_lines(text, first, last)
        if not lines:
            continue
        width = max(stop - start for start, stop in lines)
        open_start: int | None = None  # where the run begins that is not closed yet
        for i, (start, stop) in enumerate(lines):
            line = text[start : min(stop, start + 400)]
            mark = _FENCE.match(line)
            inside = bool(fence) or bool(mark)
            if mark and not fence:
                fence = mark[1]
            elif mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence):
                fence = ""
            row = not inside and line.lstrip().startswith("|")
            if open_start is None:
                open_start = start
            kind: str | None = None
            if i == len(lines) - 1:
                kind = CODE if fence else PARAGRAPH
            elif inside:
                kind = CODE if fence else LINE
            elif row:
                kind = ROW
            else:
                if _QUOTED_BLANK.match(line):
                    kind = PARAGRAPH
                following = text[lines[i + 1][0] : min(lines[i + 1][1], lines[i + 1][0] + 400)]
                if kind is None and _QUOTED_BLANK.match(following):
                    kind = LINE
                if kind is None:
                    if not _hard_break(line, stop - start, following, width):
                        continue
                    kind = LINE
            run = _trimmed(text, open_start, stop)
            open_start = None
            if run:
                yield Run(run[0], run[1], not inside and not row, kind)


def _blocks(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    start = begin
    for blank in _BLANK.finditer(text, begin, end):
        yield start, blank.start()
        start = blank.end()
    yield start, end


def _block_lines(text: str, first: int, last: int) -> list[tuple[int, int]]:
    """(start, end) of the lines of a block that hold anything."""
    lines = []
    start = first
    while start < last:
        stop = text.find("\n", start, last)
        stop = last if stop < 0 else stop
        if not text[start:stop].isspace() and stop > start:
            lines.append((start, stop))
        start = stop + 1
    return lines


def _hard_break(line: str, length: int, following: str, width: int) -> bool:
    """Whether the newline between two lines of prose is meant, rather than where the text was wrapped."""
    if _STARTER.match(following) or _FENCE.match(following):
        return True
    if line.lstrip(" >").startswith("#"):
        return True
    if _KEY.match(following) and (_KEY.match(line) or _CAPITAL.match(following)):
        return True
    if not _CAPITAL.match(following):
        return False
    # The next word would have fitted with much room to spare, so nobody wrapped here.
    word = len(following.split(None, 1)[0])
    return length + 1 + min(word, 20) < 0.7 * width or (width < 30 and word < 30)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if end > start else None


def _sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Offsets just behind each sentence of a prose run that is followed by another."""
    for match in _END.finditer(text, start, end):
        after = match.end()
        while after < end and text[after].isspace():
            after += 1
        if after >= end:
            return
        if match[0][0] in "。！？｡．" or _ends(text, start, match, after):
            yield match.end()


def _ends(text: str, start: int, match: re.Match[str], after: int) -> bool:
    """Whether . ! ? … at this place, followed by more text at `after`, ends the sentence."""
    following = text[after]
    if following.islower():
        return False  # "e.g. this", "Yahoo! was", "said … and"
    if match[0] != ".":
        return True
    found = _LAST_WORD.search(text, max(start, match.start() - 24), match.start())
    word = found[0] if found else ""
    if word.isdigit() and found is not None and found.start() == start:
        return False  # the number of a list item
    lower = word.lower()
    if lower in _NEVER:
        return False
    if lower in _BEFORE_NUMBER and following.isdigit():
        return False
    if len(word) == 1 and word.isalpha() and word != "I":
        return False  # an initial
    if _DOTTED.match(word):  # U.S., p.m.: only a word that usually begins a sentence shows that one ended
        next_word = re.match(r"[A-Za-z]+", text[after : after + 20])
        return bool(next_word and next_word[0].lower() in _OPENERS)
    return True
