"""Words of a text, and BM25 over them: postings in plain arrays that are merged, not rebuilt, when documents change.

Score of chunk d for query q (the "lucene" variant, Kamphuis et al. 2020, "Which BM25 do you mean?"):

    sum over terms t of q:  count(t, q) · ln(1 + (N − df + 0.5) / (df + 0.5)) · tf / (tf + k1 · (1 − b + b · |d| / avg))

Arrays of n chunks, v terms, z postings: `starts` int64 [v + 1], `rows` int32 [z], `counts` uint16 [z] (at most 65,535),
`lengths` int32 [n]; posting list t is starts[t]:starts[t + 1], its rows ascend. Terms are sorted by code point.
Collection statistics enter at query time, so adding or removing chunks rewrites no score.

Why no engine (`benchmarks/lexical.py` has the figures): bm25s builds its scores anew for one changed chunk; tantivy and
SQLite FTS5 commit by themselves, so words and vectors could disagree after a crash, they keep words of deleted
documents until they merge, and FTS5 takes many times longer for queries of several words. These arrays are written in
the same commit as the vectors.

`K1` and `B`, the stop words and the stems are those that were best on the questions set aside for choosing
(`benchmarks/retrieval.py`, "dev"): stems alone are worth 0.02 to 0.04 nDCG@10 to the lexical half.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

K1 = 0.9
B = 0.4

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

# Function words of English, question words among them: they say nothing about where an answer stands.
_STOP_WORDS = """
    a about above after again against all am an and any are aren as at be because been before being below
    between both but by can could couldn d did didn do does doesn doing don down during each few for from
    further had hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn
    it its itself just ll m me more most my myself no nor not now of off on once only or other our ours
    ourselves out over own re s same shan she should shouldn so some such t than that the their theirs them
    themselves then there these they this those through to too under until up ve very was wasn we were weren
    what when where which while who whom whose why will with won would wouldn you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_local = threading.local()


def tokenize(text: str) -> list[str]:
    """Words of a document or a query, in order: lower-cased, English stop words left out, CJK as overlapping bigrams.

    A run of n > 1 characters of a script without spaces gives its n − 1 bigrams, a single such character itself.
    English words are stemmed.
    """
    if text.isascii():
        return _stems([w for w in _ASCII_WORD.findall(text.lower()) if w not in STOP_WORDS])
    out: list[str] = []
    words: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run, word = match.group(1), match.group(2)
        if word is not None:
            if word not in STOP_WORDS:
                words.append(word)
            continue
        out.extend(_stems(words))
        words.clear()
        out.extend(run[i : i + 2] for i in range(max(1, len(run) - 1)))
    return out + _stems(words)


def _stems(words: list[str]) -> list[str]:
    """Snowball's English stems ("leaves", "leaving" → "leav"); words of other languages mostly stay as they are."""
    stemmer = getattr(_local, "stemmer", None)
    if stemmer is None:
        import Stemmer

        stemmer = _local.stemmer = Stemmer.Stemmer("english")  # one for each thread: it keeps a cache
    return stemmer.stemWords(words)


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
    # compact arrays, because a list of Python numbers costs ten times the memory
    of_text, counts, sizes, lengths = array("i"), array("H"), array("i"), array("i")
    for text in texts:
        words = Counter(tokenize(text))
        lengths.append(words.total())
        sizes.append(len(words))
        of_text.extend([ids.setdefault(word, len(ids)) for word in words])
        counts.extend([min(count, 65_535) for count in words.values()])
    terms = sorted(ids)
    rank = np.empty(len(terms), np.int64)
    rank[[ids[t] for t in terms]] = np.arange(len(terms))
    of_term = rank[np.asarray(of_text, np.int64)]
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), np.asarray(sizes, np.int64))
    order = np.argsort(of_term, kind="stable")  # rows ascend already
    return Postings(
        terms,
        _starts(of_term, len(terms)),
        rows[order],
        np.asarray(counts, np.uint16)[order],
        np.asarray(lengths, np.int32),
    )


def _starts(of_term: np.ndarray, terms: int) -> np.ndarray:
    starts = np.zeros(terms + 1, np.int64)
    np.cumsum(np.bincount(of_term, minlength=terms), out=starts[1:])
    return starts


def merge_postings(old: Postings, old_rows: np.ndarray, new: Postings, new_rows: np.ndarray) -> Postings:
    """Both sets in one numbering: `old_rows[i]` is the new row of old chunk i, −1 where it is gone; `new_rows` alike.

    The rows that stay must ascend in both. Terms that no chunk holds any more disappear, so that a deleted document
    leaves no word behind.
    """
    moved, counts, sizes = old_rows.astype(np.int32)[old.rows], old.counts, np.diff(old.starts)
    if len(moved) and (old_rows < 0).any():
        alive = moved >= 0
        sizes = np.add.reduceat(alive, old.starts[:-1], dtype=np.int64)
        moved, counts = moved[alive], counts[alive]
    used = sizes > 0
    names = old.terms if used.all() else [t for t, u in zip(old.terms, used.tolist(), strict=True) if u]
    terms, of_old, of_new = _merge_terms(names, new.terms)
    kept, added = np.zeros(len(terms) + 1, np.int64), np.zeros(len(terms) + 1, np.int64)
    kept[of_old + 1], added[of_new + 1] = sizes[used], np.diff(new.starts)
    kept, added = np.cumsum(kept), np.cumsum(added)
    rows = new_rows[new.rows].astype(np.int32) if len(new.rows) else np.zeros(0, np.int32)
    at = np.repeat(kept[of_new], np.diff(new.starts))  # where the new postings of a term go: among its old ones
    for begin, end, term in zip(new.starts[:-1].tolist(), new.starts[1:].tolist(), of_new.tolist(), strict=True):
        first, last = kept[term], kept[term + 1]
        if first < last:
            at[begin:end] += np.searchsorted(moved[first:last], rows[begin:end])
    lengths = np.zeros(int((old_rows >= 0).sum()) + len(new_rows), np.int32)
    lengths[old_rows[old_rows >= 0]] = old.lengths[old_rows >= 0]
    lengths[new_rows] = new.lengths
    return Postings(terms, kept + added, np.insert(moved, at, rows), np.insert(counts, at, new.counts), lengths)


def _merge_terms(old: list[str], new: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Two sorted lists as one without repetitions, and the places of the terms of each in it."""
    at = [bisect_left(old, term) for term in new]
    known = np.array([i < len(old) and old[i] == term for i, term in zip(at, new, strict=True)], bool)
    gaps = np.asarray(at, np.int64)[~known]  # before which old term each unknown one goes
    terms: list[str] = []
    start = 0
    for gap, term in zip(gaps.tolist(), [t for t, k in zip(new, known.tolist(), strict=True) if not k], strict=True):
        terms += old[start:gap]
        terms.append(term)
        start = gap
    terms += old[start:]
    of_old = np.arange(len(old)) + np.searchsorted(gaps, np.arange(len(old)), side="right")
    of_new = np.asarray(at, np.int64) + np.cumsum(~known) - ~known
    return terms, of_old, of_new


class Bm25:
    """BM25 search over postings. Safe to use from several threads."""

    def __init__(self, postings: Postings, *, k1: float = K1, b: float = B) -> None:
        self.postings = postings
        n = len(postings.lengths)
        mean = float(postings.lengths.mean()) if n else 0.0
        self._norm = (k1 * (1 - b + b * postings.lengths / (mean or 1.0))).astype(np.float32)
        df = np.diff(postings.starts)
        self._idf = np.log1p((n - df + 0.5) / (df + 0.5)).astype(np.float32)

    def scores(self, query: str) -> np.ndarray:
        """The score of every chunk, float32 [n]; 0 where no word of the query stands in it."""
        p = self.postings
        scores = np.zeros(len(p.lengths), np.float32)
        for word, weight in Counter(tokenize(query)).items():
            term = bisect_left(p.terms, word)
            if term < len(p.terms) and p.terms[term] == word:
                span = slice(p.starts[term], p.starts[term + 1])
                rows, tf = p.rows[span], p.counts[span]
                with np.errstate(divide="ignore", invalid="ignore"):  # damaged lengths must not raise here
                    scores[rows] += (weight * self._idf[term]) * tf / (tf + self._norm[rows])
        return scores

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The best `k` (row, score) with score > 0, best first; equal scores by row."""
        return top(self.scores(query), k)


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
