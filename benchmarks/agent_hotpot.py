"""The agent: HotpotQA-100; what is measured stands in `benchmarks.agent`, whose flags these are."""

from benchmarks.agent import main

if __name__ == "__main__":
    raise SystemExit(main("hotpot", "Agent: HotpotQA-100"))
