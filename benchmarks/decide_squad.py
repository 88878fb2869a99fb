"""The loop on qa/squad_v1.1, at most 15 minutes of training for each tuned arm.

python -m benchmarks.bench decide_squad -- --work FOLDER      keeps the index and the adapters
"""

from benchmarks.loop import run


def main() -> int:
    run("qa/squad_v1.1")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
