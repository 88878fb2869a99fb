"""`Document` → `Chunk`s of about 150 words, cut at headings, paragraphs and sentence ends, with exact offsets.

    document.text[chunk.start:chunk.end] == chunk.text
    without overlap, every character that is not white space is in exactly one chunk
    count_tokens(chunk.embedded_text) <= max_tokens: the encoder never cuts anything off

The cuts are those of least total cost, found by dynamic programming over the sentences of the whole document:

    cost of a chunk = ((words − target) / target)²  +  what its end breaks  +  0.5 or more for each heading inside it

so that a long section is cut into even parts at its paragraphs rather than into full ones and a rest, a table that fits
into a chunk stays whole, and a section of a few words joins its neighbour under the same parent, while longer ones stay
apart.

Why not semantic-text-splitter: it packs greedily, so that the rest of each section becomes a chunk of any size (of 112
Markdown files it makes 1,884 chunks, 201 of them below 40 words; here 1,742 and 25); it joins across headings by
Markdown syntax only (the text of HTML, PDF and DOCX has none, but known offsets); it knows nothing of a heading path
that must fit into the same tokens; and it counts tokens several times for each chunk, which takes three times as long.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from rag.atoms import common_length, count_words, cut_atoms
from rag.errors import ConfigError
from rag.sentences import sentences
from rag.types import Chunk, Document, content_hash

__all__ = ["ChunkConfig", "chunk_document", "count_words", "sentences"]

_MIN_TOKENS = 16
_ROUNDS = 3  # of new cuts after counting tokens; what does not fit even then is cut where it stands


_Span: TypeAlias = "tuple[int, int, tuple[str, ...]]"  # start, end, heading path


@dataclass(frozen=True, slots=True)
class ChunkConfig:
    """Sizes in words (white-space separated; a Chinese, Japanese or Korean character is half a word).

    `words` is aimed at, `max_words` never exceeded. `overlap_words` repeats up to so many words of whole sentences from
    the chunk before, within one section.
    """

    words: int = 150
    max_words: int = 180
    overlap_words: int = 0

    def __post_init__(self) -> None:
        for name in ("words", "max_words", "overlap_words"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise ConfigError(f"chunk setting {name} is {getattr(self, name)!r}; it must be a whole number")
        if self.words < 1:
            raise ConfigError(f"chunk setting words is {self.words}; it must be at least 1")
        if self.max_words < self.words:
            raise ConfigError(f"chunk setting max_words is {self.max_words}; it must be at least words ({self.words})")
        if not 0 <= self.overlap_words < self.words:
            raise ConfigError(
                f"chunk setting overlap_words is {self.overlap_words}; it must be from 0 to below words ({self.words})"
            )


def chunk_document(
    document: Document, config: ChunkConfig = ChunkConfig(), *, count_tokens: Callable[[str], int], max_tokens: int
) -> list[Chunk]:
    """The chunks of a document in order.

    Args:
        count_tokens: tokens of a text as the encoder counts them, without special tokens.
        max_tokens: how many of these fit into the encoder.

    Raises:
        ConfigError: `max_tokens` is below 16.
    """
    if max_tokens < _MIN_TOKENS:
        raise ConfigError(f"max_tokens is {max_tokens}; an encoder must take at least {_MIN_TOKENS} tokens")
    return _Chunker(document, config, count_tokens, max_tokens).chunks()


class _Chunker:
    def __init__(
        self, document: Document, config: ChunkConfig, count_tokens: Callable[[str], int], max_tokens: int
    ) -> None:
        self.document = document
        self.text = document.text
        self.config = config
        self.count_tokens = count_tokens
        self.max_tokens = max_tokens
        self.fitting: set[_Span] = set()
        self.atoms = cut_atoms(document, max_words=config.max_words, max_tokens=max_tokens)

    def chunks(self) -> list[Chunk]:
        spans = [span for i, j in self._parts() for span in self._fit(i, j)]
        if self.config.overlap_words:
            first, rest = spans[:1], spans[1:]
            spans = first + [(self._overlapped(start, end, path), end, path) for start, end, path in rest]
        return [self._chunk(*span) for span in spans]

    # --- cuts ---

    def _parts(self) -> list[tuple[int, int]]:
        """The best spans of atoms, by token estimates that are replaced by counts wherever they proved too low."""
        tokens, counted = self.atoms.tokens, set[int]()
        parts = self._partition(0, len(self.atoms), tokens)
        for _ in range(_ROUNDS):
            low = [k for i, j in parts if not self._fits(*self._span(i, j)) for k in range(i, j) if k not in counted]
            if not low:
                break
            for k in low:
                tokens[k] = float(self.count_tokens(self.text[self.atoms.starts[k] : self.atoms.ends[k]]))
            for section in {self.atoms.sections[k] for k in low}:
                self.atoms.path_tokens[section] = float(self.count_tokens(" › ".join(self.atoms.paths[section])))
            counted.update(low)
            parts = self._partition(0, len(self.atoms), tokens)
        return parts

    def _span(self, i: int, j: int) -> _Span:
        """Offsets of the atoms i to j, and the heading path that they have in common."""
        a = self.atoms
        path = self.atoms.paths[a.sections[i]]
        for section in range(a.sections[i] + 1, a.sections[j - 1] + 1):
            path = path[: common_length(path, self.atoms.paths[section])]
        return a.starts[i], a.ends[j - 1], path

    def _partition(
        self, first: int, last: int, tokens: list[float], *, offset: int = 0, whole: bool = True
    ) -> list[tuple[int, int]]:
        """Spans [i, j) of atoms from first to last of least cost. `tokens[k - offset]` belongs to atom k.

        With `whole` False the span that is everything is not allowed: there are at least two.
        """
        a = self.atoms
        words, breaks, crossing = a.words, a.breaks, a.crossing
        target, most, limit = float(self.config.words), float(self.config.max_words), float(self.max_tokens)
        best = [0.0] * (last - first + 1)
        choice = [0] * (last - first)
        for i in range(last - 1, first - 1, -1):
            room = limit - self.atoms.path_tokens[a.sections[i]]
            size = used = crossed = 0.0
            lowest, at = float("inf"), i + 1
            for j in range(i, last):
                size += words[j]
                used += tokens[j - offset]
                if j > i:
                    if size > most or used > room or (not whole and i == first and j == last - 1):
                        break
                    crossed += crossing[j]
                off = (size - target) / target
                cost = off * off + crossed + best[j + 1 - first]
                if j + 1 < last:
                    cost += breaks[j]
                if cost < lowest:
                    lowest, at = cost, j + 1
            best[i - first], choice[i - first] = lowest, at
        spans, i = [], first
        while i < last:
            spans.append((i, choice[i - first]))
            i = choice[i - first]
        return spans

    def _fit(self, i: int, j: int, margin: float = 1.0) -> Iterator[_Span]:
        """The atoms i to j as one chunk, or as several where the encoder's own count says that they do not fit."""
        a = self.atoms
        start, end, path = self._span(i, j)
        if self._fits(start, end, path):
            yield start, end, path
        elif j - i > 1:
            exact = [margin * self.count_tokens(self.text[a.starts[k] : a.ends[k]]) for k in range(i, j)]
            for x, y in self._partition(i, j, exact, offset=i, whole=False):
                yield from self._fit(x, y, margin * 1.1)
        else:
            yield from self._halve(start, end, path)

    def _halve(self, start: int, end: int, path: tuple[str, ...]) -> Iterator[_Span]:
        """Parts of one atom that fit; without the heading path when even a few characters do not fit beside it."""
        if self._fits(start, end, path):
            yield start, end, path
            return
        if path and end - start <= 8:
            yield from self._halve(start, end, path[1:])
            return
        if end - start < 2:
            yield start, end, path
            return
        middle = (start + end) // 2
        space = max(self.text.rfind(" ", start + 1, middle), self.text.rfind("\n", start + 1, middle))
        cut = space if space > start + (end - start) // 4 else middle
        for a, b in ((start, cut), (cut, end)):
            while a < b and self.text[a].isspace():
                a += 1
            while b > a and self.text[b - 1].isspace():
                b -= 1
            if b > a:
                yield from self._halve(a, b, path)

    def _fits(self, start: int, end: int, path: tuple[str, ...]) -> bool:
        if (start, end, path) in self.fitting:
            return True
        embedded = self._chunk(start, end, path).embedded_text
        # No vocabulary makes more tokens than bytes (one more for a leading space that some add): spares the count.
        bytes_at_most = len(embedded) * (1 if embedded.isascii() else 4)
        fits = bytes_at_most < self.max_tokens or self.count_tokens(embedded) <= self.max_tokens
        if fits:
            self.fitting.add((start, end, path))
        return fits

    def _overlapped(self, start: int, end: int, path: tuple[str, ...]) -> int:
        """An earlier start, at a sentence of the same section, within the overlap and all limits."""
        a = self.atoms
        k = bisect_right(a.starts, start) - 1
        if a.starts[k] != start:
            return start  # a part of a long sentence
        words, total, begin = 0.0, count_words(self.text[start:end]), start
        while k > 0 and a.sections[k - 1] == a.sections[k]:
            k -= 1
            words += a.words[k]
            if words > self.config.overlap_words or words + total > self.config.max_words:
                break
            if not self._fits(a.starts[k], end, path):
                break
            begin = a.starts[k]
        return begin

    def _chunk(self, start: int, end: int, path: tuple[str, ...]) -> Chunk:
        document = self.document
        page = max(1, bisect_right(document.page_starts, start)) if document.page_starts else None
        return Chunk(
            id=content_hash(document.id, str(start), str(end)),
            document_id=document.id,
            source=document.source,
            start=start,
            end=end,
            text=self.text[start:end],
            page=page,
            headings=path,
        )
