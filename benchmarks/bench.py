"""`make bench`: runs the benchmark scripts and keeps what they print in RESULTS.md, one section for each script.

    python -m benchmarks.bench                 all of them
    python -m benchmarks.bench index lexical   these
    python -m benchmarks.bench index -- --pairs 1      what follows -- goes to the scripts

A script is a module of this package that runs with `python -m`. It prints Markdown on stdout (only what stands between
`<!-- results -->` and `<!-- /results -->`, where it prints these lines) and progress on stderr. The section of a script
is replaced when it has run to its end, and left alone when it failed; the exit code is 1 when any did.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from apps.huge_pages import VARIABLE, request_huge_pages

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "trl",
    "peft",
    "faiss-cpu",
    "bm25s",
    "langchain-community",
)
HEAD = """# Results

Each section is what its script printed on the machine and day it names; `make bench` runs them all again, and
`python -m benchmarks.bench NAME` one of them. Both sides of a comparison ran in the same process or turn by turn.
"""


def shared_folder() -> Path | None:
    """The folder of shared data sets: RAGTUNE_SHARED, or `shared` beside the checkout; None where there is none."""
    named = os.environ.get("RAGTUNE_SHARED")
    folder = Path(named) if named else HERE.parents[1] / "shared"
    return folder if (folder / "data").is_dir() else None


def machine() -> str:
    """Processor with what it has for matrices, cores, memory, Python, and a limit on threads where one is set."""
    import psutil

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        told = info.read_text(encoding="utf-8")
        named = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
        flags = re.search(r"^flags\s*:\s*(.+)$", told, re.MULTILINE)
        # Machines of one name differ: with tiles bf16 is five times fp32, without them it may be half.
        known = set(flags.group(1).split()) if flags else set()
        units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known][-1:]
        model = " with ".join([named.group(1) if named else model, *units])
    memory = psutil.virtual_memory().total / 2**30
    threads = os.environ.get("OMP_NUM_THREADS")
    tunables = os.environ.get(VARIABLE)
    return (
        f"{model}, {len(psutil.Process().cpu_affinity())} cores, {memory:.0f} GiB, Python {platform.python_version()}"
        + (f", OMP_NUM_THREADS={threads}" if threads else "")
        + (f", {VARIABLE}={tunables}" if tunables else "")
    )


def versions(names: Sequence[str] = PACKAGES) -> str:
    """`name version` of those that are installed."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def scripts() -> list[str]:
    """Names of the benchmark scripts."""
    return sorted(
        path.stem
        for path in HERE.glob("*.py")
        if path.stem not in ("__init__", "bench") and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    )


def body(printed: str) -> str:
    """What belongs into the results."""
    between = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", printed, re.DOTALL)
    return (between.group(1) if between else printed).strip()


def replace_section(text: str, name: str, section: str) -> str:
    """`text` of RESULTS.md with the section of this script replaced, or added at its place in the alphabet."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{section.strip()}\n{end}\n"
    if begin in text:
        return re.sub(re.escape(begin) + r".*?" + re.escape(end) + r"\n?", lambda _: block, text, flags=re.DOTALL)
    for later in re.findall(r"<!-- begin (\S+) -->", text):
        if later > name:
            at = text.index(f"<!-- begin {later} -->")
            return f"{text[:at]}{block}\n{text[at:]}"
    return f"{text.rstrip()}\n\n{block}"


def run(name: str, arguments: Sequence[str]) -> str | None:
    """The section of one script, or None when it failed (its own messages are on stderr)."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    print(f"== {' '.join(['python', *command[1:]])}", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        print(f"== {name} failed with exit code {done.returncode} after {seconds:.0f} s", file=sys.stderr, flush=True)
        return None
    print(f"== {name} done in {seconds:.0f} s", file=sys.stderr, flush=True)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    shown = " ".join(["python", *command[1:]])
    return f"{body(done.stdout)}\n\n*{day}, `{shown}` in {seconds:.0f} s. {machine()}. {versions()}.*"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named scripts (default: all) and write their sections."""
    argv = list(sys.argv[1:] if argv is None else argv)
    passed_on: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, passed_on = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description="Run benchmarks, keep the results.")
    parser.add_argument("names", nargs="*", help=f"which of: {', '.join(scripts())} (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to keep the results in")
    given = parser.parse_args(argv)
    unknown = sorted(set(given.names) - set(scripts()))
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(scripts())}")
    failed = []
    for name in given.names or scripts():
        section = run(name, passed_on)
        if section is None:
            failed.append(name)
            continue
        text = given.out.read_text(encoding="utf-8") if given.out.exists() else HEAD
        given.out.write_text(replace_section(text, name, section), encoding="utf-8")
    if failed:
        print(f"== failed: {', '.join(failed)}; their sections are as they were", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    request_huge_pages()  # as `ragtune` does; the scripts and both of their sides inherit it
    raise SystemExit(main())
