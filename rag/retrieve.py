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

from rag.errors import ConfigError, NumericalError, UsageError
from rag.index import Index
from rag.protocols import Reranker
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

    def search_many(self, queries: Sequence[str], k: int | None = None) -> list[list[Passage]]:
        """As `search` for each query; the queries are encoded together."""
        for i, query in enumerate(queries):
            if not query.strip():
                raise UsageError(f"Question {i + 1} is empty. Write what you want to know.")
        if not queries:
            return []
        self.index.refresh()
        return self._search(self.index.snapshot, queries, k or self.config.k)

    def _search(self, snapshot: Snapshot, queries: Sequence[str], k: int) -> list[list[Passage]]:
        pool = max(self.config.candidates, k)
        if self.config.mode == "lexical":
            return [self._passages(snapshot, q, [], snapshot.lexical(q, pool), k) for q in queries]
        vectors = self.index.embed_queries(queries)
        dense = snapshot.dense(vectors, pool)
        if self.config.mode == "dense":
            return [self._passages(snapshot, q, hits, [], k) for q, hits in zip(queries, dense, strict=True)]
        out = []
        for query, vector, near in zip(queries, vectors, dense, strict=True):
            lexical, scores = snapshot.lexical_scores(query, pool)
            if self.config.fusion == "minmax":
                # what one half did not propose is scored by it, too: a missing score says "not in the top", not "zero"
                rows = sorted({row for row, _ in near} | {row for row, _ in lexical})
                near = list(zip(rows, (snapshot.vectors[rows] @ vector).tolist(), strict=True))
                lexical = list(zip(rows, scores[rows].tolist(), strict=True))
            out.append(self._passages(snapshot, query, near, lexical, k))
        return out

    def _passages(self, snapshot: Snapshot, query: str, dense: Hits, lexical: Hits, k: int) -> list[Passage]:
        by_dense, by_lexical = dict(dense), dict(lexical)
        fused: dict[int, float] = {}
        if self.config.mode == "hybrid":
            ranked = fuse([dense, lexical], self.config.fusion)
            fused = dict(ranked)
        else:
            ranked = dense or lexical
        reranked: dict[int, float] = {}
        if self.config.reranker is not None or self._reranker is not None:
            ranked = self._rerank(snapshot, query, ranked[: self.config.candidates])
            reranked = dict(ranked)
        passages: list[Passage] = []
        seen: set[str] = set()
        for row, score in ranked:
            chunk = snapshot.chunk_at(row)
            words = " ".join(chunk.text.split()).casefold()
            if words in seen:  # the same words in another place add nothing to what the reader sees
                continue
            seen.add(words)
            scores = Scores(by_dense.get(row), by_lexical.get(row), fused.get(row), reranked.get(row))
            passages.append(Passage(chunk, len(passages) + 1, score, scores))
            if len(passages) == k:
                break
        return passages

    def _rerank(self, snapshot: Snapshot, query: str, ranked: Hits) -> Hits:
        if self._reranker is None:
            from rag.models import load_reranker

            assert self.config.reranker is not None
            self._reranker = load_reranker(self.config.reranker)
        rows = [row for row, _ in ranked]
        scores = self._reranker.score(query, [snapshot.chunk_at(row).embedded_text for row in rows])
        if any(s != s for s in scores):
            raise NumericalError(f"The reranker {self._reranker.name} returned NaN for the question {query[:60]!r}.")
        return sorted(zip(rows, scores, strict=True), key=lambda hit: (-hit[1], hit[0]))


def fuse(halves: Sequence[Hits], fusion: Fusion) -> Hits:
    """One ranking of several, best first, equal scores by row.

    "minmax": mean over the halves of (s − min) / (max − min), 0 where a half does not hold the row. (A half of
    ties only counts 1 for each row, or 0 when it found nothing.) "rrf": sum over the halves of 1 / (60 + rank), rank
    from 1.
    """
    total: dict[int, float] = {}
    for hits in halves:
        if not hits:
            continue
        values = [score for _, score in hits]
        high, low = max(values), min(values)
        ranked = sorted(hits, key=lambda hit: (-hit[1], hit[0])) if fusion == "rrf" else hits
        for rank, (row, score) in enumerate(ranked, 1):
            if fusion == "rrf":
                part = 1 / (RRF_K + rank)
            else:
                scaled = (score - low) / (high - low) if high > low else float(high > 0)
                part = scaled / len(halves)
            total[row] = total.get(row, 0.0) + part
    return sorted(total.items(), key=lambda hit: (-hit[1], hit[0]))


def freeze(
    retriever: Retriever, questions: Sequence[str], folder: str | os.PathLike[str], k: int
) -> list[list[Passage]]:
    """The passages of each question, from `folder`/retrievals.jsonl where they stand there already, else searched now.

    Keyed by hash(content of the generation, retrieval config, k, question), so that every arm of an experiment and
    every training row sees identical retrievals, and none from another index. The file is replaced in one step.
    """
    path = Path(folder) / "retrievals.jsonl"
    retriever.index.refresh()
    manifest = retriever.index.manifest
    content = [manifest.fingerprint, *(f"{s}:{record.sha256}" for s, (_, record) in sorted(manifest.files.items()))]
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
