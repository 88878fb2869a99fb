"""What stands behind the Tune tab: question files, a look at training rows, a forecast, the command, the adapters.

All of it lies in one folder beside the index, so that the command that the page shows can be typed in a terminal:

    manuals.tuning/questions/*.jsonl     uploaded, made from the documents, or collected from votes
    manuals.tuning/adapters/NAME         what was trained
    manuals.tuning/runs/NAME             decisions
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Console
from apps.training import Plan, estimate, make_rows
from apps.uploads import safe_name
from rag.errors import RagtuneError, UsageError

if TYPE_CHECKING:
    from apps.feedback import Feedback
    from apps.service import Service
    from rag.protocols import Message
    from tuning.rows import Row

SHOWN_ROWS = 4
PREFERENCE = "preference"
RECIPES = ("rag", "closed-book", "self-rag", "ra-dit", PREFERENCE)
"""What the page offers: recipes for the generator that train on questions or ratings."""
LABELLED = 4
"""Questions of a recipe whose rows the model itself labels, which takes seconds for each."""
PROBED = 24
"""Questions looked at for a preview and a forecast: enough for the shares, few enough to answer in seconds."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a person sets; None takes what the recipe trains well with."""

    questions: str = ""
    test: str = ""
    recipe: str = "rag"
    method: str = "lora"
    epochs: float | None = None
    learning_rate: float | None = None
    minutes: float | None = None
    k: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class RowView:
    """One training row: the prompt as it is sent, the words to learn, and how many tokens both have."""

    question: str
    kind: str
    prompt: tuple[Message, ...]
    completion: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Preview:
    """Some rows out of `questions` questions, and the shares among all that were made of them."""

    questions: int
    rows: tuple[RowView, ...]
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Rows and tokens of a run, about how many seconds it takes, and how many bytes of memory against those free."""

    rows: int
    tokens: int
    seconds: float
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """An adapter folder. `served` while its arm answers with it; `fits` when it belongs to the model in use."""

    name: str
    folder: str
    recipe: str
    arm: str
    rows: int = 0
    before: float | None = None
    after: float | None = None
    served: bool = False
    fits: bool = True


class Workshop:
    """The tuning room of a service."""

    def __init__(self, service: Service, feedback: Feedback) -> None:
        self.service = service
        self.feedback = feedback
        place = service.library.folder.resolve()
        self.folder = place.with_name(place.name + ".tuning")

    # ------------------------------------------------------------------- questions

    def files(self, kind: str = "questions") -> list[tuple[str, str]]:
        """(name, path) of every file of questions (or of "ratings"), the newest first."""
        folder = self.folder / kind
        found = sorted(folder.glob("*.jsonl"), key=lambda p: -p.stat().st_mtime) if folder.is_dir() else []
        return [(p.stem, str(p)) for p in found]

    def take(self, path: Path, given: str) -> tuple[Path, int]:
        """Keep an uploaded question file; its place and how many questions it has.

        Raises UsageError (or DataError) naming the line that is broken.
        """
        from rag.questions import read_questions, write_questions

        found = read_questions(path)
        target = self._question_file(Path(safe_name(given)).stem)
        write_questions(target, found)
        return target, len(found)

    def from_feedback(self, user: str | None = None) -> tuple[Path, int]:
        """Rated answers and corrections as a question file. UsageError when there are none."""
        from rag.questions import write_questions

        found = self.feedback.questions(user=user)
        if not found:
            raise UsageError("There are no rated answers yet: vote on answers in the chat, or correct them.")
        target = self._question_file("votes")
        write_questions(target, found)
        return target, len(found)

    def preferences(self, user: str | None = None) -> tuple[Path, int]:
        """All votes in TRL's unpaired preference form, for the recipe `preference`. UsageError when there are none."""
        target = self.folder / "ratings" / f"votes-{_stamp()}.jsonl"
        return target, self.feedback.export(target, user=user)

    def _question_file(self, stem: str) -> Path:
        folder = self.folder / "questions"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{stem}.jsonl"
        return file if not file.exists() else folder / f"{stem}-{_stamp()}.jsonl"

    def questions_command(self, n: int, minutes: float | None) -> list[str]:
        """The command that makes questions from the documents, a part held out."""
        folder, stamp = self.folder / "questions", _stamp()
        argv = ["questions", self._index, "--out", str(folder / f"made-{stamp}.jsonl"), "--test-out",
                str(folder / f"made-{stamp}-test.jsonl"), "-n", str(n)]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        return [*argv, *(["--minutes", f"{minutes:g}"] if minutes else []), *self._models()]

    # ---------------------------------------------------------------------- tuning

    def tune_command(self, knobs: Knobs) -> list[str]:
        """The command that these settings stand for. UsageError when no questions are chosen."""
        if not knobs.questions:
            raise UsageError("Choose questions to train on first: upload, make, or collect some.")
        rated = Path(knobs.questions).parent.name == "ratings"
        if rated is not (knobs.recipe == PREFERENCE):
            need = "ratings: press “Collect from votes” with this recipe" if not rated else "questions with answers"
            raise UsageError(f"The recipe {knobs.recipe} trains on {need}.")
        if knobs.test and knobs.test == knobs.questions:
            raise UsageError("The questions to measure on are those to train on; choose others, or none.")
        name = safe_name(knobs.name.strip()) if knobs.name.strip() else f"{knobs.recipe}-{_stamp()}"
        argv = ["tune", self._index, "--questions", knobs.questions, "--out", str(self.folder / "adapters" / name)]
        argv += ["--recipe", knobs.recipe, "--method", knobs.method]
        argv += ["--test", knobs.test] if knobs.test else []
        for flag, value in (("--epochs", knobs.epochs), ("--learning-rate", knobs.learning_rate),
                            ("--minutes", knobs.minutes), ("-k", knobs.k)):  # fmt: skip
            argv += [flag, f"{value:g}"] if value else []
        return [*argv, *self._models()]

    def decide_command(
        self, train: str, questions: str, *, minutes: float | None, queries: int, arms: Sequence[str] = ()
    ) -> list[str]:
        """The command that measures the arms. UsageError when no questions are chosen."""
        if not questions:
            raise UsageError("Choose held-out questions to measure on first.")
        if train == questions:
            raise UsageError("The questions to measure on are those to train on; choose others.")
        argv = ["decide", self._index, "--questions", questions, "--out", str(self.folder / "runs" / f"run-{_stamp()}")]
        argv += ["--train", train] if train else []
        argv += ["--minutes", f"{minutes:g}"] if minutes and train else []
        argv += ["--arms", ",".join(arms)] if arms else []
        return [*argv, "--queries", str(queries), *self._models()]

    @property
    def _index(self) -> str:
        return str(self.service.library.folder.resolve())

    def _models(self) -> list[str]:
        name = self.service.generator_name
        return [] if name == "starter" else ["--generator", name]

    def plan(self, knobs: Knobs) -> Plan:
        """These settings as a training run takes them."""
        return Plan(
            self.service.generator_name, knobs.recipe, knobs.method, knobs.epochs, knobs.learning_rate, knobs.minutes, 0
        )

    def _rows(self, knobs: Knobs) -> tuple[list[Row], Any, int, int]:
        """Rows of some questions, their report, how many questions were looked at, and how many there are.

        They are made by the function that `ragtune tune` calls, so that they are what it would train on.
        """
        import tempfile

        from rag.answer import AnswerConfig
        from rag.questions import read_questions
        from tuning.recipes import recipe

        generator, retriever = self.service.generator, self.service.library.retriever
        if generator is None or retriever is None:
            raise UsageError("The models are still loading. Try again in a moment.")
        if not knobs.questions:
            raise UsageError("Choose questions to train on first: upload, make, or collect some.")
        questions = read_questions(Path(knobs.questions))
        most = LABELLED if getattr(recipe(knobs.recipe), "NEEDS_MODEL", False) else PROBED
        few = questions[:: max(1, len(questions) // most)][:most]
        answer = AnswerConfig(k=knobs.k) if knobs.k else AnswerConfig()
        with tempfile.TemporaryDirectory(prefix="ragtune-") as frozen:
            rows, report = make_rows(
                self.plan(knobs), few, retriever, generator, answer, Path(frozen) / "frozen", Console(quiet=True)
            )
        return rows, report, len(few), len(questions)

    def preview(self, knobs: Knobs) -> Preview:
        """Some rows as the model will see them, one of each kind first. Raises UsageError, or TrainingError."""
        if knobs.recipe == PREFERENCE:
            return self._ratings(knobs)
        rows, report, few, _ = self._rows(knobs)
        kinds = {row.kind: row for row in reversed(rows)}
        shown = [*kinds.values(), *(row for row in rows if row not in kinds.values())][:SHOWN_ROWS]
        count = self.service.generator.count_tokens if self.service.generator is not None else len
        views = tuple(
            RowView(
                _asked(row.prompt), row.kind, row.prompt, row.completion,
                sum(count(m["content"]) for m in row.prompt) + count(row.completion),
            )
            for row in shown
        )  # fmt: skip
        return Preview(few, views, report.shares())

    def _ratings(self, knobs: Knobs) -> Preview:
        """Some ratings with the prompt they were given to; UsageError, or DataError, when there are none."""
        from tuning.preference_train import read_preferences

        self.tune_command(knobs)  # refuses what is no file of ratings
        found = read_preferences(Path(knobs.questions))
        count = self.service.generator.count_tokens if self.service.generator is not None else len
        rows = tuple(
            RowView(
                _asked(r.prompt), "good" if r.good else "bad", r.prompt, r.completion,
                sum(count(m["content"]) for m in r.prompt) + count(r.completion),
            )
            for r in found[:SHOWN_ROWS]
        )  # fmt: skip
        return Preview(len(found), rows)

    def forecast(self, knobs: Knobs) -> Forecast:
        """Time and memory of a run, from forward passes over a few rows with the model that is loaded.

        Memory is that of this process, which holds what training holds, and what a forward and backward pass of a full
        batch adds: four times what a forward pass was seen to add for each token. Within a factor of two.
        """
        import psutil

        if knobs.recipe == PREFERENCE:
            raise UsageError("Ratings are few: this recipe takes about as long as it takes to answer them twice.")
        rows, _, few, whole = self._rows(knobs)
        generator = self.service.generator
        if generator is None or not rows:
            raise UsageError("No row could be made of these questions; see the preview.")
        plan = self.plan(knobs)
        with self.service.gate.place() as _, _peak() as peak:
            tokens, seconds = estimate(plan, rows, generator)
        scale = whole / few
        seconds = min(seconds * scale, 60 * plan.minutes) if plan.minutes else seconds * scale
        seen = max(1, max(sum(generator.count_tokens(m["content"]) for m in row.prompt) for row in rows))
        batch = plan.config().tokens_per_forward or 512
        memory = peak[0] + int(4 * (peak[1] - peak[0]) / seen * max(batch, seen))
        return Forecast(
            round(len(rows) * scale), int(tokens * scale), seconds, memory, psutil.virtual_memory().available
        )

    # -------------------------------------------------------------------- adapters

    def adapters(self) -> list[AdapterRow]:
        """The adapters of this index: trained here, or by a decision that serves it."""
        folders = {p.parent.resolve() for p in self.folder.glob("adapters/*/ragtune.json")}
        folders |= {p.parent.resolve() for p in self.folder.glob("runs/*/adapters/*/ragtune.json")}
        folders |= {Path(folder).resolve() for folder in self.service.adapters.values()}
        found = [row for folder in folders if (row := self._adapter(folder)) is not None]
        return sorted(found, key=lambda row: (not row.served, row.name))

    def _adapter(self, folder: Path) -> AdapterRow | None:
        from agents.arms import RECIPES
        from tuning.record import read_record

        try:
            record = read_record(folder)
        except (RagtuneError, OSError):
            return None
        recipe = str(record.get("recipe") or "rag")
        arm = next((arm for arm, name in RECIPES.items() if name == recipe), "tuned+rag")
        served = self.service.adapters.get(arm)
        mine = getattr(self.service.generator, "fingerprint", None)
        base = record.get("base_fingerprint")
        return AdapterRow(
            folder.name, str(folder), recipe, arm, int(record.get("rows") or 0), _f1(record.get("before")),
            _f1(record.get("after")), bool(served) and Path(str(served)).resolve() == folder,
            not (base and mine and base != mine),
        )  # fmt: skip


def _asked(prompt: Sequence[Message]) -> str:
    """The question at the end of a prompt, whatever form it has."""
    return prompt[-1]["content"].rsplit("Question:", 1)[-1].strip().removesuffix("Answer:").strip()[:300]


def _f1(value: Any) -> float | None:
    found = value.get("f1") if isinstance(value, Mapping) else None
    return float(found) if isinstance(found, (int, float)) else None


def _stamp() -> str:
    return datetime.now().strftime("%m%d-%H%M%S")


@contextmanager
def _peak() -> Iterator[list[int]]:
    """[bytes of this process before, most seen inside the block], watched every few milliseconds."""
    import psutil

    process, over = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss] * 2

    def watch() -> None:
        while not over.is_set():
            seen[1] = max(seen[1], process.memory_info().rss)
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
