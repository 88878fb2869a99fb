"""`ragtune chat` as a process of its own: how soon its page can be used, how often a page is redrawn, and its memory.

Start: from the command to the moment in which the question can be typed in a headless Chromium that stands open, and in
which the model is loaded; a few times, in turns with the least that Gradio can do, a `gr.ChatInterface` that repeats
what it is told. Redraws: changes of the page per second while an answer is streamed, the busiest second of three
answers. Memory (`benchmarks.serve_memory`): that of the server's process while eight clients ask without a pause.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serve import SAMPLE, Side, ask_ours, crowd

READY = ".rt-model.rt-ready"
COUNTED = """() => { window.seen = [];
  new MutationObserver(() => window.seen.push(performance.now())).observe(document.body,
    {childList: true, subtree: true, characterData: true}); }"""


PLAIN = """
import sys
import gradio as gr
page = gr.ChatInterface(lambda message, history: message, analytics_enabled=False)
page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True, share=False)
"""
OURS, THEIRS = "#question textarea:not([disabled])", "textarea:not([disabled])"


@contextmanager
def server(index: Path | None) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """(process, address, when it was started) of a `ragtune chat`; without an index, of the plain page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    line = [sys.executable, "-c", PLAIN, str(port)]
    if index is not None:
        line = [sys.executable, "-m", "apps.cli", "chat", str(index), "--port", str(port), "-q"]
    began = time.perf_counter()
    process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}/", began
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def answers_http(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the page is handed out; `/health` says yes only when the model is loaded."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}") from None
            time.sleep(0.02)


def starts(index: Path, browser: Any, times: int) -> dict[str, list[float]]:
    """Seconds from the command to each stage."""
    found: dict[str, list[float]] = {}
    for _ in range(times):
        for name, which, box in (("plain page", None, THEIRS), ("ragtune chat", index, OURS)):
            page = browser.new_page()
            page.goto("about:blank")
            with server(which) as (process, url, began):

                def seen(what: str, name: str = name, began: float = began) -> None:
                    found.setdefault(f"{name}: {what}", []).append(time.perf_counter() - began)

                answers_http(process, url)
                seen("the server answers")
                page.goto(url, wait_until="commit")
                page.wait_for_selector(box, timeout=120_000).fill("When does the ferry leave?")
                seen("a question can be typed")
                if which is not None:
                    page.wait_for_selector(READY, timeout=600_000)
                    seen("the model is loaded")
            page.close()
    return found


def redraws(index: Path, browser: Any, questions: Sequence[str]) -> list[int]:
    """Of each answer, the most moments within one second in which the page changed, 20 ms apart at least."""
    busiest = []
    with server(index) as (process, url, _):
        answers_http(process, url)
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector(READY, timeout=600_000)
        for question in questions:
            page.fill("#question textarea", question)
            page.evaluate(COUNTED)
            page.click("#ask")
            page.wait_for_selector("#stop:not([disabled])", timeout=120_000)
            page.wait_for_selector("#ask:not([disabled])", timeout=600_000)
            page.wait_for_timeout(1000)
            moments: list[float] = []
            for at in page.evaluate("window.seen"):
                if not moments or at - moments[-1] >= 20:
                    moments.append(at)
            busiest.append(max((sum(a <= b < a + 1000 for b in moments) for a in moments), default=0))
    return busiest


def memory(index: Path, questions: Sequence[str], minutes: float, clients: int) -> tuple[list[float], int]:
    """MiB of the server's process every five seconds under load, and how many answers it gave."""
    import psutil

    side = Side()
    with server(index) as (process, url, _):
        answers_http(process, url)
        ask_ours(url, questions, 1, Side(), 0)  # the model is loaded
        watched, end = psutil.Process(process.pid), time.monotonic() + 60 * minutes
        seen = [watched.memory_info().rss / 2**20]

        def talk(i: int) -> None:
            turn = 0
            while time.monotonic() < end:
                ask_ours(url, questions[i + turn :] or questions, 2, side, 0)
                turn = (turn + clients) % len(questions)

        crew = threading.Thread(target=crowd, args=(clients, side, talk))
        crew.start()
        while crew.is_alive():
            crew.join(5)
            seen.append(watched.memory_info().rss / 2**20)
            print(f"{seen[-1]:.0f} MiB, {side.answers} answers", file=sys.stderr, flush=True)
    return seen, side.answers


def main(starts_: int = 5, minutes: float = 0.0, title: str = "The page's start") -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--starts", type=int, default=starts_)
    parser.add_argument("--minutes", type=float, default=minutes, help="under load")
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()

    from playwright.sync_api import sync_playwright

    from rag.index import sync
    from rag.models import load_encoder
    from rag.questions import read_questions

    questions = [q.question for q in read_questions(SAMPLE / "test.jsonl")]
    lines = [f"## {title}", ""]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "handbook"
        sync(index, [SAMPLE / "documents"], load_encoder("starter"))
        if given.starts:
            with sync_playwright() as made:
                browser = made.chromium.launch(
                    executable_path=shutil.which("chromium"),
                    args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
                )
                found = starts(index, browser, given.starts)
                drawn = redraws(index, browser, questions[:3])
                browser.close()
            lines += [f"| from the command until | median of {given.starts}, s | slowest |", "|---|---|---|"]
            lines += [f"| {what} | {statistics.median(v):.1f} | {max(v):.1f} |" for what, v in found.items()]
            told = ", ".join(map(str, drawn))
            lines += ["", f"Most changes of the page within one second, for each of {len(drawn)} answers: {told}."]
        if given.minutes:
            seen, count = memory(index, questions, given.minutes, given.clients)
            each = [seen[at : at + 12] for at in range(0, len(seen), 12)]
            shown = ", ".join(f"{statistics.mean(part):.0f}" for part in each)
            lines += [
                "",
                f"Memory under {given.minutes:g} minutes of load by {given.clients} clients ({count} answers): "
                f"{seen[0]:.0f} MiB before; mean of each minute {shown} MiB.",
            ]
    print("<!-- results -->\n" + "\n".join(lines) + "\n<!-- /results -->")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
