"""Trains the query side, or both sides, of an index's encoder, and leaves a folder that the index can be asked through.

A run that was stopped goes on from its last checkpoint to the same weights; a finished one with the same inputs is
found again. The index on disk is never written here: a query encoder works on it as it is, and an encoder of both sides
takes effect when the documents are embedded with it (`rag.index.reencode`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import EncoderMismatch, UsageError
from rag.query_encoder import BOTH, FORMAT, QUERY, RECORD
from rag.snapshot import Snapshot
from rag.types import Question, content_hash
from tuning import checkpoint
from tuning.interrupt import gentle_interrupt
from tuning.record import library_versions
from tuning.retriever_config import FREE, RetrieverConfig
from tuning.retriever_rows import (
    Corpus,
    Example,
    cloze_examples,
    data_hash,
    halves_examples,
    mix,
    origins,
    question_examples,
    statement_examples,
)

if TYPE_CHECKING:
    from rag.encoder import LocalEncoder
    from rag.protocols import Generator
    from tuning.retriever_trainer import RetrieverTrainer, Run

Progress = Callable[[str, int, int, str], None]
_CHECKED = 8  # chunks that are embedded again to see that the index's vectors are this encoder's
_SAME = 0.98  # cosine; bf16 against fp32 gives 0.999


@dataclass(frozen=True, slots=True)
class RetrieverReport:
    """What a run did. `loss` of each step in nats; `origins` counts the examples by where they come from."""

    folder: Path
    kind: str
    examples: int
    origins: Mapping[str, int]
    seconds: float
    loss: tuple[float, ...]
    steps: int
    planned_steps: int
    resumed: int | None = None
    reused: bool = False


def make_examples(corpus: Corpus, questions: Sequence[Question], config: RetrieverConfig) -> list[Example]:
    """The examples of a run: labelled questions, and the corpus task mixed in.

    Raises TrainingError where no question can be used.
    """
    taught = config.objective != "contrastive"
    labelled = question_examples(corpus, questions, need_gold=not taught)
    if taught:
        labelled = [e for e in labelled if e.answers] or labelled[:0]
    if config.corpus_task == "none" or not config.corpus_examples:
        return labelled
    make = {"cloze": cloze_examples, "halves": halves_examples, "statements": statement_examples}[config.corpus_task]
    made = make(corpus, config.corpus_examples, seed=config.seed)
    if not taught:  # labelled questions are worth more than made ones: all of them, and no more of the others
        made = made[: round(len(labelled) * config.corpus_share / (1 - config.corpus_share))]
        return mix(labelled, made, len(made) / (len(made) + len(labelled)), seed=config.seed)
    return mix(labelled, made, config.corpus_share, seed=config.seed)


def train_retriever(
    snapshot: Snapshot,
    questions: Sequence[Question],
    *,
    encoder: str,
    out: Path | str,
    config: RetrieverConfig = RetrieverConfig(),
    recipe: str = "retriever",
    generator: Generator | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    record: Mapping[str, Any] | None = None,
) -> RetrieverReport:
    """Train on the chunks of `snapshot`, whose document encoder is named `encoder`, and write the folder `out`.

    `generator` is the teacher of all objectives but "contrastive"; its scores are kept in the file `cache`. `record` is
    added to `ragtune.json`. Ctrl-C ends after the current step and leaves a run that can be resumed.

    Raises:
        EncoderMismatch: the index was made with another encoder, or its vectors are not this encoder's any more.
        TrainingError: no usable questions; a loss that is not finite.
        ConfigError: an unfinished run beside `out` has other data or settings, which are named.
        UsageError: `out` holds something else; an objective lacks its teacher.
    """
    from rag.encoder import load_encoder
    from rag.starters import quiet

    out = Path(out)
    _check_out(out)
    if config.objective != "contrastive" and generator is None:
        raise UsageError(f"The objective {config.objective} needs a generator as its teacher.")
    model = load_encoder(encoder, dtype="fp32")
    _check_documents(snapshot, model)
    corpus = Corpus(snapshot)
    if progress:
        progress("examples", 0, 1, "")
    examples = make_examples(corpus, questions, config)
    identity = {"base_fingerprint": model.fingerprint, **_identity(snapshot, examples, config, recipe, generator)}
    if resume and (finished := _finished(out, identity)):
        return finished
    run_folder = out.with_name(f".{out.name}.run")
    if not resume:
        shutil.rmtree(run_folder, ignore_errors=True)
    last, _ = checkpoint.latest(run_folder)
    if last is not None:
        checkpoint.check_same(last.state.get("identity", {}), identity, run_folder)
    with quiet():
        trainer = _trainer(model, corpus, examples, config, run_folder, identity, generator, cache, progress)
        with gentle_interrupt(trainer):
            run = trainer.train(last)
    done = {
        "format": FORMAT,
        "kind": QUERY if config.sides == "query" else BOTH,
        "base": encoder,
        "dimension": model.dimension,
        **identity,
        "config": asdict(config),
        "examples": len(examples),
        "origins": origins(examples),
        "loss": run.losses,
        "seconds": round(run.seconds, 3),
        "steps": len(run.losses),
        "planned_steps": len(trainer.steps),
        "versions": library_versions(),
        "before": None,
        "after": None,
        **(record or {}),
    }
    checkpoint.publish(out, lambda folder: _write(folder, model, done))
    shutil.rmtree(run_folder, ignore_errors=True)
    return _report(out, done, resumed=last.step if last else None)


def _trainer(
    model: LocalEncoder,
    corpus: Corpus,
    examples: Sequence[Example],
    config: RetrieverConfig,
    run_folder: Path,
    identity: dict[str, Any],
    generator: Generator | None,
    cache: Path | None,
    progress: Progress | None,
) -> RetrieverTrainer:
    from tuning.retriever_teacher import make_teacher
    from tuning.retriever_trainer import RetrieverTrainer

    def judging(done: int, total: int) -> None:
        if progress is not None:
            progress("judge", done, total, "")

    def stepped(run: Run, step: int, horizon: int) -> None:
        if progress is not None:
            progress("train", step, horizon, f"loss {run.losses[-1]:.3f}")

    teacher = None
    if generator is not None and config.objective != "contrastive":
        teacher = make_teacher(generator, corpus, config, cache=cache, progress=judging)
    return RetrieverTrainer(
        model,
        corpus,
        corpus.snapshot.vectors,
        examples,
        config,
        run_folder=run_folder,
        identity=identity,
        teacher=teacher,
        on_step=stepped,
    )


# ------------------------------------------------------------------ before training


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Give a folder that the encoder can be written to.")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UsageError(f"{out} holds other files and no {RECORD}. Give a new folder: training would replace it.")


def _check_documents(snapshot: Snapshot, model: LocalEncoder) -> None:
    """EncoderMismatch where the document side is another one, by name and weights or behind the index's back."""
    manifest = snapshot.manifest
    if manifest.fingerprint != model.fingerprint:
        raise EncoderMismatch(
            f"The index {snapshot.folder} was made with {manifest.encoder} (fingerprint {manifest.fingerprint[:12]}); "
            f"{model.name} is another encoder now (fingerprint {model.fingerprint[:12]}). Train with the encoder of "
            "the index, or embed the documents with the new one first: ragtune reencode INDEX --encoder NAME."
        )
    rows = (
        np.unique(np.linspace(0, len(snapshot.table) - 1, _CHECKED).astype(int)).tolist() if len(snapshot.table) else []
    )
    fresh = model.encode([snapshot.chunk_at(row).embedded_text for row in rows], kind="passage")
    cosines = (fresh * np.asarray(snapshot.vectors[rows])).sum(axis=1) if rows else np.ones(1)
    if cosines.min() < _SAME:
        raise EncoderMismatch(
            f"The vectors in {snapshot.folder} are not those of {model.name}: embedded again, a chunk has a cosine of "
            f"{cosines.min():.3f} with its stored vector. Embed the documents again: ragtune index PATH --out "
            f"{snapshot.folder} --rebuild."
        )


def _identity(
    snapshot: Snapshot,
    examples: Sequence[Example],
    config: RetrieverConfig,
    recipe: str,
    generator: Generator | None,
) -> dict[str, Any]:
    chunks = content_hash(snapshot.table["id"].tobytes())
    taught = generator.fingerprint if generator is not None and config.objective != "contrastive" else None
    return {
        "chunks_hash": chunks,
        "data_hash": data_hash(examples),
        "recipe": recipe,
        "teacher": taught,
        "settings": {k: v for k, v in asdict(config).items() if k not in FREE},
    }


def _finished(out: Path, identity: Mapping[str, Any]) -> RetrieverReport | None:
    if not (out / RECORD).is_file():
        return None
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if any(record.get(key) != value for key, value in identity.items()):
            return None
        return _report(out, record, reused=True)
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # damaged: it is trained again


# ------------------------------------------------------------------- after training


def _write(folder: Path, model: LocalEncoder, record: Mapping[str, Any]) -> None:
    model.model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    write_retriever_record(folder, record)


def write_retriever_record(folder: Path, record: Mapping[str, Any]) -> None:
    """`ragtune.json` for programs and `README.md` for people; each is replaced whole."""
    for name, text in (
        (RECORD, json.dumps(dict(record), indent=1, ensure_ascii=False) + "\n"),
        ("README.md", _card(record)),
    ):
        aside = folder / f".{name}.tmp"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, folder / name)


def amend_retriever_record(folder: Path, **changes: Any) -> None:
    """Add to the record what became known later (`before`, `after`), and renew the card."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    write_retriever_record(folder, {**record, **changes})


def _card(record: Mapping[str, Any]) -> str:
    side = "query side" if record["kind"] == QUERY else "both sides"
    use = (
        f"For questions only, on indexes whose documents were embedded by {record['base']} (fingerprint "
        f"`{record['base_fingerprint']}`); ragtune refuses it elsewhere."
        if record["kind"] == QUERY
        else "For documents and questions; embed the documents with it before searching (`ragtune reencode`)."
    )
    told = ", ".join(f"{count} {name}" for name, count in record["origins"].items())
    lines = [
        "---",
        f"base_model: {json.dumps(record['base'], ensure_ascii=False)}",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "---",
        "",
        f"# {record['base']}, {side}, recipe {record['recipe']}",
        "",
        f"Trained by ragtune on {record['examples']} examples ({told}) in {record['seconds']:.0f} s. {use}",
        "",
        "The weights were fitted to these documents and can hold traces of them: share them only with people who may "
        "read the documents. The licence of the base model applies.",
        "",
        *_figures(record),
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in record["config"].items()),
        "",
    ]
    return "\n".join(lines)


def _figures(record: Mapping[str, Any]) -> list[str]:
    before, after = record.get("before") or {}, record.get("after") or {}
    if not before or not after:
        return []
    rows = [f"| {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in before if name in after]
    return ["On held-out questions:", "", "| metric | before | after |", "|---|---|---|", *rows, ""]


def _report(out: Path, done: Mapping[str, Any], **more: Any) -> RetrieverReport:
    return RetrieverReport(
        out, done["kind"], done["examples"], done["origins"], done["seconds"], tuple(done["loss"]), done["steps"],
        done["planned_steps"], **more,
    )  # fmt: skip
