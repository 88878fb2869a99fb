"""The speed of the agent's loop and of collecting; what is measured stands in `benchmarks.agent`, whose flags these are."""

from benchmarks.agent import main

if __name__ == "__main__":
    raise SystemExit(main("speed,collect", "Agent: speed"))
