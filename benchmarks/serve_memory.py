"""Memory of the server under load; what is measured stands in `benchmarks.serve_process`, whose flags these are."""

from benchmarks.serve_process import main

if __name__ == "__main__":
    raise SystemExit(main(0, 10.0, "Memory of the server"))
