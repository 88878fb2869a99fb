"""The server is killed while it answers and while a job of its trains: a new one has the question and what was said of
the answer, and the job has gone on. Real processes of the command line, the real starters.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from apps.store import INTERRUPTED
from rag.index import sync
from tests.apps.browser import chrome, settled, shot, tab

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

LONG = 900_000
ASKED = "Describe everything that is said about how the harbour office works."


def start(index: Path, port: int, root: Path) -> subprocess.Popen[bytes]:
    """`ragtune chat`, once it answers."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    line = [sys.executable, "-m", "apps.cli", "chat", str(index), "--port", str(port), "-q"]
    server = subprocess.Popen(line, env=environment, start_new_session=True)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def visit(browser: Any, port: int) -> Any:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector(".rt-model.rt-ready", timeout=LONG)
    return page


def test_a_killed_server_loses_neither_the_answer_nor_the_job(tmp_path: Path, root: Path, chromium: str) -> None:
    from apps.serving import load_encoder

    index = tmp_path / "handbook"
    sync(index, [root / "samples/handbook/documents"], load_encoder("starter"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    servers = [start(index, port, root)]
    try:
        with chrome(chromium) as browser:
            page = visit(browser, port)
            tab(page, "Tune")
            page.set_input_files("input[type=file][accept*=jsonl]", str(root / "samples/handbook/train.jsonl"))
            page.wait_for_selector("#tune-command pre >> text=ragtune tune")
            page.fill("#minutes :is(input, textarea)", "0.5")
            page.fill("#adapter-name :is(input, textarea)", "kept")
            page.keyboard.press("Tab")
            page.wait_for_selector("#tune-command pre >> text=adapters/kept")
            page.click("#tune-start")
            page.wait_for_selector("#tune-job .rt-job[data-state=running]", timeout=LONG)
            tab(page, "Chat")
            page.fill("#question textarea", ASKED)
            page.click("#ask")
            page.wait_for_selector("#live-sources .rt-card", timeout=LONG)
            os.kill(servers[0].pid, signal.SIGKILL)
            servers[0].wait(30)
            page.close()

            servers.append(start(index, port, root))
            page = visit(browser, port)
            page.click(".rt-talk-open")
            page.wait_for_selector(f"#live-answers >> text={ASKED}")
            page.wait_for_selector(f"text={INTERRUPTED}")
            assert page.query_selector("#live-sources .rt-card")
            shot(page, "killed-chat")
            tab(page, "Tune")
            settled(page, "#tune-job")
            page.wait_for_selector("#adapters li:has-text('kept')")
    finally:
        for server in servers:
            if server.poll() is None:
                server.kill()
