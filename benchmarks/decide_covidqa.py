"""The loop on qa/covidqa_longdoc, at most 15 minutes of training for each tuned arm.

python -m benchmarks.bench decide_covidqa -- --work FOLDER      keeps the index and the adapters
"""

from benchmarks.loop import run


def main() -> int:
    run("qa/covidqa_longdoc")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
