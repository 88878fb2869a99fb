"""`ragtune tune --recipe preference`: an adapter from ratings, measured before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.console import Console, duration
from apps.serving import STARTER, make_retriever, open_index
from rag.errors import UsageError
from rag.types import Question

if TYPE_CHECKING:
    from rag.answer import AnswerConfig
    from rag.protocols import Generator
    from tuning.preference_train import Preference, PreferenceReport


def tune_preference(
    index: Path,
    *,
    ratings: Path,
    test: Sequence[Question],
    out: Path,
    start: Path | None,
    method: str,
    dry_run: bool,
    restart: bool,
    epochs: float | None,
    learning_rate: float | None,
    minutes: float | None,
    answer: AnswerConfig,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Train on the ratings of a file, beginning from `start` (by default the adapter this index is served with).

    Part of the ratings is held out: how well the model tells good answers from bad ones is measured on them before and
    after, and `test` questions are answered before and after.
    """
    from tuning.preference_train import read_preferences, split, train_preference
    from tuning.recipes.preference import TRAIN
    from tuning.record import amend_record

    rows = read_preferences(ratings)
    if not rows:
        raise UsageError(f"{ratings} holds no ratings. Rate answers on the page, then export them.")
    if method != "lora":
        raise UsageError(f"The recipe preference trains LoRA adapters; leave --method {method} away.")
    start = start or served_adapter(index)
    learn, held = split(rows)
    given = {"num_train_epochs": epochs, "learning_rate": learning_rate, "max_minutes": minutes}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    name = generator or STARTER
    config = replace(TRAIN, seed=seed, **changes)
    if dry_run:
        return _dry_run(learn, held, start, out, name, console)
    console.progress("loading the generator", 0, 0, name)
    model = serving.load_generator(name)
    before = _measure(model, index, start, held, test, answer, encoder, console)
    del model  # training loads its own copy: a large model fits only once
    report = train_preference(
        learn,
        base=name,
        out=out,
        adapter=start,
        config=config,
        resume=not restart,
        progress=lambda _, done, total, detail: console.progress("training", done, total, detail),
        record={"index": str(index.resolve()), "ratings": str(ratings)},
    )
    after = _measure(serving.load_generator(name), index, out, held, test, answer, encoder, console)
    means = [_means(part) for part in (before, after)]
    amend_record(out, before=means[0], after=means[1])
    payload = {
        "adapter": str(out), "objective": report.objective, "rows": report.rows, "held_out": len(held),
        "tokens": report.tokens, "seconds": round(report.seconds, 1), "loss": list(report.loss),
        "started_from": str(start) if start else None, "before": before, "after": after, "steps": report.steps,
    }  # fmt: skip
    console.result(payload, lambda p: _show(p, report))
    return 0


def _dry_run(
    learn: Sequence[Preference],
    held: Sequence[Preference],
    start: Path | None,
    out: Path,
    name: str,
    console: Console,
) -> int:
    from tuning.preference_train import objective

    by, origin = objective(learn), str(start) if start else name
    payload = {
        "dry_run": True, "adapter": str(out), "objective": by, "rows": len(learn), "held_out": len(held),
        "started_from": origin,
    }  # fmt: skip
    told = f"would train {origin} by {by.upper()} on {len(learn)} ratings ({len(held)} held out), into {out}"
    console.result(payload, lambda _: told)
    return 0


def served_adapter(index: Path) -> Path | None:
    """The adapter that answers over this index's passages now; None where the plain model does."""
    found = serving.find_serving(index).adapters.get("tuned+rag")
    return Path(found) if found else None


def _means(found: Mapping[str, Any]) -> dict[str, float]:
    means = {k: v["mean"] for k, v in found.items() if isinstance(v, Mapping) and "mean" in v}
    return {**means, **{k: v for k, v in found.items() if isinstance(v, float)}}


def _measure(
    model: Generator,
    index: Path,
    adapter: Path | None,
    held: Sequence[Preference],
    test: Sequence[Question],
    answer: AnswerConfig,
    encoder: str | None,
    console: Console,
) -> dict[str, Any]:
    """Separation of held-out good and bad answers, and the metrics on test questions."""
    from rag.answer import Answerer
    from rag.evaluate import evaluate
    from rag.protocols import is_begun
    from tuning.preference_train import separation, singles

    found: dict[str, Any] = {}
    rows = singles(held)
    if rows:
        console.progress("weighing held-out ratings", 0, len(rows))
        with model.adapter(str(adapter) if adapter else None):
            scores = model.score([r.prompt for r in rows], [" " * is_begun(r.prompt) + r.completion for r in rows])
        means = [float(score.mean()) for score in scores]
        good = [m for m, row in zip(means, rows, strict=True) if row.good]
        bad = [m for m, row in zip(means, rows, strict=True) if not row.good]
        if good and bad:
            found["separation"] = separation(good, bad)
    if test:
        arm = "tuned+rag" if adapter else "rag"
        retriever = make_retriever(open_index(index, encoder, console), k=answer.k)
        answerer = Answerer(model, retriever, answer, adapters={arm: str(adapter)} if adapter else {})
        texts = [q.question for q in test]
        answers = answerer.answer_many(texts, arm=arm, progress=console.stage(f"answering ({arm})"))
        found |= {"arm": arm, **evaluate(answers, test).to_dict()}
    return found


def _show(payload: Mapping[str, Any], report: PreferenceReport) -> str:
    loss = payload["loss"]
    lines = [
        f"{payload['adapter']}: {payload['objective'].upper()} on {payload['rows']} ratings in "
        f"{duration(report.seconds)}, {report.steps} steps, loss {loss[0]:.3f} → {loss[-1]:.3f}"
    ]
    before, after = payload["before"], payload["after"]
    if "separation" in before and "separation" in after:
        lines.append(
            f"told good from bad on {payload['held_out']} held-out ratings: {before['separation']:.2f} → "
            f"{after['separation']:.2f} (0.5 is chance)"
        )
    if "f1" in before and "f1" in after:
        was, now = before["f1"], after["f1"]
        lines.append(f"f1: {was['mean']:.3f} → {now['mean']:.3f} (95 % {now['low']:.3f} to {now['high']:.3f})")
    else:
        lines.append("Give --test FILE to see what it does on questions with known answers.")
    return "\n".join(lines)
