"""`Document` → atoms: the pieces that chunks are made of, each with its size, its section and the cost of a cut behind.

An atom is a sentence, a list item, a table row, a line of code or a heading; one that is too long for any chunk is cut
at white space. Together the atoms hold every character of the document that is not white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rag.sentences import CODE, LINE, PARAGRAPH, ROW, SENTENCE, units
from rag.types import Document

_BREAK = {PARAGRAPH: 0.0, LINE: 0.05, SENTENCE: 0.15, CODE: 0.3, ROW: 0.3}
_BREAK_AFTER_COLON = 0.3  # "The steps are:" stays with the steps
_BREAK_WITHIN_SENTENCE = 0.6
_BREAK_AFTER_HEADING = 1.0
_CROSS_HEADING = 0.5
_CROSS_LEVEL = 0.15  # more for each level that is left
_BREAK_AFTER_BARE_HEADING = 0.2  # a heading directly above its first sub-heading
_CROSS_FROM_BARE_HEADING = 0.1
_SMALL_ATOM = 5.0  # words; smaller neighbours are taken together, which bounds the search

_CJK = "\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_CJK_OR_WORD = re.compile(f"([{_CJK}])|[^\\s{_CJK}]+")
# About one match for one token of the usual subword vocabularies; rather a few too many than too few.
_TOKEN_LIKE = re.compile(f"[{_CJK}]|[^\\W\\d_{_CJK}]{{1,7}}|\\d{{1,2}}|[^\\w\\s]|_")
_RULE = re.compile(r"([^\w\s`|])\1{2,}[ \t]*$", re.MULTILINE)


def count_words(text: str) -> float:
    """White-space separated words; each Chinese, Japanese or Korean character is half a word."""
    if text.isascii():
        return float(len(text.split()))
    return sum(0.5 if cjk else 1.0 for cjk in _CJK_OR_WORD.findall(text))


@dataclass(slots=True)
class Atoms:
    """The pieces that are never cut (unless they alone are too long), as parallel lists for speed."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)  # cost of a border behind the atom
    crossing: list[float] = field(default_factory=list)  # cost of the atom within a chunk that began before it
    sections: list[int] = field(default_factory=list)
    paths: list[tuple[str, ...]] = field(default_factory=list)  # the heading path of each section
    path_tokens: list[float] = field(default_factory=list)

    def add(self, text: str, start: int, end: int, cost: float, crossing: float, section: int) -> None:
        piece = text[start:end]
        self.starts.append(start)
        self.ends.append(end)
        self.words.append(count_words(piece))
        self.tokens.append(float(len(_TOKEN_LIKE.findall(piece))))
        self.breaks.append(cost)
        self.crossing.append(crossing)
        self.sections.append(section)

    def __len__(self) -> int:
        return len(self.starts)


def cut_atoms(document: Document, *, max_words: int, max_tokens: int) -> Atoms:
    """The atoms of a document, none larger than a chunk of `max_words` words and (by estimate) `max_tokens` tokens."""
    return _Cutter(document, max_words, max_tokens).cut()


class _Cutter:
    """One pass over a document; `max_words` and `max_tokens` are those of a chunk."""

    def __init__(self, document: Document, max_words: int, max_tokens: int) -> None:
        self.document = document
        self.text = document.text
        self.max_words = max_words
        self.max_tokens = max_tokens

    def cut(self) -> Atoms:
        atoms = Atoms()
        previous: tuple[str, ...] = ()
        bare = False  # the section before was a heading without a body
        for number, (start, heading_end, end, path) in enumerate(self._sections()):
            atoms.paths.append(self._short_path(path))
            atoms.path_tokens.append(len(_TOKEN_LIKE.findall(" › ".join(atoms.paths[-1]))) + len(atoms.paths[-1]))
            first = len(atoms)
            if heading_end > start:
                self._add_unit(atoms, start, heading_end, _BREAK_AFTER_HEADING, number)
            body = len(atoms)
            for a, b, kind in units(self.text, heading_end, end):
                cost = _BREAK[kind]
                if kind in (PARAGRAPH, LINE) and self.text[b - 1] in ":：":
                    cost = _BREAK_AFTER_COLON
                self._add_unit(atoms, a, b, cost, number)
            if body == len(atoms) > first:
                atoms.breaks[-1] = _BREAK_AFTER_BARE_HEADING
            if first < len(atoms) and heading_end > start:
                left = len(previous) - common_length(previous, path)
                cost = _CROSS_FROM_BARE_HEADING if bare else _CROSS_HEADING + _CROSS_LEVEL * left
                atoms.crossing[first] = cost
            bare = body == len(atoms) > first
            previous = path
        return atoms

    def _add_unit(self, atoms: Atoms, start: int, end: int, cost: float, section: int) -> None:
        """One atom; joined to the atom before when both are tiny; several when it is too long for a chunk."""
        if (
            atoms.sections
            and atoms.sections[-1] == section
            and atoms.words[-1] < _SMALL_ATOM
            and end - atoms.starts[-1] < 100
            and 0 < atoms.breaks[-1] < _BREAK_AFTER_HEADING
            and count_words(self.text[atoms.starts[-1] : end]) <= self.max_words
        ):
            start = atoms.starts[-1]
            for values in (atoms.starts, atoms.ends, atoms.words, atoms.tokens, atoms.breaks, atoms.sections):
                values.pop()
            crossing = atoms.crossing.pop()
            atoms.add(self.text, start, end, cost, crossing, section)
            return
        for a, b in self._pieces(start, end):
            atoms.add(self.text, a, b, cost if b == end else _BREAK_WITHIN_SENTENCE, 0.0, section)

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The unit itself, or parts of it that fit into a chunk, cut at white space where there is any."""
        room = max(8, int(0.7 * self.max_tokens))
        most = 4 * room  # characters
        short = min(room, self.max_words)  # characters that fit whatever they are
        while end - start > most or (end - start > short and self._too_long(start, end, room)):
            cut = start + min(most, max(1, (end - start) // 2))
            space = max(self.text.rfind(" ", start + 1, cut), self.text.rfind("\n", start + 1, cut))
            if space > start + (cut - start) // 2:
                cut = space
            piece_end = cut
            while piece_end > start and self.text[piece_end - 1].isspace():
                piece_end -= 1
            yield from self._pieces(start, piece_end)
            start = cut
            while start < end and self.text[start].isspace():
                start += 1
        if start < end:
            yield start, end

    def _too_long(self, start: int, end: int, room: int) -> bool:
        piece = self.text[start:end]
        return count_words(piece) > self.max_words or len(_TOKEN_LIKE.findall(piece)) > room

    def _sections(self) -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
        """(start, end of the heading line, end, heading path) of each section; the first may have no heading."""
        text, title = self.text, self.document.title
        headings = sorted({h.start: h for h in self.document.headings}.values(), key=lambda h: h.start)
        headings = [h for h in headings if 0 <= h.start < len(text)]
        root = (title,) if title else ()
        first = headings[0].start if headings else len(text)
        if text[:first].strip():
            yield 0, 0, first, root
        stack: list[tuple[int, str]] = []
        for k, heading in enumerate(headings):
            end = headings[k + 1].start if k + 1 < len(headings) else len(text)
            while stack and stack[-1][0] >= heading.level:
                stack.pop()
            stack.append((heading.level, heading.text))
            names = tuple(name for _, name in stack if name)
            same = names and title and names[0].casefold() == title.casefold()
            start = heading.start
            while start < end and text[start].isspace():
                start += 1
            yield start, self._heading_end(start, end), end, names if same else root + names

    def _heading_end(self, start: int, end: int) -> int:
        """The end of the heading line, with the rules above and below it that Markdown and reStructuredText draw."""
        stop = _line_end(self.text, start, end)
        if _RULE.match(self.text, start, stop) and stop < end:  # the rule above the title
            stop = _line_end(self.text, stop + 1, end)
        below = _line_end(self.text, stop + 1, end) if stop < end else stop
        if below > stop and _RULE.match(self.text, stop + 1, below):
            stop = below
        while stop > start and self.text[stop - 1].isspace():
            stop -= 1
        return stop

    def _short_path(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """A path that leaves three quarters of the tokens to the text: long names are cut, then levels left out."""
        room = self.max_tokens // 4
        names = [" ".join(name.split())[:100].strip() for name in path]
        while names and len(_TOKEN_LIKE.findall(" ".join(names))) + 2 * len(names) > room:
            if len(names) > 1:
                del names[1 if len(names) > 2 else 0]
            else:
                words = names[0].split()
                names = [" ".join(words[: len(words) // 2])] if len(words) > 1 else []
        return tuple(names)


def _line_end(text: str, start: int, end: int) -> int:
    found = text.find("\n", start, end)
    return end if found < 0 else found


def common_length(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Length of the common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
