"""`ragtune decide`: trains what is not there, measures the four arms, chooses, and lets the choice serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import serving
from apps.commands import read_questions
from apps.console import Console, duration, table
from apps.decision import decision_view
from apps.jobs import answer_config
from apps.serving import STARTER, make_retriever, open_index
from apps.training import Plan, estimate, make_rows, train_adapter
from rag.errors import UsageError
from rag.types import ALL_ARMS, ARMS, MODE_ARMS, Question

if TYPE_CHECKING:
    from agents.rule import DecideConfig
    from rag.answer import AnswerConfig
    from rag.protocols import Generator
    from rag.retrieve import Retriever
    from tuning.rows import Row

_STAGES = {
    "retrieve": "searching",
    "answer": "answering",
    "time": "timing single questions",
    "general": "asking general questions",
    "decide": "comparing",
}


def decide(
    index: Path,
    *,
    train: Path | None,
    questions: Path,
    out: Path,
    tuned: Path | None,
    tuned_rag: Path | None,
    arms: tuple[str, ...] | None,
    adapters: dict[str, Path] | None,
    method: str,
    epochs: float | None,
    learning_rate: float | None,
    minutes: float | None,
    k: int | None,
    queries: int | None,
    gain: float | None,
    skip_broken: bool,
    restart: bool,
    dry_run: bool,
    encoder: str | None,
    generator: str | None,
    seed: int,
    console: Console,
    query_encoder: Path | None = None,
) -> int:
    """Measure the four arms, and more if asked for, on the same questions, choose, and serve the choice from now on."""
    from agents.arms import FROM_QUESTIONS, RECIPES, run
    from rag.questions import read_kinds

    asked = read_questions(questions, skip_broken=skip_broken, console=console)
    training = read_questions(train, skip_broken=skip_broken, console=console) if train else []
    named = {"tuned": tuned, "tuned+rag": tuned_rag, **(adapters or {})}
    given = {arm: folder for arm, folder in named.items() if folder}
    more = tuple(dict.fromkeys([*(arms or ()), *(arm for arm in given if arm in MODE_ARMS)]))
    for folder in given.values():
        if not folder.is_dir():
            raise UsageError(f"There is no adapter folder at {folder}. Make one with `ragtune tune`.")
    config, answer = _decide_config(queries, gain, seed), answer_config(k)
    retriever = make_retriever(open_index(index, encoder, console, query_encoder), k=answer.k)
    base = generator or STARTER
    console.progress("loading the generator", 0, 0, base)
    model = serving.load_generator(base)
    plan = Plan(base, "rag", method, epochs, learning_rate, minutes, seed, restart)
    trainer = _Trainer(plan, training, retriever, model, answer, out, console)
    if dry_run:
        trained = [arm for arm in FROM_QUESTIONS if arm in ARMS or arm in more]
        wanted = [RECIPES[arm] for arm in trained if training and arm not in given]
        return _dry_run(trainer, asked, wanted, len(given))
    run(
        retriever.index,
        training,
        asked,
        out,
        generator=model,
        train=trainer if training else None,
        adapters=given,
        more=more,
        modes=serving.agent_modes(more),
        retrieval=retriever.config,
        answer=answer,
        config=config,
        kinds=read_kinds(questions, skip_broken=skip_broken),
        progress=_progress(console),
        resume=not restart,
    )
    data = decision_view(out).data
    serving.serve_decision(index, out, query_encoder or serving.served_query_encoder(index))
    console.result({**data, "run": str(out), "report": str(out / "report.html")}, show_decision)
    return 0


def _decide_config(queries: int | None, gain: float | None, seed: int) -> DecideConfig:
    from agents.rule import DecideConfig

    default = DecideConfig()
    gain = default.minimal_gain if gain is None else gain
    return replace(
        default,
        queries=queries or default.queries,
        minimal_gain=gain,
        margin=min(default.margin, max(0.0, gain)),
        seed=seed,
    )


def _progress(console: Console) -> Callable[[str, int, int, str], None]:
    """The stages of a run in words; each arm is a stage of its own, so that the time left is about it."""

    def report(stage: str, done: int, total: int, detail: str) -> None:
        if stage != "train":  # the trainer itself tells more
            name = _STAGES.get(stage, stage)
            each = stage in ("answer", "general") and detail
            console.progress(f"{name} ({detail})" if each else name, done, total)

    return report


@dataclass(frozen=True, slots=True)
class _Trainer:
    """Makes the adapter of a recipe in the run folder; called by `agents.arms.run` for each arm that lacks one."""

    plan: Plan
    questions: Sequence[Question]
    retriever: Retriever
    model: Generator
    answer: AnswerConfig
    out: Path
    console: Console

    def rows(self, recipe: str) -> list[Row]:
        plan, frozen = replace(self.plan, recipe=recipe), self.out / "training"
        return make_rows(plan, self.questions, self.retriever, self.model, self.answer, frozen, self.console)[0]

    def __call__(self, recipe: str) -> Path:
        from agents.arms import RECIPES

        folder = self.out / "adapters" / recipe
        arm = next(arm for arm, name in RECIPES.items() if name == recipe)
        train_adapter(
            replace(self.plan, recipe=recipe), self.rows(recipe), folder, self.console, stage=f"training {arm}"
        )
        return folder


def _dry_run(trainer: _Trainer, asked: Sequence[Question], recipes: Sequence[str], given: int) -> int:
    """What would be done, and about how long it takes here."""
    from rag.answer import Answerer

    few = [question.question for question in asked[:4]]
    answerer = Answerer(trainer.model, trainer.retriever, trainer.answer)
    answerer.answer_many(few[:1], arm="rag")  # the first answer pays for what later ones do not
    begin = time.perf_counter()
    answerer.answer_many(few, arm="rag")
    each = (time.perf_counter() - begin) / len(few)
    steps: list[tuple[str, float]] = []
    for recipe in recipes:
        rows = trainer.rows(recipe)
        _, seconds = estimate(replace(trainer.plan, recipe=recipe), rows, trainer.model)
        steps.append((f"train {recipe} on {len(rows)} rows", seconds))
    arms = 3 + given + len(recipes)  # base, rag and the oracle, and the tuned ones
    steps.append((f"answer {len(asked)} questions with {arms} arms", each * len(asked) * arms))
    total = sum(seconds for _, seconds in steps)
    lines = [f"would {step}: about {duration(seconds)}" for step, seconds in steps]
    trainer.console.result(
        {
            "dry_run": True,
            "steps": [{"step": step, "seconds": round(seconds)} for step, seconds in steps],
            "seconds": round(total),
        },
        lambda _: "\n".join([*lines, f"in all about {duration(total)}"]),
    )
    return 0


def _gain(halves: Mapping[str, Any], name: str) -> str:
    value = halves[name]
    return f"{name} {value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def show_decision(data: Mapping[str, Any]) -> str:
    """The table of arms, what was chosen and why, and what to doubt."""
    metric = str(data.get("config", {}).get("primary", "f1"))
    rows: list[tuple[str, ...]] = [("arm", metric, "95 % interval", "em", "s/question", "cost s")]
    order = [*ALL_ARMS, "oracle"]
    for arm in sorted(data["arms"], key=lambda a: order.index(a["arm"]) if a["arm"] in order else len(order)):
        value, em = arm[metric], arm.get("em") or {}
        rows.append(
            (
                arm["arm"] + (" *" if arm["arm"] == data["chosen"] else ""),
                f"{value['mean']:.3f}",
                f"{value['low']:.3f} to {value['high']:.3f}",
                f"{em['mean']:.3f}" if em else "",
                f"{arm['seconds_per_question']:.2f}",
                f"{arm['cost']:.2f}",
            )
        )
    lines = [table(rows), "", f"chosen: {data['chosen'] or 'none'}. {data['reason']}"]
    if halves := data.get("halves"):
        told = [_gain(halves, name) for name in ("retriever", "generator", "both", "interaction")]
        lines += ["", f"{halves['arm']} by halves, over neither: {'; '.join(told)}"]
    lines += [f"warning: {sentence}" for sentence in data.get("warnings", ())]
    if "report" in data:
        lines += ["", f"report: {data['report']}", "`ragtune ask` and `ragtune chat` serve this choice from now on."]
    return "\n".join(lines)
