"""The agent: share of traces; what is measured stands in `benchmarks.agent`, whose flags these are."""

from benchmarks.agent import main

if __name__ == "__main__":
    raise SystemExit(main("curve", "Agent: share of traces"))
