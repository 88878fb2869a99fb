"""`ragtune critic`: a model that judges passages and answers, trained on what the questions file and a judge say."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.commands import read_questions
from apps.console import Console, table
from apps.serving import STARTER, make_retriever, open_index
from rag.errors import UsageError

if TYPE_CHECKING:
    from tuning.critic import Asked
    from tuning.train import TrainReport

PER_KIND = 200
"""Judgements of each kind, as equal in their labels as the questions allow: more take longer than they help here."""
HELD_OUT = 0.15
JUDGED = 60
"""Judgements of each kind on which sources are compared."""


def critic(
    index: Path,
    *,
    questions: Path,
    out: Path,
    judge: str | None,
    minutes: float | None,
    skip_broken: bool,
    restart: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
) -> int:
    """Label, compare the sources on a sample, train the critic, and compare it with gold on questions held out."""
    from rag.retrieve import freeze
    from tuning.augment import closed_book
    from tuning.critic import Judge, agreement
    from tuning.critic_data import balanced, instances

    asked_questions = read_questions(questions, skip_broken=skip_broken, console=console)
    if len(asked_questions) < 10:
        raise UsageError(f"{questions} has {len(asked_questions)} questions; a critic needs at least 10.")
    retriever = make_retriever(open_index(index, encoder, console), k=5)
    base = generator or STARTER
    console.progress("loading the generator", 0, 0, base)
    model = serving.load_generator(base)
    folder = out.with_name(f".{out.name}.labels")
    found = freeze(retriever, [q.question for q in asked_questions], folder, 5)
    known = closed_book(asked_questions, model, folder)
    order = list(range(len(asked_questions)))
    random.Random(seed).shuffle(order)
    cut = max(1, int(HELD_OUT * len(order)))
    parts: list[tuple[list[Asked], list[str | None]]] = []
    for chosen, most in ((sorted(order[cut:]), PER_KIND), (sorted(order[:cut]), JUDGED)):
        made = instances(
            [asked_questions[i] for i in chosen],
            [found[i] for i in chosen],
            closed_book=[known[i] for i in chosen],
            seed=seed,
        )
        parts.append(balanced(*made, most, seed=seed))
    (train_on, gold), (held, held_gold) = parts
    agreed: dict[str, Any] = {}
    counts: dict[str, Any] = {"gold": sum(label is not None for label in gold)}
    if judge is not None:
        console.progress("loading the judge", 0, 0, judge)
        asking = Judge(model if judge == base else serving.load_generator(judge))
        said = asking.label(held, console.stage("asking the judge"))
        agreed["judge and gold"] = agreement(held, said, held_gold)
        open_ = [i for i, label in enumerate(gold) if label is None]
        for i, label in zip(open_, asking.label([train_on[i] for i in open_]), strict=True):
            gold[i] = label
        counts["judge"] = sum(gold[i] is not None for i in open_)
        counts["asked of the judge"] = dict(asking.counts)
    del model  # training loads its own copy
    report = _train(train_on, gold, out, base, seed, minutes, restart, console)
    tested = Judge(serving.load_generator(base), str(out))
    said = tested.label(held, console.stage("asking the critic"))
    agreed["critic and gold"] = agreement(held, said, held_gold)
    counts["asked of the critic"] = dict(tested.counts)
    payload = {
        "critic": str(out),
        "rows": report.rows,
        "seconds": round(report.seconds, 1),
        "loss": list(report.loss),
        "labels": counts,
        "agreement": agreed,
    }
    console.result(payload, _show)
    return 0


def _train(
    asked: Sequence[Asked],
    labels: Sequence[str | None],
    out: Path,
    base: str,
    seed: int,
    minutes: float | None,
    restart: bool,
    console: Console,
) -> TrainReport:
    from tuning.critic import critic_rows
    from tuning.train import TrainConfig, train

    config = TrainConfig(
        learning_rate=1e-3, num_train_epochs=2, upper_layers=0.5, tokens_per_step=2048, max_minutes=minutes, seed=seed
    )
    return train(
        critic_rows(asked, labels), base=base, out=out, config=config, recipe="critic", resume=not restart,
        progress=lambda _, done, total, detail: console.progress("training the critic", done, total, detail),
    )  # fmt: skip


def _show(payload: Mapping[str, Any]) -> str:
    lines = [f"{payload['critic']}: {payload['rows']} judgements in {payload['seconds']} s"]
    for pair, kinds in payload["agreement"].items():
        rows = [(pair, "n", "agreement", "kappa")]
        rows += [(k, str(v["n"]), f"{v['agreement']:.2f}", f"{v['kappa']:.2f}") for k, v in kinds.items()]
        lines.append(table(rows))
    lines.append(f"Use it with: ragtune tune INDEX --recipe self-rag --critic {payload['critic']}")
    return "\n".join(lines)
