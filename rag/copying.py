"""Constrained decoding: the output is a run of whole words copied from given texts, or one of a few fixed sentences.

A small model that knows where an answer stands still rambles when it writes freely. Here every step allows only tokens
that continue some span of the texts, and the end of the turn only where a word ends, so the model merely points.
All candidate spans (one for each word start) are rows of arrays; a step is a few numpy operations over them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Scripts written without spaces: every character may begin or end a span.
_DENSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff"  # signs that belong to the letter before
_WORD = rf"(?:[^\W{_DENSE}]|[{_MARKS}])+"
# A unit: a word with inner apostrophes and decimal signs ("don't", "1,000.5", "10:30"), one dense character, one sign.
# The possessive stands apart, because in "Ida Brandt's boat" the answer is often the name.
_UNIT = re.compile(rf"{_WORD}(?:(?:(?<=\d)[.,:](?=\d)|['’](?!s\b)(?=[^\W\d_])){_WORD})*|[{_DENSE}][{_MARKS}]*|[^\s]")
_NO_START = frozenset(".,;:!?)]}”’»、。，；：？！）】」』…")
_NO_END = frozenset("'’,;:([{“‘«、，；：（【「『-–—/&=<>|\\@#~^_")
_CACHE_LIMIT = 200_000


def word_units(text: str) -> list[tuple[int, int]]:
    """Spans of the units of `text` between which a copied span may begin and end."""
    return [match.span() for match in _UNIT.finditer(text)]


@dataclass(frozen=True, slots=True)
class CopyTable:
    """All spans of one text, as arrays; see `SpanTokens.table`.

    A span that starts at row i reads `pieces[i, :piece_len[i]]` (its first words, tokenised as the beginning of an
    output), then `running[next_token[i]:]` (the text's own tokens). `running` ends with -1.
    """

    text: str
    pieces: np.ndarray  # [spans, widest] token ids, -1 behind the end
    piece_len: np.ndarray  # [spans]
    next_token: np.ndarray  # [spans] index into running
    start_char: np.ndarray  # [spans]
    piece_end_char: np.ndarray  # [spans]
    running: np.ndarray  # [tokens + 1]
    running_end_char: np.ndarray  # [tokens + 1] where a span may end behind this token, else -1


class SpanTokens:
    """Makes and keeps the tables of one tokenizer."""

    def __init__(self, tokenizer: Any, barriers: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._barrier = re.compile("|".join(map(re.escape, barriers))) if barriers else None
        self._words: dict[str, list[int]] = {}

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of each piece as the beginning of an output; remembered, since words repeat."""
        new = sorted({piece for piece in pieces if piece not in self._words})
        if len(self._words) + len(new) > _CACHE_LIMIT:
            self._words, new = {}, sorted(set(pieces))
        if new:
            ids = self._tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            self._words.update(zip(new, ids, strict=True))
        return [self._words[piece] for piece in pieces]

    def table(self, text: str, lead: str = "") -> CopyTable:
        """The spans of a text. Needs a fast tokenizer (character offsets). `lead` is what stands before the output: a
        space where the prompt ends in the middle of a line."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        units = word_units(text)
        ends = {end for start, end in units if text[start] not in _NO_END}
        banned = [m.span() for m in self._barrier.finditer(text)] if self._barrier else []
        token_ends = np.array([end for _, end in offsets] + [-1], dtype=np.int64)
        following = np.array([start for start, _ in offsets[1:]] + [len(text)] * 2, dtype=np.int64)[: len(ids) + 1]
        running = np.array([*ids, -1], dtype=np.int64)
        for begin, end in banned:  # words that read like a control token are never copied, nor anything across them
            running[:-1][[s < end and e > begin for s, e in offsets]] = -1
        # A character of several tokens ends only behind the last of them, where the next token starts no earlier.
        is_end = np.array([e in ends for e in token_ends.tolist()], dtype=bool) & (following >= token_ends)
        running_end = np.where(is_end & (running >= 0), token_ends, -1)
        running[_dead(running, running_end)] = -1
        starts = [s for s, _ in units if text[s] not in _NO_START and not any(b <= s < e for b, e in banned)]
        return self._spans(text, starts, offsets, running, running_end, token_ends, lead)

    def _spans(
        self,
        text: str,
        starts: list[int],
        offsets: Any,
        running: np.ndarray,
        running_end: np.ndarray,
        ends: np.ndarray,
        lead: str,
    ) -> CopyTable:
        # The first token that reaches beyond the start, and from there the first token behind which a span may end:
        # everything up to it is tokenised anew, because inside the text it begins with a space.
        covering = np.searchsorted(np.maximum.accumulate(ends[:-1]), np.array(starts, dtype=np.int64), side="right")
        end_tokens = np.flatnonzero(running_end >= 0)
        at = np.searchsorted(end_tokens, covering)
        rows = []
        for start, token, place in zip(starts, covering.tolist(), at.tolist(), strict=True):
            if place < len(end_tokens) and running[token : end_tokens[place] + 1].min() >= 0:
                rows.append((start, int(end_tokens[place])))
        pieces = self.encode([lead + text[start : running_end[last]] for start, last in rows])
        rows = [row for row, piece in zip(rows, pieces, strict=True) if piece]
        pieces = [piece for piece in pieces if piece]
        table = np.full((len(rows), max(map(len, pieces), default=1)), -1, dtype=np.int64)
        for row, piece in zip(table, pieces, strict=True):
            row[: len(piece)] = piece
        last_token = np.array([last for _, last in rows], dtype=np.int64)
        return CopyTable(
            text,
            table,
            np.array([len(piece) for piece in pieces], dtype=np.int64),
            last_token + 1,
            np.array([start for start, _ in rows], dtype=np.int64),
            running_end[last_token] if rows else np.empty(0, dtype=np.int64),
            running,
            running_end,
        )

    def option(self, text: str, lead: str = "") -> CopyTable:
        """A text of which only the whole may be said."""
        (ids,) = self.encode([lead + text])
        one = np.array([len(ids)], dtype=np.int64)
        zero, none = np.zeros(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
        return CopyTable(
            text, np.array([ids], dtype=np.int64).reshape(1, -1), one, zero, zero, np.array([len(text)]), none, none
        )


class CopyState:
    """One output under way: which spans it can still become.

    `text` is the longest whole-word text reached so far (what is kept when the token limit ends the output).
    """

    def __init__(self, tables: Sequence[CopyTable], max_tokens: int) -> None:
        self._texts = [table.text for table in tables]
        width = max((table.pieces.shape[1] for table in tables), default=1)
        shifts = np.cumsum([0, *[len(table.running) for table in tables]])
        stack = [np.pad(t.pieces, ((0, 0), (0, width - t.pieces.shape[1])), constant_values=-1) for t in tables]
        self._pieces = np.concatenate(stack) if stack else np.empty((0, 1), dtype=np.int64)
        self._piece_len = _join([t.piece_len for t in tables])
        self._next = _join([t.next_token + shift for t, shift in zip(tables, shifts, strict=False)])
        self._start = _join([t.start_char for t in tables])
        self._piece_end = _join([t.piece_end_char for t in tables])
        self._owner = np.repeat(np.arange(len(tables)), [len(t.piece_len) for t in tables])
        self._running = _join([t.running for t in tables])
        self._running_end = _join([t.running_end_char for t in tables])
        self._alive = np.flatnonzero(self._piece_len <= max_tokens)
        self._depth = 0
        self.text = ""
        self.kept = 0
        self.can_end = self._alive.size == 0  # nothing can be copied: the only output is the empty one

    def allowed(self) -> np.ndarray:
        """Sorted ids of the tokens that continue some span."""
        following = self._following()
        return np.unique(following[following >= 0])

    def _following(self) -> np.ndarray:
        beyond = self._depth - self._piece_len[self._alive]
        inside = self._pieces[self._alive, min(self._depth, self._pieces.shape[1] - 1)]
        return np.where(beyond < 0, inside, self._running[self._next[self._alive] + np.maximum(beyond, 0)])

    def advance(self, token: int) -> None:
        """Take one of the allowed tokens."""
        self._alive = self._alive[self._following() == token]
        self._depth += 1
        beyond = self._depth - self._piece_len[self._alive]
        behind = self._running_end[self._next[self._alive] + np.maximum(beyond - 1, 0)]
        ends = np.where(beyond == 0, self._piece_end[self._alive], np.where(beyond > 0, behind, -1))
        reached = np.flatnonzero(ends >= 0)
        self.can_end = reached.size > 0
        if self.can_end:
            span = self._alive[reached[0]]
            self.text = self._texts[self._owner[span]][self._start[span] : ends[reached[0]]]
            self.kept = self._depth


def _dead(running: np.ndarray, running_end: np.ndarray) -> np.ndarray:
    """Where no span can end any more (a space before a barrier or at the end): a way into it would not lead out."""
    places = np.arange(len(running))
    none = len(running)
    next_end = np.minimum.accumulate(np.where(running_end >= 0, places, none)[::-1])[::-1]
    next_barrier = np.minimum.accumulate(np.where(running < 0, places, none)[::-1])[::-1]
    return next_barrier <= next_end


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
