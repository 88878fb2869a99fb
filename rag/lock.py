"""At most one writer for an index folder, by a lock that the system releases when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from rag.errors import IndexLocked

LOCK = "lock"


class WriteLock:
    """At most one writer for a folder; the lock dies with its process, so a stale one never blocks.

    IndexLocked, naming pid, host and start of the other writer, after at most half a second.
    """

    def __init__(self, folder: Path, *, patience: float = 0.5) -> None:
        self.path = folder / LOCK
        self.patience = patience
        self._handle: int | None = None

    def __enter__(self) -> WriteLock:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self.patience
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                os.lseek(handle, 0, os.SEEK_SET)
                holder = os.read(handle, 4096).decode("utf-8", "replace")
                os.close(handle)
                raise IndexLocked(_locked_sentence(self.path.parent, holder))
            time.sleep(0.02)
        try:
            os.ftruncate(handle, 0)
            mine = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(mine).encode())
        except OSError:
            os.close(handle)
            raise
        self._handle = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that is on its way out
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None


def _try_lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _locked_sentence(folder: Path, holder: str) -> str:
    try:
        data = json.loads(holder)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(data["time"]))
        who = f"process {data['pid']} on {data['host']} since {when}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"The index {folder} is being written by {who}. Wait until it ends, or stop it, and try again."
