"""Search of unit vectors by inner product: exact through FAISS on the memory-mapped matrix, approximate above a size.

Exact search costs n · d multiplications and reads n · d · 4 bytes per query: milliseconds up to some hundred thousand
rows. Above `EXACT_ROWS` an inverted file with 8-bit codes (FAISS "IVF,SQ8") proposes candidates, which are scored again
exactly, so that scores mean the same on both sides of the switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import IndexCorrupt, NumericalError

EXACT_ROWS = 1_000_000
_PROBED_SHARE = 1 / 32  # of the lists, per query
_OVERSAMPLE = 4  # candidates scored again exactly, per result asked for

Hits = list[tuple[int, float]]


def check_vectors(vectors: np.ndarray, count: int, dimension: int, encoder: str, name: Callable[[int], str]) -> None:
    """NumericalError unless `vectors` is [count, dimension], finite, and no row is zero; `name(i)` names row i."""
    if vectors.shape != (count, dimension):
        raise NumericalError(
            f"The encoder {encoder} returned an array of shape {vectors.shape} for {count} texts; expected "
            f"({count}, {dimension}). Check the model."
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~(np.abs(vectors).max(axis=1, initial=0.0) > 1e-20))
    if len(bad):
        names = ", ".join(dict.fromkeys(name(int(i)) for i in bad[:5]))
        raise NumericalError(
            f"The encoder {encoder} returned NaN, infinite or zero vectors for {len(bad)} of {count} texts ({names}). "
            "Nothing of them was kept. Try dtype float32, or another encoder."
        )


def exact(matrix: np.ndarray, queries: np.ndarray, k: int) -> list[Hits]:
    """The best `k` rows of `matrix` [n, d] for each of `queries` [q, d]; best first, equal scores by row."""
    k = min(k, len(matrix))
    if k <= 0 or not len(queries):
        return [[] for _ in queries]
    import faiss

    scores, rows = faiss.knn(np.ascontiguousarray(queries), matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
    return [_ranked(r, s) for r, s in zip(rows, scores, strict=True)]


def _ranked(rows: np.ndarray, scores: np.ndarray) -> Hits:
    known = rows >= 0
    rows, scores = rows[known], scores[known]
    order = np.lexsort((rows, -scores))
    return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))


class Approximate:
    """An inverted-file index over the rows of a matrix that stays on disk for exact scoring."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def open(cls, path: Path) -> Approximate:
        """Read an index file whose checksum the caller has verified: FAISS trusts the bytes it reads."""
        import faiss

        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise IndexCorrupt(f"{path} is damaged: FAISS cannot read it. Index the documents again.") from error

    @classmethod
    def build(cls, blocks: Iterator[np.ndarray], sample: np.ndarray, *, lists: int) -> Approximate:
        """Cluster `sample` [s, d] into `lists` cells, then add all rows in blocks [b, d]; seeded, so repeatable."""
        import faiss

        dimension = sample.shape[1]
        quantizer = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed, index.cp.min_points_per_centroid = 1234, 1
        index.train(np.ascontiguousarray(sample, np.float32))
        for block in blocks:
            index.add(np.ascontiguousarray(block, np.float32))
        return cls(index)

    def refilled(self, blocks: Iterator[np.ndarray]) -> Approximate:
        """A copy with the same cells and other vectors."""
        import faiss

        index = faiss.clone_index(self._index)
        index.reset()
        for block in blocks:
            index.add(np.ascontiguousarray(block, np.float32))
        return Approximate(index)

    def to_bytes(self) -> memoryview:
        """What `open` reads."""
        import faiss

        return faiss.serialize_index(self._index).data

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return int(self._index.ntotal)

    def search(self, matrix: np.ndarray, queries: np.ndarray, k: int) -> list[Hits]:
        """As `exact`, from the candidates of the probed cells only."""
        import faiss

        probes = max(8, math.ceil(self._index.nlist * _PROBED_SHARE))
        params = faiss.SearchParametersIVF()
        params.nprobe = min(probes, self._index.nlist)
        wanted = min(k * _OVERSAMPLE, len(matrix))
        _, rows = self._index.search(np.ascontiguousarray(queries), wanted, params=params)
        out = []
        for query, found in zip(queries, rows, strict=True):
            candidates = np.sort(found[found >= 0])
            out.append(_ranked(candidates, matrix[candidates] @ query)[:k])
        return out


def lists_for(rows: int) -> int:
    """Number of cells: four times the square root of the rows, FAISS's own advice."""
    return max(1, int(4 * math.sqrt(rows)))
