"""`ragtune tune --recipe retriever` and its kin, and `ragtune reencode`: the retriever's half on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.console import Console, duration, table
from apps.serving import STARTER, make_retriever
from rag.errors import EncoderMismatch, QuestionsError
from rag.types import Question

if TYPE_CHECKING:
    from rag.evaluate import Evaluation
    from rag.index import Index
    from rag.protocols import Encoder
    from tuning.retriever import RetrieverReport

DEPTH = 50
"""Passages found for each question when retrieval is measured: ten documents, as several chunks of one count once."""
MODES = ("dense", "hybrid")
METRICS = ("recall@1", "recall@5", "ndcg@10", "mrr")
_STAGES = {"examples": "making examples", "judge": "asking the model", "train": "training"}


def tune_retriever(
    index: Path,
    *,
    questions: Sequence[Question],
    test: Sequence[Question],
    out: Path,
    recipe: str,
    epochs: float | None,
    learning_rate: float | None,
    minutes: float | None,
    restart: bool,
    dry_run: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Train the retriever of an index; with `test` retrieval is measured before and after, dense alone and hybrid.

    Raises QuestionsError where training questions stand in the test set, and lists them.
    """
    from rag.index import Index
    from tuning.recipes import retriever_recipe
    from tuning.retriever import amend_retriever_record, make_examples, train_retriever
    from tuning.retriever_rows import Corpus

    refuse_leaks(questions, test)
    given: dict[str, Any] = {"num_train_epochs": epochs, "learning_rate": learning_rate, "max_minutes": minutes}
    config = replace(retriever_recipe(recipe), seed=seed, **{k: v for k, v in given.items() if v is not None})
    opened = Index.open(index)
    name = encoder or opened.manifest.encoder
    if dry_run:
        examples = make_examples(Corpus(opened.snapshot), questions, config)
        return _dry_run(len(examples), recipe, config, name, out, console)
    teacher = None
    if config.objective != "contrastive":
        console.progress("loading the generator", 0, 0, generator or STARTER)
        teacher = serving.load_generator(generator or STARTER)
    report = train_retriever(
        opened.snapshot,
        questions,
        encoder=name,
        out=out,
        config=config,
        recipe=recipe,
        generator=teacher,
        cache=preferences(out),
        progress=lambda stage, *state: console.progress(_STAGES.get(stage, stage), *state),
        resume=not restart,
        record={"index": str(index.resolve())},
    )
    measured = measure(index, name, report, test, seed, console) if test else {}
    if measured:
        amend_retriever_record(
            out, **{side: {m: v["mean"] for m, v in measured[side].items()} for side in ("before", "after")}
        )
    payload = {
        "encoder": str(out),
        "kind": report.kind,
        "examples": report.examples,
        "origins": dict(report.origins),
        "seconds": round(report.seconds, 1),
        "loss": list(report.loss),
        "steps": report.steps,
        "planned_steps": report.planned_steps,
        "resumed": report.resumed,
        "reused": report.reused,
        "before": measured.get("before"),
        "after": measured.get("after"),
        "difference": measured.get("difference"),
    }
    console.result(payload, lambda p: _show(p, report, index))
    return 0


def preferences(out: Path) -> Path:
    """Where the language model's judgements are kept: beside the folder, so that a second run asks nothing again."""
    return out.with_name(f"{out.name}.preferences.jsonl")


def refuse_leaks(train: Sequence[Question], test: Sequence[Question]) -> None:
    """QuestionsError, listing the questions of `test` that stand in `train`, word for word or nearly."""
    from agents.checks import leakage

    leak = leakage(train, test)
    found = [*leak.same, *leak.near]
    if found:
        raise QuestionsError(
            f"{len(found)} of the {len(test)} test questions stand in the training questions: {', '.join(found)}. "
            "A retriever that was trained on a question says nothing about new ones: take them out of one of the files."
        )


def _dry_run(examples: int, recipe: str, config: Any, name: str, out: Path, console: Console) -> int:
    from tuning.retriever_trainer import plan_batches

    steps = len(plan_batches(examples, config.batch_size, config.num_train_epochs, config.seed))
    payload = {"dry_run": True, "encoder": str(out), "examples": examples, "steps": steps}
    console.result(
        payload,
        lambda _: (
            f"would train {name} by {recipe} on {examples} examples in {steps} steps "
            f"({'both sides' if config.sides == 'both' else 'query side'}), into {out}"
        ),
    )
    return 0


def measure(
    index: Path, name: str, report: RetrieverReport, test: Sequence[Question], seed: int, console: Console
) -> dict[str, Any]:
    """Retrieval of the held-out questions before and after: {"before", "after", "difference"}, keys "dense recall@1" ….

    An encoder of both sides is measured on a copy of the index that is embedded with it, and thrown away afterwards.
    """
    import shutil
    import tempfile

    from rag.index import Index, reencode
    from rag.query_encoder import QUERY, load_query_encoder

    base = serving.load_encoder(name)
    before = {mode: _found(Index.open(index, base), mode, test, seed) for mode in MODES}
    if report.kind == QUERY:
        tuned = Index.open(index, base)
        tuned.encoder = load_query_encoder(report.folder, base)
        after = {mode: _found(tuned, mode, test, seed) for mode in MODES}
        return _compared(before, after, test, seed)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / "index"
        shutil.copytree(index, copy, ignore=shutil.ignore_patterns("lock", "journal.bin"))
        both = serving.load_encoder(str(report.folder.resolve()))
        reencode(copy, both, progress=lambda _, *state: console.progress("embedding with the new encoder", *state))
        after = {mode: _found(Index.open(copy, both), mode, test, seed) for mode in MODES}
        return _compared(before, after, test, seed)


def _found(index: Index, mode: str, test: Sequence[Question], seed: int) -> Evaluation:
    from rag.evaluate import evaluate_retrieval

    rankings = make_retriever(index, k=None, mode=mode).search_many([q.question for q in test], DEPTH)
    return evaluate_retrieval(rankings, test, seed=seed)


def _compared(
    before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], test: Sequence[Question], seed: int
) -> dict[str, Any]:
    from rag.statistics import paired_bootstrap

    judged = [i for i, q in enumerate(test) if q.evidence]
    out: dict[str, Any] = {"before": {}, "after": {}, "difference": {}}
    for mode in MODES:
        for metric in METRICS:
            key = f"{mode} {metric}"
            for side, found in (("before", before[mode]), ("after", after[mode])):
                interval = found.summary[metric]
                out[side][key] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            if judged:
                clusters = [before[mode].clusters[i] for i in judged]
                new, old = (found[mode].scores(metric)[judged] for found in (after, before))
                gain = paired_bootstrap(new, old, clusters=clusters, seed=seed)
                out["difference"][key] = {"mean": gain.mean, "low": gain.low, "high": gain.high}
    return out


def _show(payload: Mapping[str, Any], report: RetrieverReport, index: Path) -> str:
    from rag.query_encoder import QUERY

    told = ", ".join(f"{count} {name}" for name, count in payload["origins"].items())
    lines = [
        f"{payload['encoder']}: " + ("already there, nothing was done" if report.reused else
        f"{payload['examples']} examples ({told}), {payload['steps']} steps in {duration(report.seconds)}, "
        f"loss {payload['loss'][0]:.3f} → {payload['loss'][-1]:.3f}")
    ]  # fmt: skip
    if payload["difference"]:
        rows = [("retrieval", "before", "after", "difference (95 %)")]
        for key, gain in payload["difference"].items():
            was, now = payload["before"][key]["mean"], payload["after"][key]["mean"]
            shown = f"{100 * gain['mean']:+.1f} points ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            rows.append((key, f"{was:.3f}", f"{now:.3f}", shown))
        lines.append(table(rows))
    else:
        lines.append("Give --test FILE to see what it does on questions it was not trained on.")
    lines.append(
        f"Use it: ragtune search {index} QUERY --query-encoder {payload['encoder']}"
        if report.kind == QUERY
        else f"Use it: ragtune reencode {index} --encoder {payload['encoder']}"
    )
    return "\n".join(lines)


def reencode(index: Path, *, encoder: str | None, console: Console) -> int:
    """Embed all documents of an index with another encoder; until it is done the index serves as it was."""
    from rag.index import reencode as embed_again
    from rag.query_encoder import QUERY, RECORD, read_query_folder

    assert encoder is not None, "a required option"
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        if (folder / RECORD).is_file() and read_query_folder(folder).kind == QUERY:
            raise EncoderMismatch(
                f"{folder} is a query encoder: it belongs in front of documents as they are. Give it with "
                "--query-encoder to search, ask, evaluate or decide."
            )
        encoder = str(folder.resolve())  # the index keeps this name, and is opened from elsewhere
    console.progress("loading the encoder", 0, 0, encoder)
    model: Encoder = serving.load_encoder(encoder)
    report = embed_again(index, model, progress=lambda _, *state: console.progress("embedding", *state))
    payload = {
        "index": str(index),
        "encoder": encoder,
        "documents": report.documents,
        "chunks": report.chunks,
        "embedded": report.embedded,
        "seconds": round(report.seconds, 3),
    }
    console.result(
        payload,
        lambda p: (
            f"{p['index']}: {p['chunks']} chunks, {p['embedded']} embedded with {p['encoder']} in "
            f"{duration(report.seconds)}"
        ),
    )
    return 0
