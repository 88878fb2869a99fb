"""Answering many questions: our generator against transformers' own `generate`, turn by turn on the same prompts.

Both sides answer questions of SQuAD with three passages each, in the product's own prompt, greedily. Their side is what
a user would write: bf16, batches of 8 in the order of the questions, left padding, `model.generate`. Ours is
`LocalGenerator.generate` in the format that the probe chose (both formats with `--both`). Loading is not counted.
`--check` runs ours once more, one prompt at a time, and counts the answers that differ from the batched ones.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import shared_folder

BATCH = 8
PASSAGES = 3
WORDS = 150


def make_prompts(shared: Path, rows: int, count_tokens: Any) -> list[list[dict[str, str]]]:
    """Messages of `rows` test questions: the document that answers and two others, in seeded order."""
    from rag.prompt import render
    from rag.types import Chunk, Passage

    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder)
        tool = [sys.executable, str(shared / "tools/make_task.py"), str(shared / "data/qa/squad_v1.1"), folder]
        subprocess.run([*tool, "--test", str(rows)], check=True, stdout=subprocess.DEVNULL)
        corpus = {p.name: p.read_text(encoding="utf-8").split() for p in sorted((task / "corpus").glob("*.txt"))}
        questions = [json.loads(line) for line in (task / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    names, chance = sorted(corpus), random.Random(0)
    prompts = []
    for question in questions:
        sources = [question["evidence"][0]["source"], *chance.sample(names, PASSAGES - 1)]
        chance.shuffle(sources)
        passages = []
        for rank, source in enumerate(sources, start=1):
            text = " ".join(corpus[source][:WORDS])
            passages.append(Passage(Chunk(source, source, source, 0, len(text), text), rank, 1.0))
        prompts.append(render(question["question"], passages, count_tokens=count_tokens, style="cited").messages)
    return prompts


def theirs(model: Any, tokenizer: Any, prompts: Sequence[Any], max_new_tokens: int) -> list[str]:
    """The textbook loop."""
    import torch

    answers = []
    for begin in range(0, len(prompts), BATCH):
        batch = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
            for p in prompts[begin : begin + BATCH]
        ]
        encoded = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False)
        answers += tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def timed(work: Any) -> tuple[float, list[str]]:
    """Seconds and answers."""
    begin = time.perf_counter()
    answers = work()
    return time.perf_counter() - begin, answers


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3, help="the rows are cut into this many turns for each side")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--both", action="store_true", help="ours in fp32 and in bf16, instead of the probe's choice")
    parser.add_argument("--check", action="store_true", help="count answers that differ from an unbatched run")
    given = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        print("No shared data: set RAGTUNE_SHARED to the folder that holds data/ and tools/.", file=sys.stderr)
        return 1

    import torch

    from rag.models import base_model, load_generator
    from rag.protocols import Decoding

    ours = {g.dtype: g for g in (load_generator(dtype=d) for d in (("fp32", "bf16") if given.both else (None,)))}
    model, tokenizer, _ = base_model(dtype="bf16")
    first = next(iter(ours.values()))
    prompts = make_prompts(shared, given.rows, first.count_tokens)
    lengths = [len(first.prompt_ids(p)) for p in prompts]
    decoding = Decoding(max_new_tokens=given.max_new_tokens)
    sides: dict[str, Any] = {
        "transformers, bf16, batches of 8": lambda p: theirs(model, tokenizer, p, given.max_new_tokens)
    }
    for dtype, generator in ours.items():
        sides[f"ours, {str(dtype).removeprefix('torch.')}"] = lambda p, g=generator: [
            a.text for a in g.generate(p, decoding)
        ]
    for work in sides.values():
        work(prompts[:2])  # warm-up

    seconds = dict.fromkeys(sides, 0.0)
    answers: dict[str, list[str]] = {name: [] for name in sides}
    size = -(-len(prompts) // given.rounds)
    for turn, begin in enumerate(range(0, len(prompts), size)):
        part = prompts[begin : begin + size]
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            took, said = timed(lambda name=name, part=part: sides[name](part))
            seconds[name] += took
            answers[name] += said
            print(f"turn {turn + 1}: {name}: {took:.1f} s for {len(part)}", file=sys.stderr, flush=True)

    reference = next(iter(sides))
    print("<!-- results -->")
    print(
        f"## Generation: {len(prompts)} SQuAD questions, {PASSAGES} passages, up to {given.max_new_tokens} new tokens\n"
    )
    print(
        f"Prompts of {min(lengths)}-{max(lengths)} tokens ({sum(lengths)} in all), {torch.get_num_threads()} threads.\n"
    )
    print("| | seconds | of transformers | prompt tokens/s | answers equal to transformers |\n|---|---|---|---|---|")
    for name in sides:
        same = sum(a.strip() == b.strip() for a, b in zip(answers[name], answers[reference], strict=True))
        share = seconds[name] / seconds[reference]
        print(
            f"| {name} | {seconds[name]:.1f} | {share:.0%} | {sum(lengths) / seconds[name]:.0f} | {same} of {len(prompts)} |"
        )
    if given.check:
        for dtype, generator in ours.items():
            name = f"ours, {str(dtype).removeprefix('torch.')}"
            alone = [generator.generate([p], decoding)[0].text for p in prompts]
            differ = sum(a != b for a, b in zip(alone, answers[name], strict=True))
            print(f"\n{name}: {differ} of {len(prompts)} answers differ between a batched and an unbatched run.")
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
