"""Words of a text, and BM25 over them: postings in plain arrays that are merged, not rebuilt, when documents change.

Score of chunk d for query q (the "lucene" variant, Kamphuis et al. 2020, "Which BM25 do you mean?"):

    sum over terms t of q:  count(t, q) · ln(1 + (N − df + 0.5) / (df + 0.5)) · tf / (tf + k1 · (1 − b + b · |d| / avg))

Arrays of n chunks, v terms, z postings: `starts` int64 [v + 1], `rows` int32 [z], `counts` uint16 [z] (capped at 65,535),
`lengths` int32 [n]; posting list t is starts[t]:starts[t + 1], its rows ascend. Terms are sorted by code point.
Collection statistics enter at query time, so adding or removing chunks rewrites no score.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

K1 = 1.2
B = 0.75

# Scripts written without spaces: Han, kana, Hangul, Bopomofo, and Thai, Lao, Myanmar, Khmer.
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035"
    "\u3040-\u30ff\u3100-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Combining marks (accents left after normalisation, Indic vowel signs) belong to the word they stand in.
_MARKS = "\u0300-\u036f\u0900-\u0963\u0966-\u0dff"
_RUN = re.compile(f"([{_NO_SPACES}]+)|((?:(?![{_NO_SPACES}])[\\w{_MARKS}])+)")
_ASCII_WORD = re.compile(r"[a-z0-9_]+")

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to "
    "was will with".split()
)


def tokenize(text: str) -> list[str]:
    """Words of a document or a query, in order: lower-cased, English stop words left out, CJK as overlapping bigrams.

    A run of n > 1 characters of a script without spaces gives its n − 1 bigrams, a single such character itself.
    """
    if text.isascii():
        return [_stem(w) for w in _ASCII_WORD.findall(text.lower()) if w not in STOP_WORDS]
    out: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run, word = match.group(1), match.group(2)
        if word is not None:
            if word not in STOP_WORDS:
                out.append(_stem(word))
        elif len(run) == 1:
            out.append(run)
        else:
            out.extend(run[i : i + 2] for i in range(len(run) - 1))
    return out


def _stem(word: str) -> str:
    return word


@dataclass(frozen=True, slots=True)
class Postings:
    """BM25 postings of n chunks; see the module's docstring for the arrays. `terms` are sorted."""

    terms: list[str]
    starts: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray


def build_postings(texts: Iterable[str]) -> Postings:
    """Postings of the texts, in their order."""
    ids: dict[str, int] = {}
    term_parts: list[int] = []
    counts: list[int] = []
    sizes: list[int] = []
    lengths: list[int] = []
    for text in texts:
        words = Counter(tokenize(text))
        lengths.append(words.total())
        sizes.append(len(words))
        for word, count in words.items():
            term_parts.append(ids.setdefault(word, len(ids)))
            counts.append(min(count, 65_535))
    terms = sorted(ids)
    rank = np.empty(len(terms), np.int64)
    rank[[ids[t] for t in terms]] = np.arange(len(terms))
    of_term = rank[np.asarray(term_parts, np.int64)] if term_parts else np.zeros(0, np.int64)
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return _sorted(terms, of_term, rows, np.asarray(counts, np.uint16), np.asarray(lengths, np.int32))


def _sorted(
    terms: list[str], of_term: np.ndarray, rows: np.ndarray, counts: np.ndarray, lengths: np.ndarray
) -> Postings:
    order = np.lexsort((rows, of_term))
    starts = np.zeros(len(terms) + 1, np.int64)
    np.cumsum(np.bincount(of_term, minlength=len(terms)), out=starts[1:])
    return Postings(terms, starts, rows[order].astype(np.int32), counts[order], lengths)


def merge_postings(old: Postings, old_rows: np.ndarray, new: Postings, new_rows: np.ndarray) -> Postings:
    """Both sets in one numbering: `old_rows[i]` is the new row of old chunk i, −1 where it is gone; `new_rows` likewise.

    Terms that no chunk holds any more disappear, so a deleted document leaves no word behind.
    """
    terms: dict[str, int] = {t: i for i, t in enumerate(old.terms)}
    fresh = np.asarray([terms.setdefault(t, len(terms)) for t in new.terms], np.int64)
    of_term = np.concatenate(
        [np.repeat(np.arange(len(old.terms)), np.diff(old.starts)), np.repeat(fresh, np.diff(new.starts))]
    ).astype(np.int64)
    kept = old_rows[old.rows] if len(old.rows) else np.zeros(0, np.int64)
    added = new_rows[new.rows] if len(new.rows) else np.zeros(0, np.int64)
    rows = np.concatenate([kept, added])
    counts = np.concatenate([old.counts, new.counts])
    alive = rows >= 0
    of_term, rows, counts = of_term[alive], rows[alive], counts[alive]
    used = np.bincount(of_term, minlength=len(terms)) > 0
    names = [t for t, u in zip(terms, used.tolist(), strict=True) if u]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.full(len(terms), -1, np.int64)
    rank[np.flatnonzero(used)[order]] = np.arange(len(order))
    total = int((old_rows >= 0).sum() + (new_rows >= 0).sum())
    lengths = np.zeros(total, np.int32)
    lengths[old_rows[old_rows >= 0]] = old.lengths[old_rows >= 0]
    lengths[new_rows[new_rows >= 0]] = new.lengths[new_rows >= 0]
    return _sorted([names[i] for i in order], rank[of_term], rows.astype(np.int32), counts, lengths)


class Bm25:
    """BM25 search over postings. Safe to use from several threads."""

    def __init__(self, postings: Postings, *, k1: float = K1, b: float = B) -> None:
        self.postings = postings
        n = len(postings.lengths)
        mean = float(postings.lengths.mean()) if n else 0.0
        self._norm = (k1 * (1 - b + b * postings.lengths / (mean or 1.0))).astype(np.float32)
        df = np.diff(postings.starts)
        self._idf = np.log1p((n - df + 0.5) / (df + 0.5)).astype(np.float32)
        self._term = {t: i for i, t in enumerate(postings.terms)}

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The best `k` (row, score) with score > 0, best first; equal scores by row."""
        p = self.postings
        scores = np.zeros(len(p.lengths), np.float32)
        for word, weight in Counter(tokenize(query)).items():
            term = self._term.get(word)
            if term is not None:
                span = slice(p.starts[term], p.starts[term + 1])
                rows, tf = p.rows[span], p.counts[span]
                scores[rows] += (weight * self._idf[term]) * tf / (tf + self._norm[rows])
        return top(scores, k)


def top(scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The best `k` (position, score) with score > 0; equal scores by position."""
    hits = np.flatnonzero(scores > 0)
    if len(hits) > k > 0:
        # the k-th best value, then all that reach it: ties at the edge are decided by position, not by the partition
        edge = np.partition(scores[hits], len(hits) - k)[len(hits) - k]
        hits = hits[scores[hits] >= edge]
    order = np.lexsort((hits, -scores[hits]))[:k]
    best = hits[order]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))


def terms_blob(terms: Sequence[str]) -> bytes:
    """Terms as a text file, one on a line (no term holds a line end)."""
    return "\n".join(terms).encode("utf-8", "surrogatepass")


def terms_from(blob: bytes) -> list[str]:
    """The inverse of `terms_blob`."""
    text = blob.decode("utf-8", "surrogatepass")
    return text.split("\n") if text else []
