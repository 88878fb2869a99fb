"""From a citation marker to the sentence in the source that supports it.

A marker is a claim by the model; this module carries it to a span a person can open, and says how well the span
supports the sentence. Where a model wrote no markers (small models answer in a few words) the answer is looked for in
the passages it was given, and cited where it stands: a citation is a place that was found, never only asserted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rapidfuzz import fuzz

from rag.chunk import sentences
from rag.prompt import Parsed, strip_markers
from rag.types import Citation, Passage

_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_STOP = frozenset(
    "a an and are as at be by for from had has have he her his in is it its of on or she that".split()  # noqa: SIM905
) | {"the", "their", "they", "this", "to", "was", "were", "which", "who", "will", "with", "what", "when", "where"}
ALIGNED = 85.0
"""rapidfuzz partial ratio (0-100) from which an answer without markers counts as standing in a passage."""


def content_words(text: str) -> list[str]:
    """Lower-cased words that carry content: no English function words; CJK by character."""
    words: list[str] = []
    for word in _WORD.findall(text.lower()):
        words.extend(_CJK.findall(word))
        rest = _CJK.sub(" ", word).split()
        words.extend(w for w in rest if w not in _STOP)
    return words


def support(claim: str, quote: str) -> float:
    """Share of the claim's content words that stand in the quote, in [0, 1]; 0 for a claim without content words."""
    words = content_words(claim)
    have = set(content_words(quote))
    return sum(word in have for word in words) / len(words) if words else 0.0


def find_quote(claim: str, text: str) -> tuple[int, int]:
    """Span in `text` of the sentence (or of two neighbours) that best supports `claim`."""
    spans = sentences(text) or [(0, len(text))]
    at = text.lower().find(claim.lower().strip(" .。"))
    if at >= 0 and claim.strip():
        end = at + len(claim.strip(" .。"))
        inside = [s for s in spans if s[0] < end and s[1] > at]
        if inside:
            return inside[0][0], inside[-1][1]
    pairs = [(a[0], b[1]) for a, b in pairwise(spans)]
    best = max(spans, key=lambda s: (support(claim, text[s[0] : s[1]]), fuzz.partial_ratio(claim, text[s[0] : s[1]])))
    score = support(claim, text[best[0] : best[1]])
    for pair in pairs:
        if support(claim, text[pair[0] : pair[1]]) > score + 0.25:
            best, score = pair, support(claim, text[pair[0] : pair[1]])
    return best


def citation(number: int, claim: str, passage: Passage) -> Citation:
    """The citation of `claim` in `passage`, with the supporting sentence as quote."""
    chunk = passage.chunk
    start, end = find_quote(claim, chunk.text)
    quote = chunk.text[start:end]
    return Citation(
        number, chunk.id, chunk.source, chunk.page, chunk.start + start, chunk.start + end, quote, support(claim, quote)
    )


def cite(parsed: Parsed, shown: Sequence[Passage], question: str = "") -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with its markers, and one citation for each (marker, sentence).

    Markers belong to the sentence in which they stand; a marker right after a sentence's end belongs to that sentence.
    Without markers, the passage that holds the whole answer is cited (the best-ranked among those whose sentence also
    shares most words with the question); an answer that stands in no passage stays uncited.
    """
    text = parsed.text.strip()
    if not text:
        return text, ()
    by_rank = {p.rank: p for p in shown}
    if parsed.marks:
        return text, tuple(
            citation(number, claim, by_rank[number]) for claim, number in _claims(parsed) if number in by_rank
        )
    found = [
        (p, fuzz.partial_ratio(text.lower(), p.chunk.text.lower())) for p in shown if len(text) <= len(p.chunk.text)
    ]
    good = [(p, ratio) for p, ratio in found if ratio >= ALIGNED]
    if not good:
        return text, ()

    def strength(item: tuple[Passage, float]) -> tuple[float, float, int]:
        passage, ratio = item
        start, end = find_quote(text, passage.chunk.text)
        return ratio >= 99, support(question, passage.chunk.text[start:end]), -passage.rank

    best = max(good, key=strength)[0]
    return f"{text} [{best.rank}]", (citation(best.rank, text, best),)


def _claims(parsed: Parsed) -> list[tuple[str, int]]:
    """(sentence without markers, number) for each marker, in order, without repeats."""
    spans = sentences(parsed.text) or [(0, len(parsed.text))]
    claims: list[tuple[str, int]] = []
    for start, _, number in parsed.marks:
        index = max((i for i, s in enumerate(spans) if s[0] <= start), default=0)
        claim = strip_markers(parsed.text[spans[index][0] : spans[index][1]])
        if not content_words(claim) and index > 0:
            claim = strip_markers(parsed.text[spans[index - 1][0] : spans[index - 1][1]])
        if (claim, number) not in claims:
            claims.append((claim, number))
    return claims
