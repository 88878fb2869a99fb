"""The same work in pages of 4 KiB and of 2 MiB: what `ragtune` gains by requesting large ones (apps/huge_pages.py).

Each side is a process of its own, started turn by turn with `glibc.malloc.hugetlb` off and on: it answers questions of
the sample handbook with three passages each, in one batch and one alone, and trains an adapter on such rows. Loading is
not counted. On a machine whose system gives large pages to all programs, or to none, both sides are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from apps.huge_pages import MODE, TUNABLE, VARIABLE

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "handbook"
PASSAGES, QUESTIONS, ROWS = 3, 12, 12
WORK = {
    "prompts": f"{QUESTIONS} prompts, one token each",
    "answers": f"{QUESTIONS} answers of up to 48 tokens",
    "alone": "one answer of up to 64 tokens alone",
    "training": f"an epoch of LoRA on {ROWS} rows",
    "memory": "memory at most, MiB",
}


def rendered(count: int) -> list[tuple[Any, str]]:
    """Messages and answers of training questions, each with its document and the two that follow it."""
    from rag.prompt import render
    from rag.types import Chunk, Passage

    folder = SAMPLE / "documents"
    texts = {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8")[:800]
        for p in folder.rglob("*")
        if p.suffix in (".md", ".txt", ".rst", ".html")
    }
    names = sorted(texts)
    found = []
    for line in (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        first = next((names.index(e["source"]) for e in asked.get("evidence", ()) if e["source"] in texts), None)
        if first is None:
            continue
        shown = [names[(first + i) % len(names)] for i in range(PASSAGES)]
        passages = [Passage(Chunk(n, n, n, 0, len(texts[n]), texts[n]), i, 1.0) for i, n in enumerate(shown, 1)]
        prompt = render(asked["question"], passages, count_tokens=lambda text: len(text) // 4, budget=4096)
        found.append((prompt.messages, asked["answers"][0]))
    return found[:count]


def work() -> dict[str, float]:
    """Seconds of each piece in this process, and its memory."""
    from rag.models import load_generator
    from rag.protocols import Decoding
    from tuning.rows import Row
    from tuning.train import TrainConfig, train

    pairs = rendered(ROWS)
    prompts = [messages for messages, _ in pairs[:QUESTIONS]]
    generator = load_generator("starter")
    seconds = {}

    def clock(name: str, run: Any) -> None:
        began = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - began

    generator.generate(prompts[:2], Decoding(max_new_tokens=4))
    clock("prompts", lambda: generator.generate(prompts, Decoding(max_new_tokens=1)))
    clock("answers", lambda: generator.generate(prompts, Decoding(max_new_tokens=48)))
    alone = Decoding(max_new_tokens=64)
    clock("alone", lambda: list(generator.stream(prompts[0], alone)))
    rows = [Row(f"r{i}", "answer", tuple(messages), answer) for i, (messages, answer) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        seconds["training"] = train(rows, base="starter", out=out, config=TrainConfig(save_steps=10_000)).seconds
    return {**seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(work()))
        return 0
    sides: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for turn in range(given.pairs):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            environ = {**os.environ, VARIABLE: f"{TUNABLE}={side}"}
            line = [sys.executable, "-m", "benchmarks.huge_pages", "--child"]
            done = subprocess.run(line, env=environ, check=True, stdout=subprocess.PIPE, text=True)
            sides[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"turn {turn + 1}, {TUNABLE}={side}: {sides[side][-1]}", file=sys.stderr)
    print("<!-- results -->\n## Large pages of memory")
    print(f"\nThe system's rule for large pages: `{MODE.read_text().strip() if MODE.exists() else 'none'}`.")
    print("\n| | 4 KiB pages, s | 2 MiB pages, s | ratio, median of pairs (lowest to highest) |\n|---|---|---|---|")
    for key, name in WORK.items():
        small, large = ([run[key] for run in sides[side]] for side in (0, 1))
        digits = 0 if key == "memory" else 1
        ratios = sorted(b / a for a, b in zip(small, large, strict=True))
        print(
            f"| {name} | {statistics.median(small):.{digits}f} | {statistics.median(large):.{digits}f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
