"""The retriever's half: retrieval before and after training, on held-out documents, and the speed of training.

For each set, task and index as in `benchmarks.retrieval`; the retriever is trained on train.jsonl and measured on
test.jsonl, which share no document, dense alone and hybrid, and on a set it was not trained on (SciFact, all claims).
Differences are paired, intervals over documents.

    python -m benchmarks.retriever --sets qa/covidqa_longdoc --seeds 0 1 2
    python -m benchmarks.retriever_both --seeds 0 1 2       both sides, embedded again for each seed
    python -m benchmarks.retriever_speed          the speed of training alone
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.retriever_training import DEPTH, METRICS, MODES
from benchmarks.bench import shared_folder
from benchmarks.retrieval import folder, prepare
from rag.evaluate import evaluate_retrieval
from rag.index import Index, reencode
from rag.models import load_encoder, load_generator
from rag.query_encoder import QUERY, TunedQueries
from rag.retrieve import RetrievalConfig, Retriever
from rag.statistics import paired_bootstrap, paired_permutation
from rag.types import Question
from tuning.recipes import retriever_recipe
from tuning.retriever import make_examples, train_retriever
from tuning.retriever_rows import Corpus

HELD_OUT = 2000
"""Questions to measure on, where the set has so many: retrieval costs little, and 300 do not tell 3 points."""
SETS = ("qa/squad_v1.1", "qa/covidqa_longdoc")
OTHER = "ir/scifact"
Scores = dict[str, np.ndarray]


def task(shared: Path, name: str, work: Path, encoder: Any) -> tuple[Index, dict[str, list[Question]]]:
    """As `benchmarks.retrieval.prepare`, with more held-out questions."""
    made = work / name.replace("/", "-")
    if not (made / "test.jsonl").exists():
        command = [sys.executable, str(shared / "tools" / "make_task.py"), str(shared / "data" / name), str(made)]
        subprocess.run([*command, "--test", str(HELD_OUT)], check=True, stdout=sys.stderr)
    return prepare(shared, name, work, encoder)


def scores(index: Index, questions: Sequence[Question]) -> Scores:
    """Values of each question by "mode metric"."""
    found = {}
    for mode in MODES:
        retriever = Retriever(index, RetrievalConfig(mode=mode))  # type: ignore[arg-type]
        rankings = retriever.search_many([q.question for q in questions], DEPTH)
        judged = evaluate_retrieval(rankings, questions, resamples=100)
        found |= {f"{mode} {metric}": judged.scores(metric) for metric in METRICS}
    return found


def clusters(questions: Sequence[Question]) -> list[str]:
    return [q.evidence[0].source if q.evidence else q.id for q in questions]


def with_queries(index: Index, tuned: Any) -> Index:
    """The same index asked through another query side."""
    opened = Index.open(index.folder, index.encoder)
    assert index.encoder is not None
    opened.encoder = TunedQueries(index.encoder, tuned, "tuned")
    return opened


def train_once(
    index: Index, train: Sequence[Question], recipe: str, seed: int, work: Path, minutes: float | None
) -> tuple[Path, float, str]:
    """(folder, seconds of its steps, kind) of one training; what is finished in `work` is taken as it is."""
    config = replace(retriever_recipe(recipe), seed=seed, max_minutes=minutes)
    teacher = load_generator() if config.objective != "contrastive" else None
    report = train_retriever(
        index.snapshot, train, encoder="starter", out=work / f"{recipe}-{seed}", config=config, recipe=recipe,
        generator=teacher, cache=work / "preferences.jsonl",
        progress=lambda stage, done, total, detail: print(f"\r  {recipe} {seed}: {stage} {done}/{total} {detail}   ", end="", file=sys.stderr, flush=True),
    )  # fmt: skip
    print(file=sys.stderr)
    return report.folder, report.seconds, report.kind


def row(label: str, before: np.ndarray, after: np.ndarray, groups: Sequence[str], seconds: float) -> str:
    """One line of the table; `after` is [seeds, questions]."""
    gain = paired_bootstrap(after, before, clusters=groups)
    p = paired_permutation(after, before, clusters=groups)
    return (
        f"| {label} | {before.mean():.3f} | {after.mean():.3f} | {100 * gain.mean:+.1f} "
        f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] | {p:.4f} | {seconds:.0f} |"
    )


def one_set(
    name: str,
    index: Index,
    parts: dict[str, list[Question]],
    other: tuple[Index, list[Question]] | None,
    given: argparse.Namespace,
    work: Path,
) -> None:
    """Print the table of one set."""
    test = [q for q in parts["test"] if not q.unanswerable]
    before, groups = scores(index, test), clusters(test)
    also = f", {len(other[1])} of {given.other}" if other is not None else ""
    print(f"### {name}: {len(parts['dev'])} training questions, {len(test)} held out{also}\n")
    print("| recipe, metric | before | after | points (95 %) | p | training, s |\n|---|---|---|---|---|---|")
    for recipe in given.recipes:
        after: list[Scores] = []
        elsewhere: list[Scores] = []
        seconds = []
        for seed in given.seeds:
            made, took, kind = train_once(
                index, parts["dev"], recipe, seed, work / name.replace("/", "-"), given.minutes
            )
            seconds.append(took)
            tuned = load_encoder(str(made))
            if kind == QUERY:
                after.append(scores(with_queries(index, tuned), test))
                if other is not None:
                    elsewhere.append(scores(with_queries(other[0], tuned), other[1]))
            else:
                after.append(scores(reencoded(index, tuned, made), test))
                if other is not None:
                    elsewhere.append(scores(reencoded(other[0], tuned, made), other[1]))
        for key in ("dense recall@1", "dense ndcg@10", "hybrid recall@1", "hybrid ndcg@10"):
            print(
                row(f"{recipe}, {key}", before[key], np.stack([a[key] for a in after]), groups, float(np.mean(seconds)))
            )
        if other is not None:
            was = scores(*other)
            for key in ("dense ndcg@10", "hybrid ndcg@10"):
                label = f"{recipe}, {given.other} {key}"
                print(
                    row(
                        label,
                        was[key],
                        np.stack([e[key] for e in elsewhere]),
                        clusters(other[1]),
                        float(np.mean(seconds)),
                    )
                )
        sys.stdout.flush()
    print()


def reencoded(index: Index, encoder: Any, made: Path) -> Index:
    """A copy of the index beside the trained encoder, embedded with it."""
    import shutil

    copy = made.with_name(f"{made.name}-{index.folder.parent.name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index.folder, copy, ignore=shutil.ignore_patterns("lock", "journal.bin"))
    reencode(copy, encoder)
    return Index.open(copy, encoder)


def speed(index: Index, train: Sequence[Question], steps: int) -> None:
    """Questions a second: ours on both settings, and the library's trainer on the same questions and passages."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from tuning.retriever_trainer import RetrieverTrainer

    corpus = Corpus(index.snapshot)
    size = 16
    base = replace(
        retriever_recipe("retriever-both"),
        corpus_task="none",
        corpus_examples=0,
        batch_size=size,
        dtype="fp32",
        hard_negatives=1,
    )
    examples = make_examples(corpus, train, base)[: steps * size]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for label, config in (
            ("query side (documents frozen)", replace(base, sides="query")),
            ("both sides", replace(base, train_embeddings=True)),
        ):
            trainer = RetrieverTrainer(
                load_encoder("starter", dtype="fp32"), corpus, index.snapshot.vectors, examples, replace(config, save_steps=10_000),
                run_folder=Path(temporary) / "run", identity={},
            )  # fmt: skip
            trainer._mine()
            trainer._prepare = lambda *, first: None  # type: ignore[method-assign]
            run = trainer.train()
            found[label] = len(examples) / run.seconds
            mined = trainer.examples
        rows = [e for e in mined if e.negative]
        data = Dataset.from_dict(
            {
                "anchor": [e.question for e in rows],
                "positive": [corpus.embedded(e.positive[0]) for e in rows],
                "negative": [corpus.embedded(e.negative[0]) for e in rows],
            }
        )
        model = load_encoder("starter", dtype="fp32").model
        args = SentenceTransformerTrainingArguments(
            output_dir=temporary, per_device_train_batch_size=size, num_train_epochs=1, learning_rate=3e-5, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        library = SentenceTransformerTrainer(
            model=model, args=args, train_dataset=data, loss=MultipleNegativesRankingLoss(model)
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # it prints its own figures
            library.train()
        plain = len(rows) / (time.perf_counter() - started)
    print(
        "## Retriever half: speed of training\n\n| trainer | questions a second | against the library |\n|---|---|---|"
    )
    print(f"| sentence-transformers, MultipleNegativesRankingLoss | {plain:.2f} | 1 |")
    for label, value in found.items():
        print(f"| ours, {label} | {value:.2f} | {value / plain:.2f} |")
    print(f"\n{len(rows)} questions with a right and a wrong passage each, batches of {size}, fp32, one process.\n")


def main(
    steps: int = 0, recipes: Sequence[str] = ("retriever",), title: str = "Retriever half: before and after training"
) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retriever", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="*", default=SETS, help="folders below shared/data")
    parser.add_argument("--recipes", nargs="*", default=list(recipes))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help="most minutes of one training")
    parser.add_argument(
        "--other", default=OTHER, help="a set to measure that is not trained on, with all its questions"
    )
    parser.add_argument("--no-other", action="store_true", help="measure no such set")
    parser.add_argument("--speed-steps", type=int, default=steps, help="steps of the speed comparison; 0: none")
    parser.add_argument("--work", type=Path, help="folder to keep tasks, indexes and encoders in")
    given, _ = parser.parse_known_args()
    if given.recipes and not given.no_other and given.other in given.sets:
        parser.error(
            f"{given.other} is among --sets, so it is trained on. Give another --other, or leave it out there."
        )
    shared = shared_folder()
    if shared is None:
        print("The shared data sets were not found: set RAGTUNE_SHARED.", file=sys.stderr)
        return 1
    encoder = load_encoder()
    with folder(given.work) as work:
        if given.recipes:
            print(f"## {title}\n")
            other = None
            if not given.no_other:
                index, parts = task(shared, given.other, work, encoder)
                asked = [*parts["dev"], *parts["test"]]  # nothing is trained on either
                other = index, [q for q in asked if not q.unanswerable]
            for name in given.sets:
                index, parts = task(shared, name, work, encoder)
                one_set(name, index, parts, other, given, work)
        if given.speed_steps:
            index, parts = task(shared, given.sets[-1], work, encoder)
            speed(index, parts["dev"], given.speed_steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
