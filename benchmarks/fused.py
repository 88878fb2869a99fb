"""Fewer passes over a layer's values (rag/fused.py): the starter with them and without, in turns.

Two prompts of 1,000 tokens are read in a pass, and 24 streams move on by a token. Where the model was not prepacked, as
in fp32, there is nothing to compare, and the script says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks.threads import passes, seconds


def fused(model: Any) -> list[tuple[Any, Any]]:
    """(module, its fused forward) of all that run in fewer passes."""
    return [
        (module, module.forward) for module in model.modules()
        if "forward" in vars(module) and module.forward.__func__.__module__ == "rag.fused"
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=6)
    given = parser.parse_args()

    from rag.generator import load_local_generator

    model = load_local_generator("starter").model
    changed = fused(model)
    if not changed:
        print("Nothing is fused on this machine: the starter runs in fp32, or laid out weights do not pay.")
        return 1
    work = passes(model, 2 * given.pairs)
    found: dict[str, dict[bool, list[float]]] = {name: {True: [], False: []} for name in work}
    for turn in range(given.pairs):
        for on in (True, False) if turn % 2 else (False, True):
            for module, forward in changed:
                if on:
                    module.forward = forward
                else:
                    del module.forward
            for name, (run, times) in work.items():
                found[name][on].append(seconds(run, times))
            for module, forward in changed:
                module.forward = forward
        print(f"turn {turn + 1} done", file=sys.stderr, flush=True)
    print(f"<!-- results -->\n## Fewer passes over a layer's values\n\n{len(changed)} modules of the starter.\n")
    print("| | the model's own code, ms | fused, ms | ratio, median of pairs (lowest to highest) |\n|---|---|---|---|")
    for name, sides in found.items():
        ratios = sorted(b / a for a, b in zip(sides[False], sides[True], strict=True))
        print(
            f"| {name} | {1e3 * statistics.median(sides[False]):.0f} | {1e3 * statistics.median(sides[True]):.0f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    print("<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
