"""One long-lived child process that reads PDF, DOCX and HTML under limits of time and memory.

A parser that loops, crashes or grows takes only the child with it: the file gets a `LoadError`, the next file a new
child. The child is started by command line (`multiprocessing` would import the caller's main module again), knows no
file names, gets the bytes through a pipe and answers in JSON; on POSIX it cannot grow beyond its address-space limit,
write into a file, or outlive its deadline by more than seconds even when its parent is gone.

    request    one JSON line {"kind", "size", "limit", "seconds"}, then `size` bytes
    reply      one JSON line {"size"}, then that many bytes of JSON: {"text", ...} or {"error"}
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rag.errors import LoadError
from rag.load_text import Parsed
from rag.types import Heading

if TYPE_CHECKING:
    from rag.load import LoadConfig

_START = "import sys; sys.path.insert(0, sys.argv[1]); from rag.load_worker import serve; serve(int(sys.argv[2]))"
_ADVICE = "it may be damaged: export it anew or split it"
_WALL = 4  # seconds by the clock for each second of processor time
_TIME_SIGNALS = tuple(-getattr(signal, name) for name in ("SIGPROF", "SIGALRM") if hasattr(signal, name))
_lock = threading.Lock()
_child: _Child | None = None


def read(kind: str, data: bytes, *, limit: int) -> Parsed:
    """Reads "pdf", "docx" or "html" in this process. LoadError with a sentence when that is not possible."""
    from rag import load_docx, load_html, load_pdf

    readers = {"pdf": load_pdf.read_pdf, "docx": load_docx.read_docx, "html": load_html.read_html}
    return readers[kind](data, limit)


def read_isolated(kind: str, data: bytes, config: LoadConfig) -> Parsed:
    """`read` in the child process. LoadError when it fails, takes too long, or needs too much memory."""
    global _child
    with _lock:
        if _child is None or not _child.usable(config.megabytes):
            _drop()
            _child = _Child(config.megabytes)
            atexit.unregister(close)  # once, however many children there were
            atexit.register(close)
        reply = _child.ask(kind, data, config)
        if reply is None:
            late = _child.late
            _drop()
            if late:
                raise LoadError(f"could not be read within {config.seconds:g} seconds; {_ADVICE}")
            raise LoadError(f"made its reader crash or needs more than {config.megabytes:,} MB of memory; {_ADVICE}")
    if "error" in reply:
        raise LoadError(reply["error"])
    headings = tuple(Heading(start, level, text) for start, level, text in reply["headings"])
    return Parsed(reply["text"], reply["title"], tuple(reply["page_starts"]), headings, tuple(reply["warnings"]))


def close() -> None:
    """Ends the child process, if there is one."""
    with _lock:
        _drop()


def _drop() -> None:
    global _child
    if _child is not None:
        _child.end()
        _child = None


class _Child:
    """The parent's end of the child process."""

    def __init__(self, megabytes: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        self.megabytes = megabytes
        self.owner = os.getpid()
        self.late = False
        self.process = subprocess.Popen(
            # -I: neither the current folder nor PYTHON* variables decide what the child imports.
            [sys.executable, "-I", "-B", "-c", _START, root, str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def usable(self, megabytes: int) -> bool:
        # After a fork both processes hold the same pipes: the child must belong to this process.
        return self.owner == os.getpid() and self.megabytes == megabytes and self.process.poll() is None

    def ask(self, kind: str, data: bytes, config: LoadConfig) -> dict[str, Any] | None:
        """The reply, or None when the child died or was stopped (`late` says that it was time)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        # The child stops itself by processor time, which a busy machine does not shorten; this is for one that sleeps.
        timer = threading.Timer(_WALL * config.seconds, self._stop)
        timer.daemon = True
        timer.start()
        try:
            request = {"kind": kind, "size": len(data), "limit": config.max_characters, "seconds": config.seconds}
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.write(data)
            self.process.stdin.flush()
            head = self.process.stdout.readline()
            if not head:
                self.late |= self.process.wait(5) in _TIME_SIGNALS
                return None
            size = json.loads(head)["size"]
            body = self.process.stdout.read(size)
            return json.loads(body) if len(body) == size else None
        except (OSError, ValueError, subprocess.TimeoutExpired):  # the pipe broke: the child is gone
            return None
        except BaseException:  # Ctrl-C in the middle of a reply: what is left in the pipe would answer the next request
            self._stop()
            raise
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self.late = True
        self.process.kill()

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                continue  # unsent bytes for a child that is gone


# --- the child --------------------------------------------------------------------------------------------------------


def serve(megabytes: int) -> None:
    """The loop of the child process: reads requests from stdin until it ends."""
    _limit_self(megabytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may get into the replies
    while line := requests.readline():
        request = json.loads(line)
        _alarm(request["seconds"])
        data = requests.read(request["size"])
        if len(data) < request["size"]:
            return
        body = _answer(request, data)
        _alarm(0)
        _send(replies, body)


def _answer(request: dict[str, Any], data: bytes) -> bytes:
    try:
        parsed = read(request["kind"], data, limit=request["limit"])
        reply: dict[str, Any] = {
            "text": parsed.text,
            "title": parsed.title,
            "page_starts": parsed.page_starts,
            "headings": [(h.start, h.level, h.text) for h in parsed.headings],
            "warnings": parsed.warnings,
        }
        return json.dumps(reply).encode("ascii")
    except LoadError as error:
        reply = {"error": str(error)}
    except (MemoryError, RecursionError):
        reply = {"error": f"needs more memory than one document may take; {_ADVICE}"}
    except (
        Exception
    ) as error:  # a library met a file it was not made for: this file's reader is the right place to say so
        reply = {
            "error": f"cannot be read ({type(error).__name__}: {str(error)[:200]}); it may be damaged: export it anew"
        }
    return json.dumps(reply).encode("ascii")


def _send(replies: IO[bytes], body: bytes) -> None:
    replies.write(json.dumps({"size": len(body)}).encode() + b"\n")
    replies.write(body)
    replies.flush()


def _limit_self(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; time is still limited by the parent
        return
    limit = megabytes * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm(seconds: float) -> None:
    """Ends this process after so much processor time, and after more of the clock's should the parent be gone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, _WALL * seconds + 5 if seconds else 0)
