"""The LM scorer, teacher of the retriever: how likely an answer is after each passage, against a loop over the passages.

    python -m benchmarks.bench scorer
    python -m benchmarks.bench scorer -- --set qa/covidqa_longdoc --scored 100

The other side runs one plain forward for each passage, in the same format, and keeps only the answer's logits. Sides
take turns on parts of the questions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loop import make_task
from benchmarks.marginal import frozen


def loop(generator: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """The other side of the scorer: one forward for each passage."""
    import torch

    model, out = generator.model, []
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        values = torch.log_softmax(logits, dim=-1)[range(len(answer)), answer]
        out.append(float(values.sum()))
    return out


def score(
    generator: Any, questions: Sequence[Any], found: Sequence[Any], template: Any, rounds: int, work: Path
) -> list[str]:
    """Seconds of the loop and of the scorer in turns, the largest difference, and a second run from the cache."""
    from rag.marginal_prompt import lead, single
    from tuning.preference import lm_preference

    asked, answers = [q.question for q in questions], [q.answers[0] for q in questions]
    cache = work / f"scores-{template}.jsonl"
    cache.unlink(missing_ok=True)
    took = {"loop": 0.0, "scorer": 0.0, "cache": 0.0}
    worst, pairs = 0.0, 0
    size = -(-len(asked) // rounds)
    lm_preference(generator, asked[:1], answers[:1], found[:1], template=template)  # warm-up; nothing is kept
    for turn, begin in enumerate(range(0, len(asked), size)):
        part = slice(begin, begin + size)

        def theirs(part: slice = part) -> list[float]:
            began = time.perf_counter()
            rows = []
            for question, answer, passages in zip(asked[part], answers[part], found[part], strict=True):
                for passage in passages:
                    messages = single(question, passage, generator, template=template)
                    prompt = generator.prompt_ids(messages)
                    rows.append((prompt, generator.completion_ids(lead(messages) + answer.strip())))
            values = loop(generator, rows)
            took["loop"] += time.perf_counter() - began
            return values

        def ours(part: slice = part, name: str = "scorer") -> list[float]:
            began = time.perf_counter()
            arrays = lm_preference(generator, asked[part], answers[part], found[part], cache=cache, template=template)
            took[name] += time.perf_counter() - began
            return [float(v) for a in arrays for v in a[:, 0]]

        first, second = (theirs, ours) if turn % 2 == 0 else (ours, theirs)
        a, b = first(), second()
        worst, pairs = max(worst, *np.abs(np.array(a) - b)), pairs + len(a)
        print(f"scorer ({template}), turn {turn + 1}: {took}", file=sys.stderr, flush=True)
    began = time.perf_counter()
    lm_preference(generator, asked, answers, found, cache=cache, template=template)
    took["cache"] = time.perf_counter() - began
    return [
        f"| {template} | {len(asked)} × {pairs / max(1, len(asked)):.0f} | {took['loop']:.1f} | {took['scorer']:.1f} "
        f"| {took['loop'] / took['scorer']:.1f}× | {took['cache']:.2f} | {worst:.1e} |"
    ]


def whole(generator: Any, task: Path, count: int, work: Path) -> list[str]:
    """As retriever training asks: so many training questions, 10 passages each, and once more from the cache."""
    from rag.index import Index
    from rag.models import load_encoder
    from rag.questions import read_questions
    from rag.retrieve import Retriever
    from tuning.preference import lm_preference

    asked = [q for q in read_questions(task / "train.jsonl") if q.answers][:count]
    retriever = Retriever(Index.open(task / "index", load_encoder()))
    found = [hits[:10] for hits in retriever.search_many([q.question for q in asked], 10)]
    cache = work / "scores-whole.jsonl"
    cache.unlink(missing_ok=True)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        lm_preference(
            generator, [q.question for q in asked], [q.answers[0] for q in asked], found, cache=cache,
            progress=lambda done, total: print(f"scored {done} of {total}", file=sys.stderr, flush=True),
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
    return [
        f"\n{len(asked)} training questions × 10 passages, prompt “examples”: {seconds[0] / 60:.1f} minutes; again from "
        f"the cache {seconds[1]:.1f} s."
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set", default="qa/squad_v1.1", help="folder below shared/data")
    parser.add_argument("--scored", type=int, default=60, help="questions whose passages both sides score, 10 each")
    parser.add_argument("--whole", type=int, default=400, help="training questions that the scorer alone is timed on")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--dtype", default=None, help="fp32 or bf16, instead of the probe's choice")
    parser.add_argument("--work", type=Path, help="keep task and index here")
    given = parser.parse_args()

    from rag.models import load_generator

    generator: Any = load_generator(dtype=given.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        task = make_task(given.set, work)
        questions, found = frozen(task, 2 * given.scored, 10)
        chosen = [i for i, q in enumerate(questions) if q.answers][: given.scored]
        some, passages = [questions[i] for i in chosen], [found[i][:10] for i in chosen]
        form = str(generator.dtype).removeprefix("torch.")
        lines = [
            f"## LM scorer: answers of {given.set} after each passage\n",
            "| prompt | questions × passages | loop, s | scorer, s | faster | again, s | largest difference of an answer's "
            f"log-probability, nats, weights in {form} |",
            "|---" * 7 + "|",
        ]
        for template in ("examples", "background"):
            lines += score(generator, some, passages, template, given.rounds, work)
        if given.whole:
            lines += whole(generator, task, given.whole, work)
    print("<!-- results -->\n" + "\n".join(lines) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
