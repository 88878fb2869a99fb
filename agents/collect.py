"""Traces of an agent over a file of questions, judged and kept: what `ragtune collect` does.

Runs go side by side. Each finished one is on disk before the next begins to be waited for, in OUT.partial; an
interrupted collection goes on from there. OUT has every trace, with its reward and whether it is kept.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.drive import drive_many
from agents.loop import Outcome
from agents.native import WORKERS, NativeMode
from agents.react import ROWS, ReactMode, make_voter, side_by_side
from agents.rewards import Reward, judge, score, summary
from agents.speakers import speaker
from agents.traces import make_trace, write_traces
from rag.errors import ConfigError, UsageError
from rag.types import Question, Step, content_hash

if TYPE_CHECKING:
    from rag.answer import Answerer

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """What is collected. `keep`: reward from which a trace is kept (the paper: 1). `samples`: runs of each question,
    the first greedy, the others sampled at `temperature`; the best is kept. `rows`: runs side by side."""

    keep: float = 1.0
    samples: int = 1
    temperature: float = 0.7
    rows: int = ROWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep is {self.keep}; it is a reward, above 0 and up to 1.")
        for name in ("samples", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.samples > 1 and self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}; several samples of a question need one above 0.")


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What was collected; `summary` as `agents.rewards.summary` has it, `dropped` says why traces were not kept."""

    out: Path
    summary: Mapping[str, Any]
    dropped: Mapping[str, int]
    seconds: float
    resumed: int = 0


def collect(
    answerer: Answerer,
    mode: ReactMode,
    questions: Sequence[Question],
    out: Path,
    *,
    reward: Reward,
    config: CollectConfig = CollectConfig(),
    kinds: Mapping[str, str] | None = None,
    test: Sequence[Question] = (),
    arm: str = "agent",
    progress: Report | None = None,
    resume: bool = True,
) -> CollectReport:
    """Run the agent over the questions and write the judged traces to `out`.

    `test` are questions that no kept trace may share words with. Ctrl-C leaves OUT.partial, from which the same call
    goes on. Raises UsageError when OUT.partial belongs to another collection.
    """
    began = time.perf_counter()
    if not questions:
        raise UsageError("There are no questions to collect traces for. Give a file with at least one.")
    adapter = answerer.adapters.get(arm)
    tasks = [(q, s) for q in questions for s in range(config.samples)]
    journal = Journal(out, _identity(answerer, mode, questions, config, adapter), resume=resume)
    todo = [i for i in range(len(tasks)) if i not in journal.traces]
    done = len(tasks) - len(todo)

    def finished(number: int, trace: dict[str, Any]) -> None:
        journal.add(number, trace)
        if progress is not None:
            progress(len(journal.traces), len(tasks), f"reward {trace['reward']}")

    if todo:
        _run_all(answerer, mode, tasks, todo, config, kinds or {}, reward, arm, finished)
    traces = [journal.traces[i] for i in range(len(tasks))]
    judged, dropped = judge(traces, keep=config.keep, test=[q.question for q in test])
    write_traces(out, judged)
    journal.remove()
    return CollectReport(out, summary(judged), dropped, time.perf_counter() - began, done)


def _identity(
    answerer: Answerer, mode: ReactMode, questions: Sequence[Question], config: CollectConfig, adapter: Any
) -> dict[str, str]:
    """What a half-finished collection belongs to, by the words that a person can change."""
    return {
        "generator": answerer.generator.fingerprint,
        "adapter": str(adapter or ""),
        "questions": content_hash(*(f"{q.id}\n{q.question}" for q in questions)),
        "settings": content_hash(json.dumps(asdict(mode.config), sort_keys=True)),
        "samples": f"{config.samples} at {config.temperature}",
        "seed": str(config.seed),
    }


def _run_all(
    answerer: Answerer,
    mode: ReactMode,
    tasks: Sequence[tuple[Question, int]],
    todo: Sequence[int],
    config: CollectConfig,
    kinds: Mapping[str, str],
    reward: Reward,
    arm: str,
    finished: Callable[[int, dict[str, Any]], None],
) -> None:
    adapter = answerer.adapters.get(arm)
    if isinstance(mode, NativeMode):
        _run_native(answerer, mode, tasks, todo, config, kinds, reward, finished)
        return
    with answerer.generator.adapter(adapter):
        rows = min(config.rows, len(todo))
        talker = speaker(answerer.generator, rows=rows, context_tokens=mode.window(answerer))
        runs = []
        for number in todo:
            question, sample = tasks[number]
            changes: dict[str, Any] = {"seed": config.seed + 1000 * number, **side_by_side(mode.config, rows)}
            if sample:
                changes["temperature"] = config.temperature
            runs.append(mode.run(answerer, question.question, talker.traits, **changes))

        def done(i: int, outcome: Outcome, steps: list[Step]) -> None:
            question, _ = tasks[todo[i]]
            trace = make_trace(
                outcome, question, system=runs[i].system, runtime="react", model=answerer.generator.name,
                adapter=str(adapter) if adapter else None, kind=kinds.get(question.id, ""), seed=runs[i].config.seed,
            )  # fmt: skip
            finished(todo[i], {**trace, "reward": score(reward, trace["answer"], question)})

        drive_many(runs, talker, make_voter(answerer), done=done)


def _run_native(
    answerer: Answerer,
    mode: NativeMode,
    tasks: Sequence[tuple[Question, int]],
    todo: Sequence[int],
    config: CollectConfig,
    kinds: Mapping[str, str],
    reward: Reward,
    finished: Callable[[int, dict[str, Any]], None],
) -> None:
    """Conversations with a model elsewhere, several at a time; each is kept as soon as it ends."""

    def one(number: int) -> dict[str, Any]:
        question, _ = tasks[number]
        trace = mode.trace(answerer, question, kind=kinds.get(question.id, ""), seed=config.seed + 1000 * number)
        return {**trace, "reward": score(reward, trace["answer"], question)}

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = {pool.submit(one, number): number for number in todo}
        try:
            for future in as_completed(futures):
                finished(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # no conversation that has not begun yet
            raise


class Journal:
    """OUT.partial: a line that says what it belongs to, then one line for each finished trace."""

    def __init__(self, out: Path, identity: Mapping[str, str], *, resume: bool) -> None:
        self.path = out.with_name(out.name + ".partial")
        self.traces: dict[int, dict[str, Any]] = {}
        out.parent.mkdir(parents=True, exist_ok=True)
        good = self._read(identity) if resume and self.path.is_file() else 0
        with self.path.open("r+b" if good else "wb") as file:
            file.truncate(good)  # a half-written last line is of a run that will be made again
            if not good:
                file.write((json.dumps({"collect": 1, **identity}) + "\n").encode())

    def _read(self, identity: Mapping[str, str]) -> int:
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if not lines:
            return 0
        head = json.loads(lines[0])
        changed = [name for name, value in identity.items() if head.get(name) != value]
        if changed:
            raise UsageError(
                f"{self.path} was begun with another {', '.join(changed)}. Give the same to go on with it, or add "
                "--restart to discard it."
            )
        for line in lines[1:]:
            entry = json.loads(line)
            self.traces[int(entry["number"])] = entry["trace"]
        return sum(len(line) + 1 for line in lines)

    def add(self, number: int, trace: dict[str, Any]) -> None:
        """On disk when this returns."""
        self.traces[number] = trace
        line = json.dumps({"number": number, "trace": trace}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The collection is complete and stands in OUT."""
        self.path.unlink(missing_ok=True)


def merged(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], *, keep: float) -> list[dict[str, Any]]:
    """Traces of two rounds judged together: of each question the best is kept, of equals that of the later round."""
    return judge([*second, *first], keep=keep)[0]
