"""What threads that computed once, and now wait, cost the one that computes: why a server computes in one thread.

Two prompts of 1,000 tokens are read in a pass, and 24 streams move on by a token, with no other thread, and while
`--others` threads wait that have each run one product (each has a team of OpenMP workers since). In turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LENGTH, STREAMS, PASSES, STEPS = 1000, 24, 3, 12


@contextmanager
def waiting(count: int) -> Iterator[None]:
    """`count` threads that have computed and wait until the end."""
    import torch

    ready, over = threading.Barrier(count + 1), threading.Event()

    def one() -> None:
        (torch.randn(400, 400) @ torch.randn(400, 400) * 2).sum()
        ready.wait()
        over.wait()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def seconds(work: Callable[[], Any], times: int) -> float:
    """The median of several runs."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def passes(model: Any, turns: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is timed, and how often in a turn; there is room for so many turns."""
    from rag.packed import PackedBackend, Segment

    backend = PackedBackend(model, slots=STREAMS, capacity=LENGTH + STEPS * 2 * turns + 64)
    ids = [(i * 37) % 40_000 + 100 for i in range(LENGTH)]

    def prompts(first: int = 0) -> None:
        both = [Segment(ids, 0, slot, slot) for slot in (first, first + 1)]
        backend.grow(both, [LENGTH - 1, 2 * LENGTH - 1])

    def step() -> None:
        backend.step([(slot, 5) for slot in range(STREAMS)], park=True)

    for slot in range(0, STREAMS, 2):
        prompts(slot)
    return {"two prompts of 1,000 tokens": (prompts, PASSES), f"a step of {STREAMS} streams": (step, STEPS)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--others", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=4)
    given = parser.parse_args()

    from rag.generator import load_local_generator

    work = passes(load_local_generator("starter").model, 2 * given.pairs)
    found: dict[str, dict[int, list[float]]] = {name: {0: [], given.others: []} for name in work}
    for turn in range(given.pairs):
        for others in (0, given.others) if turn % 2 == 0 else (given.others, 0):
            with waiting(others):
                for name, (run, times) in work.items():
                    found[name][others].append(seconds(run, times))
            print(f"turn {turn + 1}: {others} others done", file=sys.stderr, flush=True)
    print("<!-- results -->\n## Threads that wait")
    print(f"\n| | alone, ms | {given.others} idle threads, ms | ratio, median of pairs (lowest to highest) |")
    print("|---|---|---|---|")
    for name, sides in found.items():
        ratios = sorted(b / a for a, b in zip(sides[0], sides[given.others], strict=True))
        print(
            f"| {name} | {1e3 * statistics.median(sides[0]):.0f} | {1e3 * statistics.median(sides[given.others]):.0f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
