"""The loop on qa/covidqa_longdoc, at most 15 minutes of training for each tuned arm.

python -m benchmarks.bench decide_covidqa -- --work FOLDER      keeps the index and the adapters
"""

from benchmarks.loop import run

if __name__ == "__main__":
    run("qa/covidqa_longdoc")
