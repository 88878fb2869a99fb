"""The speed of retriever training; what is measured stands in `benchmarks.retriever`, whose flags these are."""

from benchmarks.retriever import main

if __name__ == "__main__":
    raise SystemExit(main(8, ()))
