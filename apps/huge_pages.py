"""Large pages of memory for the whole process, where the system leaves that to the program.

A model's weights are read from end to end for every token. In pages of 4 KiB the processor looks up an address for each
of them, in a virtual machine through two tables; in pages of 2 MiB five hundred times less often. Most distributions
ask programs to request large pages (`madvise`); glibc 2.35 and later request them for all they allocate when a variable
is set as the process starts (GLIBC_TUNABLES, "Memory Allocation Tunables" in its manual). So `ragtune` starts itself
again with that variable: same process id, same arguments. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` leaves it out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def request_huge_pages() -> None:
    """Start this process again with large pages requested, if that changes anything; else return.

    To be called by a program's own entry point only, before it has read or opened anything.
    """
    value = tunables(os.environ, _read(MODE), _libc())
    if value is not None and sys.executable and sys.orig_argv:
        with suppress(OSError):  # a sandbox that forbids it: everything works without, slower
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: value})


def tunables(environ: Mapping[str, str], mode: str, libc: str) -> str | None:
    """What GLIBC_TUNABLES should be, or None to leave it: where the choice is made already, by the user or by the
    system for all programs ("[always] madvise never", "... [never]"), or where the C library does not know it."""
    given = environ.get(VARIABLE, "")
    name, _, number = libc.partition(" ")
    if TUNABLE in given or "[madvise]" not in mode or name != "glibc":
        return None
    if tuple(int(part) for part in number.split(".")[:2] if part.isdecimal()) < (2, 35):
        return None
    return ":".join(filter(None, [given, f"{TUNABLE}=1"]))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # another system, or a kernel without them
        return ""


def _libc() -> str:
    """ "glibc 2.36"; "" elsewhere."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # Windows; macOS; musl
        return ""
