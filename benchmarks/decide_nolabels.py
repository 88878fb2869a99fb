"""The loop on qa/squad_v1.1 without any labels: training questions come from `ragtune questions`, at most 15 minutes of training for each tuned arm.

python -m benchmarks.bench decide_nolabels -- --work FOLDER      keeps the index and the adapters
"""

from benchmarks.loop import run


def main() -> int:
    run("qa/squad_v1.1", labels=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
