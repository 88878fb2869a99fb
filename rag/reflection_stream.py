"""What a Self-RAG model says, as text with tokens in it: read into segments, written from them, and what is trained on.

stream   = block* utility
block    = [No Retrieval] text
         | [Retrieval] <paragraph> title NEWLINE text </paragraph> ([Relevant] text support | [Irrelevant] text)
         | [Continue to Use Evidence] text support?            after a passage
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag.errors import ModelError
from rag.reflection import (
    CLOSE,
    CONTINUE,
    IS_REL,
    IS_SUP,
    IS_USE,
    OPEN,
    RELEVANT,
    RETRIEVAL,
    RETRIEVE,
    TOKENS,
    escape,
)

_SPLIT = re.compile("(" + "|".join(re.escape(token) for token in sorted(TOKENS, key=len, reverse=True)) + ")")


@dataclass(frozen=True, slots=True)
class Part:
    """One block: the Retrieve token, the passage (title, text) or None, IsRel, the segment, and IsSup."""

    retrieve: str
    text: str
    passage: tuple[str, str] | None = None
    relevant: str | None = None
    support: str | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """A whole output; `utility` is 1 to 5, None where the output was cut off before it."""

    parts: tuple[Part, ...]
    utility: int | None = None

    def render(self, reminder: str = "") -> str:
        """The text with its tokens; `reminder`, which is escaped already, ends each passage.

        Passages and segments are escaped, so that only our own tokens are tokens.
        """
        out = []
        for part in self.parts:
            out.append(part.retrieve)
            if part.passage is not None:
                title, text = (escape(piece) for piece in part.passage)
                out += [OPEN, f"{title}\n{text}" if title else text, reminder, CLOSE]
            out += [part.relevant or "", escape(part.text), part.support or ""]
        return "".join(out) + (IS_USE[self.utility - 1] if self.utility else "")

    @property
    def text(self) -> str:
        """The segments alone, joined as prose."""
        return " ".join(part.text.strip() for part in self.parts if part.text.strip())


def pieces(text: str) -> list[str]:
    """The text cut at its tokens: tokens and what stands between them, in order, nothing empty."""
    return [piece for piece in _SPLIT.split(text) if piece]


def parse(text: str, *, strict: bool = True) -> Stream:
    """Read a stream. With `strict` it must be complete and legal; without, what a cut-off output holds is kept.

    Raises ModelError, naming the place, for a stream that is not legal.
    """
    reader = _Reader(pieces(text), strict)
    parts: list[Part] = []
    while reader.next in RETRIEVE:
        parts.append(reader.block(any(part.passage for part in parts)))
    utility = None
    if reader.next in IS_USE:
        utility = IS_USE.index(reader.take()) + 1
    elif strict:
        raise reader.error("one of the utility tokens")
    if reader.next is not None and strict:
        raise reader.error("the end")
    return Stream(tuple(parts), utility)


class _Reader:
    def __init__(self, found: Sequence[str], strict: bool) -> None:
        self._found, self._at, self._strict = found, 0, strict

    @property
    def next(self) -> str | None:
        return self._found[self._at] if self._at < len(self._found) else None

    def take(self) -> str:
        self._at += 1
        return self._found[self._at - 1]

    def error(self, wanted: str) -> ModelError:
        before = "".join(self._found[: self._at])[-60:]
        found = "the end" if self.next is None else repr(self.next[:60])
        return ModelError(f"This is no legal stream: after {before!r} {wanted} was expected, and {found} stands there.")

    def one_of(self, allowed: Sequence[str]) -> str | None:
        if self.next in allowed:
            return self.take()
        if self._strict:
            raise self.error(" or ".join(allowed))
        return None

    def words(self) -> str:
        return self.take() if self.next is not None and self.next not in TOKENS else ""

    def block(self, after_passage: bool) -> Part:
        if self.next == CONTINUE and not after_passage and self._strict:
            raise self.error("a passage before the evidence is used again")
        retrieve = self.take()
        passage, relevant = None, None
        if retrieve == RETRIEVAL:
            if self.one_of((OPEN,)) is None:
                return Part(retrieve, self.words())
            title, found, body = self.words().partition("\n")
            passage = (title, body) if found else ("", title)
            if self.one_of((CLOSE,)) is None:
                return Part(retrieve, "", passage)
            relevant = self.one_of(IS_REL)
        text = self.words()
        support = None
        if relevant == RELEVANT:
            support = self.one_of(IS_SUP)
        elif retrieve == CONTINUE and self.next in IS_SUP:
            support = self.take()
        return Part(retrieve, text, passage, relevant, support)


def masked_spans(ids: Sequence[int], opening: int, closing: int) -> list[tuple[int, int]]:
    """(start, end) of each passage in token ids, both delimiters included, end exclusive: these are not learnt.

    Learning goes on after each closing tag. Raises ModelError for a passage without its closing tag, which would
    silently mask the rest of the row, and for a closing tag without an opening one.
    """
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for at, token in enumerate(ids):
        if token == opening:
            if start is not None:
                raise ModelError(f"The passage that begins at token {start} has no closing tag before the next one.")
            start = at
        elif token == closing:
            if start is None:
                raise ModelError(f"The closing tag at token {at} closes no passage.")
            spans.append((start, at + 1))
            start = None
    if start is not None:
        raise ModelError(f"The passage that begins at token {start} has no closing tag.")
    return spans
