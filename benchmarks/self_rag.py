"""Self-RAG trained on a user's own questions, against RAG with an adapter trained on the same rows without its tokens.

Each data set becomes a folder of documents with training and test questions about different documents. Both adapters
see the same passages and answers; one has the reflection tokens around them. Measured: F1, citation precision and
recall, abstention on unanswerable questions, sequences per answer; ablations of the score at each training size; the
threshold δ from 0 to 1; and the same judgements prompted, on the untouched model. Retrievals are frozen, so that every
arm sees the same passages. At depth 1 the score only chooses among segments that are decoded anyway, so the ablations
choose among the same candidates; and a δ between the ends takes each question's answer from the run that always
retrieves where r > δ, else from the run that never does.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loop import command, make_task

METRICS = ("f1", "citation_precision", "citation_recall", "abstention_f1", "abstention_recall")
DELTAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
DEPTH = 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Task:
    """One data set: its index, its questions, what retrieval found for them, and the base model."""

    def __init__(self, data_set: str, work: Path, sizes: Sequence[int], tests: int, minutes: float | None) -> None:
        from apps.serving import make_retriever
        from rag.generator import load_local_generator
        from rag.index import Index
        from rag.models import load_encoder
        from rag.questions import read_questions
        from rag.retrieve import freeze

        self.name, self.minutes = data_set, minutes
        self.folder = make_task(data_set, work)
        command("index", self.folder / "corpus", "--out", self.folder / "index")
        self.retriever = make_retriever(Index.open(self.folder / "index", load_encoder("starter")), k=5)
        self.generator = load_local_generator()
        self.train = read_questions(self.folder / "train.jsonl")[: max(sizes)]
        self.test = read_questions(self.folder / "test.jsonl")[:tests]
        asked = [question.question for question in self.test]
        self.found = freeze(self.retriever, asked, self.folder / "frozen-test", DEPTH)

    def rows(self, size: int) -> tuple[list[Any], list[Any]]:
        """Rows with reflection tokens, and the same examples as a prompt with the passage and a plain answer."""
        from rag.retrieve import freeze
        from tuning import augment
        from tuning.recipes import self_rag

        questions = self.train[:size]
        flat = freeze(self.retriever, self_rag.queries(questions), self.folder / f"frozen-{size}", DEPTH)
        found, at = [], 0
        for question in questions:
            more = len(augment.queries(question))
            found.append(flat[at : at + more])
            at += more
        known = augment.closed_book(questions, self.generator, self.folder / "known")
        examples, report = augment.augment(questions, found, chunks=self.retriever.index.chunks, answers=known)
        say(f"{self.name}, {size} questions: {report.rows} rows {dict(report.kinds)}")
        return [self_rag.row(e, self.generator) for e in examples], [self._plain(e) for e in examples]

    def _plain(self, example: Any) -> Any:
        from rag.prompt import render
        from rag.types import Passage
        from tuning.rows import Row

        passages = [Passage(chunk, rank, 0.0) for rank, chunk in enumerate(example.chunks, start=1)]
        messages = render(
            example.question.question, passages, count_tokens=self.generator.count_tokens, closed_book=not passages
        ).messages
        return Row(example.question.id, "answer", tuple(messages), example.stream.text)

    def adapter(self, name: str, rows: Sequence[Any], config: Any) -> tuple[str, float]:
        """The folder of a trained adapter, and what its training took in minutes."""
        from tuning.train import train

        def show(_: str, done: int, total: int, detail: str) -> None:
            if done % 10 == 0:
                say(f"{name}: {done}/{total} {detail}")

        made = train(rows, out=self.folder / name, config=replace(config, max_minutes=self.minutes), progress=show)
        return str(made.adapter), made.seconds / 60

    def answerer(self, arm: str, adapter: str | None, k: int, config: Any = None) -> Any:
        from rag.answer import AnswerConfig, Answerer
        from rag.self_rag import SelfRag

        modes = {arm: SelfRag(config)} if config else {}
        adapters = {arm: adapter} if adapter else {}
        return Answerer(self.generator, self.retriever, AnswerConfig(k=k), adapters=adapters, modes=modes)

    def answers(self, arm: str, adapter: str | None, *, k: int, **settings: Any) -> list[Any]:
        """Answers of one arm to the test questions; `settings` are those of self-rag."""
        from rag.self_rag_parts import SelfRagConfig

        answerer = self.answerer(arm, adapter, k, SelfRagConfig(k=k, **settings) if settings else None)
        begin = time.perf_counter()
        made = answerer.answer_many([q.question for q in self.test], arm=arm, retrievals=self.found)
        say(f"{self.name}: {arm} {settings} {(time.perf_counter() - begin) / len(made):.2f} s per answer")
        return list(made)

    def candidates(self, adapter: str) -> list[tuple[Any, float]]:
        """What self-rag decoded for each group of questions, five passages side by side, and its seconds per answer."""
        from rag.self_rag import Asking, together
        from rag.self_rag_parts import SelfRagConfig

        config = SelfRagConfig(k=5, delta=0.0, depth=1)
        answerer = self.answerer("self-rag", adapter, 5, config)
        size = together(answerer, config, "self-rag")
        made = []
        for at in range(0, len(self.test), size):
            begin = time.perf_counter()
            asked = [q.question for q in self.test[at : at + size]]
            asking = Asking(answerer, asked, config, arm="self-rag", frozen=self.found[at : at + size])
            for _ in asking.run():
                pass
            made.append((asking, (time.perf_counter() - begin) / len(asked)))
        say(f"{self.name}: self-rag {sum(s for _, s in made) / len(made):.2f} s per answer")
        return made

    def measured(self, answers: Sequence[Any]) -> Any:
        from rag.evaluate import evaluate

        return evaluate(answers, self.test, resamples=2000)


def line(name: str, evaluation: Any, answers: Sequence[Any]) -> str:
    """A row of a table."""
    from rag.self_rag import rates

    cells = []
    for metric in METRICS:
        found = evaluation.summary.get(metric)
        cells.append(f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})" if found else "")
    how = rates(answers)
    rate = f"{how['retrieval_rate']:.2f}" if how else ""
    each = f"{how['sequences_per_answer']:.1f}" if how else "1"
    seconds = sum(a.seconds for a in answers) / len(answers)
    return f"| {name} | {' | '.join(cells)} | {rate} | {each} | {seconds:.2f} |"


HEAD = "| | " + " | ".join(m.replace("_", " ") for m in METRICS) + " | retrieved | sequences | s/answer |\n"
HEAD += "|---" * (len(METRICS) + 4) + "|"


def difference(metric: str, one: Any, two: Any) -> str:
    """Mean of `one` minus that of `two` over the same questions, with its interval and p."""
    from rag.statistics import bootstrap_test, paired_bootstrap

    a, b = _per_question(metric, one), _per_question(metric, two)
    found = paired_bootstrap(a, b, clusters=one.clusters, resamples=2000)
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}, p {bootstrap_test(a, b, resamples=2000):.3f})"


def _per_question(metric: str, evaluation: Any) -> np.ndarray:
    if metric == "right to abstain or not":
        items = [item.metrics for item in evaluation.items]
        return np.array([float(row["abstained"] == row["unanswerable"]) for row in items])
    found: np.ndarray = evaluation.scores(metric)
    return found


ABLATIONS: dict[str, dict[str, Any]] = {
    "no critic (p of the segment alone)": {"weights": (0.0, 0.0, 0.0, 1.0)},
    "no IsSup": {"weights": (1.0, 0.0, 0.5, 1.0)},
    "no p of the segment": {"weights": (1.0, 1.0, 0.5, 0.0)},
    "hard constraints": {"hard": True},
    "top 1 only": {"k": 1},
}


def chosen(
    candidates: Sequence[tuple[Any, float]], *, weights: Sequence[float] | None = None, hard: bool = False, k: int = 5
) -> list[Any]:
    """Self-rag's answers when the score chooses among the first `k` candidates of each question."""
    from rag.reflection import Weights, select
    from rag.self_rag_parts import Beam

    rule, answers = Weights(*weights) if weights else Weights(), []
    for asking, seconds in candidates:
        again = copy.copy(asking)
        again.runs = []
        for n, run in enumerate(asking.runs):
            tried = run.tried[:k]
            for candidate in tried:
                candidate.own = candidate.judgement(True).score(rule)
            kept, _ = select([(c, c.own, c.support) for c in tried], 1, hard=hard)
            again.runs.append(replace(run, tried=tried, beams=[Beam(n, (c,), c.own) for c in kept]))
        answers += [replace(answer, seconds=seconds) for answer in again.answers()]
    return answers


def sweep(task: Task, always: Sequence[Any], never: Sequence[Any]) -> list[str]:
    """The retrieval rate and F1 at each δ."""
    out = ["", "| δ | retrieval rate | F1 | abstention F1 | sequences |", "|---|---|---|---|---|"]
    rates: list[float] = []
    for delta in DELTAS:
        taken = [a if delta <= 0 or a.details["r"] > delta else n for a, n in zip(always, never, strict=True)]
        rate = sum(a.details["retrieved"] for a in taken) / len(taken)
        found = task.measured(taken).summary
        each = sum(a.details["sequences"] for a in taken) / len(taken)
        abstained = found["abstention_f1"].mean if "abstention_f1" in found else float("nan")
        out.append(f"| {delta:g} | {rate:.3f} | {found['f1'].mean:.3f} | {abstained:.3f} | {each:.2f} |")
        rates.append(rate)
    falls = all(a >= b for a, b in itertools.pairwise(rates))
    return [*out, "", f"The retrieval rate {'falls' if falls else 'DOES NOT fall'} monotonically."]


def report(task: Task, sizes: Sequence[int], *, prompted: bool) -> list[str]:
    """The tables of one data set."""
    from tuning.recipes import self_rag

    out = [f"### {task.name}: {len(task.test)} test questions", ""]
    untouched = task.answers("rag", None, k=2)
    table = [HEAD, line("rag, untouched", task.measured(untouched), untouched)]
    if prompted:
        said = task.answers("self-rag", None, k=5, delta=0.0)
        table.append(line("self-rag, prompted, untouched", task.measured(said), said))
    notes: list[str] = []
    swept: list[str] = []
    for size in sizes:
        tokens, plain = task.rows(size)
        adapter, minutes = task.adapter(f"self-rag-{size}", tokens, self_rag.TRAIN)
        config = replace(self_rag.TRAIN, added_tokens=())
        other, other_minutes = task.adapter(f"plain-{size}", plain, config)
        theirs = {k: task.answers("rag", other, k=k) for k in (1, 2)}
        scores = {k: task.measured(answers) for k, answers in theirs.items()}
        best = max(scores, key=lambda k: float(scores[k].summary["f1"].mean))
        decoded = task.candidates(adapter)
        mine, never = chosen(decoded), task.answers("self-rag", adapter, k=5, depth=1, delta=1.0)
        measured = task.measured(mine)
        table.append(line(f"self-rag, {size} questions, {minutes:.1f} min", measured, mine))
        table += [
            line(f"rag, same rows without tokens, {other_minutes:.1f} min, k = {k}", scores[k], theirs[k])
            for k in theirs
        ]
        ablations = {name: chosen(decoded, **ablation) for name, ablation in ABLATIONS.items()}
        for name, answers in {**ablations, "no retrieval": never}.items():
            table.append(line(f"  {size}: {name}", task.measured(answers), answers))
        names = ("f1", "citation_precision", "citation_recall", "right to abstain or not")
        told = "; ".join(f"{m.replace('_', ' ')} {difference(m, measured, scores[best])}" for m in names)
        notes.append(f"- {size} questions, self-rag minus the adapter without tokens (k = {best}): {told}")
        swept = sweep(task, mine, never)
    return [*out, *table, "", *notes, *swept, ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sets",
        default="qa/squad_v2.0,qa/covidqa_longdoc",
        help="data sets, separated by commas; NAME:100+200 has sizes of its own",
    )
    parser.add_argument("--sizes", default="100,200,400", help="training questions, separated by commas")
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--minutes", type=float, help="longest training of each adapter")
    parser.add_argument("--work", type=Path, help="keep tasks, indexes and adapters here, and go on from them")
    parser.add_argument(
        "--no-prompted", action="store_true", help="leave the prompted arm out; only the first set has it"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        lines = ["## Self-RAG", "", "Means with 95 % intervals; every arm has the same frozen retrievals.", ""]
        for place, data_set in enumerate(given.sets.split(",")):
            name, _, own = data_set.partition(":")
            sizes = [int(size) for size in (own.split("+") if own else given.sizes.split(","))]
            task = Task(name, work, sizes, given.tests, given.minutes)
            lines += report(task, sizes, prompted=not given.no_prompted and place == 0)
    print("<!-- results -->\n" + "\n".join(lines) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
