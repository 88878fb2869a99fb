"""From a question to ranked passages: dense and lexical search, their fusion, an optional reranker; frozen retrievals.

Every passage keeps the score of each stage that saw it. Ties are broken by row, so equal inputs give equal output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from rag.errors import ConfigError, NumericalError, UsageError
from rag.index import Index
from rag.protocols import Reranker
from rag.query_encoder import query_fingerprint
from rag.snapshot import Snapshot
from rag.types import Passage, Scores, content_hash, passage_from_dict, to_dict
from rag.vectors import Hits

Mode: TypeAlias = Literal["hybrid", "dense", "lexical"]
Fusion: TypeAlias = Literal["minmax", "rrf"]
RRF_K = 60


@dataclass(frozen=True, slots=True)
class RetrievalConfig:
    """How passages are found.

    `k`: passages returned. `candidates`: how many each half proposes, and how many a reranker reads. `fusion`: "minmax"
    averages the scores of both halves after scaling each to [0, 1]; "rrf" is reciprocal rank fusion (Cormack et al.
    2009). `reranker`: name of a cross-encoder, or None.
    """

    k: int = 5
    candidates: int = 100
    mode: Mode = "hybrid"
    fusion: Fusion = "minmax"
    reranker: str | None = None

    def __post_init__(self) -> None:
        for name in ("k", "candidates"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number from 1.")
        for name, kind in (("mode", Mode), ("fusion", Fusion)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(get_args(kind))}.")


class Retriever:
    """Searches an index. Follows commits of other writers: each call answers from the newest generation, and from one.

    `reranker` is the loaded model for `config.reranker`; by name alone it is loaded at the first search.
    """

    def __init__(
        self, index: Index, config: RetrievalConfig = RetrievalConfig(), *, reranker: Reranker | None = None
    ) -> None:
        self.index = index
        self.config = config
        self._reranker = reranker

    def search(self, query: str, k: int | None = None) -> list[Passage]:
        """The best `k` passages (default: of the config). UsageError for an empty query."""
        return self.search_many([query], k)[0]

    def search_many(
        self, queries: Sequence[str], k: int | None = None, *, vectors: np.ndarray | None = None
    ) -> list[list[Passage]]:
        """As `search` for each query; the queries are encoded together. `vectors` are what `Index.embed_queries` gave
        for them, for a caller that has it already."""
        for i, query in enumerate(queries):
            if not query.strip():
                raise UsageError(f"Question {i + 1} is empty. Write what you want to know.")
        if not queries:
            return []
        self.index.refresh()
        return self._search(self.index.snapshot, queries, k or self.config.k, vectors)

    def _search(
        self, snapshot: Snapshot, queries: Sequence[str], k: int, vectors: np.ndarray | None
    ) -> list[list[Passage]]:
        pool = max(self.config.candidates, k)
        none: list[Hits] = [[] for _ in queries]
        if self.config.mode == "lexical":
            vectors = None
        elif vectors is None:
            vectors = self.index.embed_queries(queries)
        dense = none if vectors is None else snapshot.dense(vectors, pool)
        out = []
        for i, query in enumerate(queries):
            lexical, scores = ([], None) if self.config.mode == "dense" else snapshot.lexical_scores(query, pool)
            rows = np.unique(np.asarray([row for row, _ in (*dense[i], *lexical)], np.int64))
            if vectors is not None and scores is not None and self.config.fusion == "minmax":
                # what one half did not propose it scores, too: missing means "not in the top", not "zero"
                halves = snapshot.vectors[rows] @ vectors[i], scores[rows]
            else:
                halves = _aligned(rows, dense[i]), _aligned(rows, lexical)
            out.append(self._passages(snapshot, query, rows, *halves, k))
        return out

    def _passages(
        self, snapshot: Snapshot, query: str, rows: np.ndarray, dense: np.ndarray, lexical: np.ndarray, k: int
    ) -> list[Passage]:
        """The best `k` of the candidates `rows`; `dense` and `lexical` are their scores, NaN where unknown."""
        hybrid = self.config.mode == "hybrid"
        scores = fuse(rows, [dense, lexical], self.config.fusion) if hybrid else _first_known(dense, lexical)
        fused = scores if hybrid else np.full(len(rows), np.nan)
        order = np.lexsort((rows, -scores))
        reranked = np.full(len(rows), np.nan)
        if self.config.reranker is not None or self._reranker is not None:
            order = order[: self.config.candidates]
            scores = reranked
            reranked[order] = self._rerank(snapshot, query, rows[order])
            order = order[np.lexsort((rows[order], -reranked[order]))]
        passages: list[Passage] = []
        seen: set[str] = set()
        for i in order.tolist():
            chunk = snapshot.chunk_at(int(rows[i]))
            words = " ".join(chunk.text.split()).casefold()
            if words in seen:  # the same words in another place add nothing to what the reader sees
                continue
            seen.add(words)
            stages = Scores(*(_known(stage[i]) for stage in (dense, lexical, fused, reranked)))
            passages.append(Passage(chunk, len(passages) + 1, float(scores[i]), stages))
            if len(passages) == k:
                break
        return passages

    def _rerank(self, snapshot: Snapshot, query: str, rows: np.ndarray) -> np.ndarray:
        if self._reranker is None:
            from rag.models import load_reranker

            assert self.config.reranker is not None
            self._reranker = load_reranker(self.config.reranker)
        texts = [snapshot.chunk_at(row).embedded_text for row in rows.tolist()]
        scores = np.asarray(self._reranker.score(query, texts), np.float64)
        if np.isnan(scores).any():
            raise NumericalError(f"The reranker {self._reranker.name} returned NaN for the question {query[:60]!r}.")
        return scores


def _aligned(rows: np.ndarray, hits: Hits) -> np.ndarray:
    """The scores of sorted `rows`, NaN where `hits` does not hold the row."""
    out = np.full(len(rows), np.nan)
    out[np.searchsorted(rows, [row for row, _ in hits])] = [score for _, score in hits]
    return out


def _first_known(dense: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(dense), lexical, dense)


def _known(score: float) -> float | None:
    return None if score != score else float(score)


def fuse(rows: np.ndarray, halves: Sequence[np.ndarray], fusion: Fusion) -> np.ndarray:
    """One score for each of `rows` from several, each an array aligned with `rows`, NaN where a half lacks the row.

    "minmax": mean over the halves of (s − min) / (max − min), 0 where a half lacks the row. (A half of ties only counts
    1 for each row, or 0 when it found nothing.) "rrf": sum over the halves of 1 / (60 + rank), from 1, ties by row.
    """
    total = np.zeros(len(rows))
    for half in halves:
        known = np.flatnonzero(~np.isnan(half))
        if not len(known):
            continue
        scores = half[known].astype(np.float64)
        if fusion == "rrf":
            order = np.lexsort((rows[known], -scores))
            total[known[order]] += 1 / (RRF_K + np.arange(1, len(order) + 1))
        else:
            low, high = scores.min(), scores.max()
            total[known] += ((scores - low) / (high - low) if high > low else float(high > 0)) / len(halves)
    return total


def freeze(
    retriever: Retriever, questions: Sequence[str], folder: str | os.PathLike[str], k: int
) -> list[list[Passage]]:
    """The passages of each question, from `folder`/retrievals.jsonl where they stand there already, else searched now.

    Keyed by hash(content of the generation, query encoder, retrieval config, k, question), so that every arm of an
    experiment and every training row sees identical retrievals, and none from another index. The file is replaced in
    one step.
    """
    path = Path(folder) / "retrievals.jsonl"
    retriever.index.refresh()
    manifest = retriever.index.manifest
    content = [manifest.fingerprint, *(f"{s}:{record.sha256}" for s, (_, record) in sorted(manifest.files.items()))]
    if tuned := query_fingerprint(retriever.index.encoder):
        content.append(tuned)
    config = json.dumps(asdict(retriever.config), sort_keys=True)
    keys = [content_hash(*content, config, str(k), question) for question in questions]
    stored = _stored(path)
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in stored}
    for (key, question), passages in zip(
        missing.items(), retriever.search_many(list(missing.values()), k), strict=True
    ):
        stored[key] = {"key": key, "question": question, "passages": to_dict(passages)}
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in stored.values())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return [[passage_from_dict(p) for p in stored[key]["passages"]] for key in keys]


def _stored(path: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    if not path.exists():
        return {}
    lines: dict[str, dict] = {}  # type: ignore[type-arg]
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogatepass").split("\n"), 1):
        if not line:
            continue
        try:
            data = json.loads(line)
            lines[data["key"]] = data
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number} is damaged ({error}). Remove the file; it is made again."
            ) from error
    return lines
