"""The oracle bound: what an arm would answer if retrieval had found the evidence itself."""

from __future__ import annotations

from collections.abc import Sequence

from rag import metrics
from rag.index import Index
from rag.types import Chunk, Passage, Question


def gold_passages(
    index: Index, questions: Sequence[Question], frozen: Sequence[Sequence[Passage]]
) -> list[list[Passage]]:
    """For each question the chunks that hold its evidence, in the place of what retrieval found.

    Of each evidence source: the chunks that the quote touches; without one, those with an answer; else the best-ranked
    chunk of that source. Questions without evidence keep their retrieved passages: nothing better is known.
    """
    by_source: dict[str, list[Chunk]] = {}
    for chunk in index.chunks:
        by_source.setdefault(chunk.source, []).append(chunk)
    out = []
    for question, retrieved in zip(questions, frozen, strict=True):
        gold: dict[str, Chunk] = {}
        for evidence in question.evidence:
            chunks = by_source.get(evidence.source, [])
            if not chunks:
                continue
            at = index.text(evidence.source).find(evidence.quote) if evidence.quote else -1
            end = at + len(evidence.quote)
            picked = [c for c in chunks if at >= 0 and c.start < end and c.end > at]
            if not picked and evidence.quote:
                picked = [c for c in chunks if metrics.match(c.text, [evidence.quote])]
            if not picked:
                picked = [c for c in chunks if metrics.match(c.text, question.answers)][:1]
            if not picked:
                picked = [p.chunk for p in retrieved if p.chunk.source == evidence.source][:1] or chunks[:1]
            gold.update((chunk.id, chunk) for chunk in picked)
        passages = [Passage(chunk, rank, 1.0 / rank) for rank, chunk in enumerate(gold.values(), start=1)]
        out.append(passages or list(retrieved))
    return out
