"""Large pages are requested where the system leaves it to the program, once, and in the same process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from apps import huge_pages
from apps.huge_pages import MODE, TUNABLE, VARIABLE, tunables

ASKED, LIBC = "always [madvise] never\n", "glibc 2.36"
ON = f"{TUNABLE}=1"


@pytest.mark.parametrize(
    ("environ", "mode", "libc", "expected"),
    [
        ({}, ASKED, LIBC, ON),
        ({}, ASKED, "glibc 2.35", ON),
        ({VARIABLE: "glibc.malloc.check=3"}, ASKED, LIBC, f"glibc.malloc.check=3:{ON}"),
        ({VARIABLE: ON}, ASKED, LIBC, None),  # started again already
        ({VARIABLE: f"{TUNABLE}=0"}, ASKED, LIBC, None),  # the user says no
        ({}, "[always] madvise never\n", LIBC, None),  # every program has them
        ({}, "always madvise [never]\n", LIBC, None),  # no program has them
        ({}, "", LIBC, None),  # no such kernel
        ({}, ASKED, "glibc 2.34", None),  # would not know the name
        ({}, ASKED, "", None),  # musl
    ],
)
def test_when_they_are_requested(environ: dict[str, str], mode: str, libc: str, expected: str | None) -> None:
    assert tunables(environ, mode, libc) == expected


def test_the_process_starts_again_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(huge_pages.os, "execve", lambda *how: called.append(how))
    monkeypatch.setattr(huge_pages, "tunables", lambda *_: ON)
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "-m", "apps.cli", "ask", "a b"])
    huge_pages.request_huge_pages()
    [(program, argv, environ)] = called
    assert (program, argv) == (sys.executable, [sys.executable, "-X", "dev", "-m", "apps.cli", "ask", "a b"])
    assert environ == {**os.environ, VARIABLE: ON}
    monkeypatch.setattr(huge_pages, "tunables", lambda *_: None)
    huge_pages.request_huge_pages()
    assert len(called) == 1


def test_a_sandbox_that_forbids_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*how: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(huge_pages.os, "execve", forbidden)
    monkeypatch.setattr(huge_pages, "tunables", lambda *_: ON)
    assert huge_pages.request_huge_pages() is None


@pytest.mark.skipif(
    tunables({}, huge_pages._read(MODE), huge_pages._libc()) is None,
    reason="not the choice of a program on this system",
)
def test_what_is_allocated_is_marked_for_them() -> None:
    code = (
        "import os, sys; from apps.huge_pages import request_huge_pages; request_huge_pages(); "
        "import ctypes; c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p; p = c.malloc(64 << 20); "
        "found = False\n"
        "for line in open('/proc/self/smaps'):\n"
        "    head = line.split()[0]\n"
        "    if '-' in head and ':' not in head:\n"
        "        found = int(head.split('-')[0], 16) <= p < int(head.split('-')[1], 16)\n"
        "    elif found and head == 'VmFlags:':\n"
        "        print(os.getpid(), 'hg' in line.split(), sys.argv[1])\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != VARIABLE}
    with subprocess.Popen([sys.executable, "-c", code, "a b"], env=environ, stdout=subprocess.PIPE, text=True) as child:
        said = child.communicate(timeout=60)[0]
    assert said.split(maxsplit=2) == [str(child.pid), "True", "a b\n"]
