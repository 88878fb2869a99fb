"""Ways to fuse passages on the same frozen retrievals: quality and cost.

    python -m benchmarks.bench marginal                                  untouched model, SQuAD
    python -m benchmarks.bench marginal -- --work FOLDER --adapter rag=DIR --adapter ra-dit=DIR
    python -m benchmarks.bench marginal -- --sets qa/squad_v1.1 qa/covidqa_longdoc --test 100

Every arm answers the same questions over the same passages, in turns on the same machine; concatenation (`rag`) is the
base line of the times. An adapter named `rag` serves every arm but `ra-dit`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loop import command, make_task

ARMS = ("rag", "rag-token", "rag-sequence", "rag-sequence fast", "replug", "ra-dit")


def frozen(task: Path, count: int, depth: int) -> tuple[list[Any], list[list[Any]]]:
    """Test questions of a task and the passages found for them, from an index that is made where it lacks."""
    from rag.index import Index
    from rag.models import load_encoder
    from rag.questions import read_questions
    from rag.retrieve import Retriever, freeze

    if not (task / "index").is_dir():
        command("index", task / "corpus", "--out", task / "index")
    questions = list(read_questions(task / "test.jsonl"))[:count]
    retriever = Retriever(Index.open(task / "index", load_encoder()))
    return questions, freeze(retriever, [q.question for q in questions], task / "frozen", depth)


def answerers(generator: Any, k: int, temperature: float, adapters: dict[str, str]) -> dict[str, tuple[Any, str]]:
    """For each line of the table an answerer and the arm that it is asked with."""
    from rag.answer import AnswerConfig, Answerer
    from rag.marginal import MarginalConfig, RagSequence, marginal_modes

    config = AnswerConfig(k=k, context_tokens=4096)
    own = {arm: folder for arm in ARMS if (folder := adapters.get(arm, adapters.get("rag")))}
    made = {}
    for name in ARMS:
        arm = name.split(" ")[0]
        modes: dict[str, Any] = dict(marginal_modes(temperature=temperature))
        if name.endswith(" fast"):
            modes[arm] = RagSequence(MarginalConfig(beams=2, temperature=temperature, decoding="fast"))
        made[name] = (Answerer(generator, None, config, adapters=own, modes=modes), arm)
    return made


def fuse(sides: dict[str, tuple[Any, str]], questions: Sequence[Any], found: Sequence[Any], rounds: int) -> list[str]:
    """Answers of every arm, in turns; a table of quality and cost."""
    from rag.evaluate import evaluate
    from rag.statistics import paired_bootstrap

    for answerer, arm in sides.values():
        answerer.answer_many([questions[0].question], arm=arm, retrievals=[found[0]])  # warm-up
    answers: dict[str, list[Any]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    size = -(-len(questions) // rounds)
    for turn, begin in enumerate(range(0, len(questions), size)):
        part = slice(begin, begin + size)
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            answerer, arm = sides[name]
            began = time.perf_counter()
            asked = [q.question for q in questions[part]]
            answers[name] += answerer.answer_many(asked, arm=arm, retrievals=found[part])
            seconds[name] += time.perf_counter() - began
            print(f"turn {turn + 1}: {name}: {seconds[name]:.1f} s so far", file=sys.stderr, flush=True)
    results = {name: evaluate(given, questions) for name, given in answers.items()}
    base = np.array([item.metrics["f1"] for item in results["rag"].items], float)
    clusters = [item.cluster for item in results["rag"].items]
    out = ["| fusion | F1 | 95 % | EM | F1 − rag | s/question | of rag | tokens in | equal to rag |", "|---" * 9 + "|"]
    for name, result in results.items():
        f1 = result.summary["f1"]
        own = np.array([item.metrics["f1"] for item in result.items], float)
        difference = paired_bootstrap(own, base, clusters=clusters)
        same = sum(_plain(a) == _plain(b) for a, b in zip(answers[name], answers["rag"], strict=True))
        out.append(
            f"| {name} | {f1.mean:.3f} | {f1.low:.3f} to {f1.high:.3f} | {result.summary['em'].mean:.3f} "
            f"| {difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}) "
            f"| {seconds[name] / len(questions):.2f} | {seconds[name] / seconds['rag']:.2f}× "
            f"| {statistics.mean(a.tokens_in for a in answers[name]):.0f} | {same} of {len(questions)} |"
        )
    return out


def _plain(answer: Any) -> str:
    from rag.evaluate import plain_text

    return plain_text(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["qa/squad_v1.1"])
    parser.add_argument("--test", type=int, default=60, help="questions of each set that are answered")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.1, help="of the softmax over cosine scores")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--dtype", default=None, help="fp32 or bf16, instead of the probe's choice")
    parser.add_argument("--adapter", action="append", default=[], metavar="ARM=DIR")
    parser.add_argument("--work", type=Path, help="keep tasks and indexes here")
    given = parser.parse_args()

    from rag.models import load_generator

    adapters = dict(item.split("=", 1) for item in given.adapter)
    generator: Any = load_generator(dtype=given.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        lines: list[str] = []
        for name in given.sets:
            task = make_task(name, work)
            questions, found = frozen(task, given.test, max(10, given.k))
            tuned = ", ".join(f"{arm}: {folder}" for arm, folder in adapters.items()) or "none"
            lines += [
                f"\n## Fusion of {given.k} passages: {len(questions)} questions of {name}\n",
                f"The same frozen retrievals for all; temperature {given.temperature:g}; adapters: {tuned}.\n",
                *fuse(answerers(generator, given.k, given.temperature, adapters), questions, found, given.rounds),
            ]
    print("<!-- results -->\n" + "\n".join(lines).strip() + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
