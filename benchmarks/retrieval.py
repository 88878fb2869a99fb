"""Dense, lexical and fused retrieval on the shared sets: quality by document, and milliseconds besides encoding.

Each set is made into documents and two question files by the shared `make_task.py`, indexed by `rag.index.sync` with the
default settings and the starter encoder, and searched through `rag.retrieve.Retriever`. A document's score is that of its
best passage. "dev" questions (train.jsonl) chose the defaults; "test" questions are reported. The two never share a
document. Indexing takes minutes for each set; `--work FOLDER` keeps the indexes for the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import shared_folder
from rag.errors import QuestionsError
from rag.index import Index, sync
from rag.metrics import retrieval_metrics
from rag.models import load_encoder
from rag.questions import read_questions
from rag.retrieve import RetrievalConfig, Retriever
from rag.statistics import paired_bootstrap, paired_permutation
from rag.types import Question

SETS = ("qa/squad_v1.1", "ir/scifact", "qa/covidqa_longdoc", "qa/cmrc2018")
DEPTH = 50  # passages per question that documents are ranked from
CONFIGS = {
    "dense": RetrievalConfig(mode="dense"),
    "lexical": RetrievalConfig(mode="lexical"),
    "hybrid, min-max": RetrievalConfig(),
    "hybrid, min-max, 50 candidates": RetrievalConfig(candidates=50),
    "hybrid, min-max, 200 candidates": RetrievalConfig(candidates=200),
    "hybrid, RRF": RetrievalConfig(fusion="rrf"),
}


class Remembering:
    """An encoder that answers a query it has seen from memory, so that every setting sees the same vectors."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[str], *, kind: str = "passage", progress: Any = None) -> np.ndarray:
        if kind == "passage":
            return self._encoder.encode(texts, kind=kind, progress=progress)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new, kind=kind), strict=True))
        return np.stack([self._known[text] for text in texts])


def show_progress(stage: str, done: int, total: int, detail: str) -> None:
    if done == total or done % 256 == 0:
        print(f"\r  {stage} {done}/{total}          ", end="\n" if done == total else "", file=sys.stderr, flush=True)


def prepare(shared: Path, name: str, work: Path, encoder: Any) -> tuple[Index, dict[str, list[Question]]]:
    """The index of one set, and its questions by part."""
    task = work / name.replace("/", "-")
    if not (task / "test.jsonl").exists():
        command = [sys.executable, str(shared / "tools" / "make_task.py"), str(shared / "data" / name), str(task)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    report = sync(task / "index", [task / "corpus"], encoder, progress=show_progress)
    print(f"  {name}: {report.documents} documents, {report.chunks} chunks, {report.seconds:.0f} s", file=sys.stderr)
    parts = {part: usable(task / file) for part, file in (("dev", "train.jsonl"), ("test", "test.jsonl"))}
    return Index.open(task / "index", encoder), parts


def usable(path: Path) -> list[Question]:
    """The questions of a shared file without its broken lines, which are counted aloud."""
    try:
        return read_questions(path)
    except QuestionsError as error:
        questions = read_questions(path, skip_broken=True)
        print(
            f"  {path}: {len(error.problems)} broken lines left out, {len(questions)} questions used", file=sys.stderr
        )
        return questions


def measure(retriever: Retriever, questions: Sequence[Question]) -> tuple[dict[str, np.ndarray], float]:
    """Scores of each question by metric, and the median milliseconds of a search whose query is encoded already."""
    names = ("recall@5", "mrr", "ndcg@10")
    rows: dict[str, list[float]] = {name: [] for name in names}
    seconds = []
    for question in questions:
        if question.unanswerable:
            continue
        started = time.perf_counter()
        retriever.search(question.question)
        seconds.append(time.perf_counter() - started)
        run: dict[str, float] = {}
        for passage in retriever.search(question.question, DEPTH):
            run.setdefault(passage.chunk.source, passage.score)
        scores = retrieval_metrics(run, {e.source: 1 for e in question.evidence})
        for name in names:
            rows[name].append(scores[name])
    return {name: np.asarray(values) for name, values in rows.items()}, 1000 * float(np.median(seconds))


def table(name: str, index: Index, parts: dict[str, list[Question]], limit: int | None) -> None:
    """Print the table of one set."""
    print(f"### {name}: {len(index.sources)} documents, {len(index.chunks)} chunks\n")
    print("| retrieval | " + " | ".join(f"{p} recall@5 | {p} nDCG@10" for p in parts) + " | test MRR | ms per query |")
    print("|---|" + "---|" * (2 * len(parts) + 2))
    index.embed_queries([q.question for part in parts.values() for q in part[:limit]])  # remembered by the encoder
    found: dict[str, dict[str, np.ndarray]] = {}
    for label, config in CONFIGS.items():
        cells = []
        for questions in parts.values():
            scores, milliseconds = measure(Retriever(index, config), questions[:limit])
            cells.append(f"{scores['recall@5'].mean():.3f} | {scores['ndcg@10'].mean():.3f}")
            found[label] = scores  # the last part, "test", stays
        print(f"| {label} | {' | '.join(cells)} | {found[label]['mrr'].mean():.3f} | {milliseconds:.2f} |", flush=True)
    print()
    best = found["hybrid, min-max"]["ndcg@10"]
    for other in ("hybrid, RRF", "dense", "lexical"):
        difference = paired_bootstrap(best, found[other]["ndcg@10"])
        p = paired_permutation(best, found[other]["ndcg@10"])
        print(
            f"min-max minus {other}, test nDCG@10: {difference.mean:+.3f} "
            f"[{difference.low:+.3f}, {difference.high:+.3f}], p = {p:.4f} (n = {len(best)})  "
        )
    print()


@contextlib.contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="*", default=SETS, help="folders below shared/data")
    parser.add_argument("--questions", type=int, help="at most so many of each part")
    parser.add_argument("--work", type=Path, help="folder to keep tasks and indexes in")
    given, _ = parser.parse_known_args()
    shared = shared_folder()
    if shared is None:
        print("The shared data sets were not found: set RAGTUNE_SHARED.", file=sys.stderr)
        return 1
    print("## Retrieval: dense, lexical, fused\n")
    print("Documents ranked by their best passage; starter encoder; milliseconds are medians besides encoding.\n")
    encoder = Remembering(load_encoder())
    with folder(given.work) as work:
        for name in given.sets:
            index, parts = prepare(shared, name, work, encoder)
            table(name, index, parts, given.questions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
