"""Both sides of the retriever trained; what is measured stands in `benchmarks.retriever`, whose flags these are."""

from benchmarks.retriever import main

if __name__ == "__main__":
    raise SystemExit(main(recipes=("retriever-both",), title="Retriever half: both sides trained"))
